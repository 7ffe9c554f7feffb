"""A progress bar for work of a few long steps, which moves within them: by what is done where that is counted, else by the time gone,
against what was expected."""
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, redirect_stdout

# what PyTorch's exporter says when it begins its next part -> ours
_STAGES = {'Obtain model graph': 'trace', 'Run decompositions': 'decompose', 'Translate the graph': 'translate', 'Optimize the': 'optimise'}


class Steps:
    """How far some work has come.

    A step counts as much as it was expected to take. Within it the bar stands at the share that is done, where somebody says that; else it
    moves on quickly at first and more slowly beyond what was expected, and never to its end. The ratio of time taken to time expected, over
    all steps that are done, corrects what is expected of the rest.
    """

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic):
        """expected: step -> seconds, in order."""
        self.expected = dict(expected)
        self.clock = clock
        self.done = {}  # step -> seconds it took
        self.current, self.since, self.share = None, clock(), None

    def begin(self, name: str) -> None:
        """End what is under way, and begin a step; one that nobody expected counts one second."""
        self.finish()
        self.current = name
        self.expected.setdefault(name, 1.)

    def reach(self, share: float) -> None:
        """So much of the step under way is done; to be told from its beginning on, with 0."""
        self.share = share

    def finish(self) -> None:
        """End the step under way."""
        now = self.clock()
        if self.current is not None:
            self.done[self.current] = self.done.get(self.current, 0.) + now - self.since
        self.current, self.since, self.share = None, now, None

    @property
    def pace(self) -> float:
        """Seconds taken for a second expected."""
        expected = sum(self.expected[name] for name in self.done)
        return max(sum(self.done.values()) / expected, 0.01) if expected else 1.

    def fraction(self) -> float:
        """From 0 to 1; steps that were left out count as done once a later one has begun."""
        names = list(self.expected)
        place = names.index(self.current) if self.current else max((names.index(n) + 1 for n in self.done), default=0)
        gone = sum(self.expected[name] for name in names[:place])
        if self.current:
            by_time = 1 - math.exp(-(self.clock() - self.since) / (self.expected[self.current] * self.pace))
            gone += self.expected[self.current] * (by_time if self.share is None else self.share)
        return gone / sum(self.expected.values())

    def seconds_left(self) -> float:
        """About how long the rest will take."""
        return (1 - self.fraction()) * sum(self.expected.values()) * self.pace


@contextmanager
def progress_bar(expected: Mapping[str, float], show: bool = True):
    """A bar on standard error for the steps; yields a function to call with the name of each as it begins, and as it goes on with the share
    of it that is done, where that is counted."""
    if not show:
        yield lambda name, share=None: None
        return
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress_bar import ProgressBar
    from rich.text import Text
    steps = Steps(expected)

    class Bar(ProgressColumn):  # drawn anew ten times a second by rich
        def render(self, task):
            return ProgressBar(total=1, completed=steps.fraction(), width=40)

    class Left(ProgressColumn):
        def render(self, task):
            return Text(f'about {math.ceil(steps.seconds_left())} s left')

    columns = (SpinnerColumn(), TextColumn('{task.description}'), Bar(), TimeElapsedColumn(), Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task('', total=None)

        def step(name: str, share: float | None = None) -> None:
            if name != steps.current:
                steps.begin(name)
                bar.update(task, description=name)
            if share is not None:
                steps.reach(share)
        yield step


@contextmanager
def stages_of_exporter(step: Callable[[str], None]):
    """Call `step` with each part that PyTorch's exporter, if asked to be verbose, says on standard output that it begins."""
    class Listener(io.TextIOBase):
        def write(self, text: str) -> int:
            for said, name in _STAGES.items():
                if text.startswith(said) and text.endswith('...'):
                    step(name)
            return len(text)

    with redirect_stdout(Listener()):
        yield


def expected_seconds(num_modules: int, rounds: int, precision: str = 'fp32') -> dict[str, float]:
    """What the steps of an export took on one busy core, by PyTorch's exporter for a model of so many modules."""
    return {
        'run in PyTorch': 2., 'trace': 0.04 * num_modules, 'decompose': 0.05 * num_modules, 'translate': 0.01 * num_modules,
        'optimise': 0.035 * num_modules, 'check in ONNX Runtime': 2., **({'time': 1 + 0.4 * rounds} if rounds else {}),
        **({} if precision == 'fp32' else {f'put into {precision}': 5 + 0.4 * rounds}),
    }
