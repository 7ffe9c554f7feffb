"""Fair timing on shared machines: the candidates take turns, every figure is a median over rounds, and ratios are taken within a round."""
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass
class Timings:
    """Seconds per call of each candidate, one entry per round.

    cpu: CPU time of the calling thread, which does not grow while the scheduler runs somebody else; the figure to trust for work on
        this thread alone, meaningless for a GPU and for several threads.
    wall: wall-clock time.
    """
    cpu: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    def median_ms(self, name: str, clock: str = 'cpu') -> float:
        return 1e3 * statistics.median(getattr(self, clock)[name])

    def speed_up(self, name: str, over: str, clock: str = 'cpu') -> tuple[float, float, float]:
        """Times as fast as `over`: median, lowest and highest of the ratios within the rounds."""
        seconds = getattr(self, clock)
        ratios = [slow / fast for fast, slow in zip(seconds[name], seconds[over], strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)


@contextmanager
def torch_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def take_turns(calls: Mapping[str, Callable[[], object]], *, rounds: int = 5, min_seconds: float = 0.1, threads: int = 1,
               progress: Callable[[], object] = lambda: None) -> Timings:
    """Time the calls A B C A B C ... for a number of rounds, after two of each to warm up and to see how long they take.

    Args:
        calls: name -> what to time; a call that starts work on a GPU must wait for it.
        rounds: one figure each.
        min_seconds: within a round a call is repeated until about this long.
        threads: of torch, for the time of the measurement. Other runtimes are to be set to the same number by the caller.
        progress: told after each call of the first round, which warms up, and after each figure: (1 + rounds) times for a candidate.

    Raises:
        ValueError: if rounds or threads is below 1.
    """
    if rounds < 1 or threads < 1:
        raise ValueError(f'rounds={rounds}, threads={threads}: expected at least 1 each.')
    timings = Timings({name: [] for name in calls}, {name: [] for name in calls})
    with torch_threads(threads):
        repeats = {}
        for name, call in calls.items():
            call()
            repeats[name] = max(1, round(min_seconds / max(_time(call, 1)[1], 1e-6)))
            progress()
        for _ in range(rounds):
            for name, call in calls.items():
                cpu, wall = _time(call, repeats[name])
                timings.cpu[name].append(cpu)
                timings.wall[name].append(wall)
                progress()
    return timings


def _time(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    cpu, wall = time.thread_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.thread_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats
