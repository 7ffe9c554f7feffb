"""How many threads a long computation on CPUs takes, chosen before PyTorch is imported."""
import os
import time
from pathlib import Path

QUOTA = Path('/sys/fs/cgroup/cpu.max')  # of a container: microseconds in a period, or "max"
STAT = Path('/proc/stat')
WATCHED = 0.5  # seconds, for which the cores are watched


def choose_threads() -> None:
    """Take the cores that are idle, and give up a core while waiting, through OpenMP's variables; what the user has set stays.

    Threads of OpenMP wait for each other by spinning, each on a core of its own. Beside other work they spin while the one that they wait
    for has no core: with two threads on two busy cores, an iteration of training takes ten to a hundred times as long.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
    if 'OMP_NUM_THREADS' not in os.environ:
        os.environ['OMP_NUM_THREADS'] = str(max(1, round(min(_idle_cores(), _allowed_cores()))))


def _idle_cores() -> float:
    """Cores of the machine that had nothing to do, on average; all of them where nobody can say."""
    try:
        idle, total = _idle_and_total()
        time.sleep(WATCHED)
        idle_later, total_later = _idle_and_total()
        return os.cpu_count() * (idle_later - idle) / (total_later - total)
    except (OSError, ValueError, ZeroDivisionError):
        return os.cpu_count()


def _idle_and_total() -> tuple[int, int]:
    """Ticks of all cores together since the start of the machine."""
    ticks = [int(n) for n in STAT.read_text().partition('\n')[0].split()[1:9]]  # user nice system idle iowait irq softirq steal
    return ticks[3] + ticks[4], sum(ticks)


def _allowed_cores() -> float:
    """That this process may use, by its affinity and its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    try:
        quota, period = QUOTA.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores
