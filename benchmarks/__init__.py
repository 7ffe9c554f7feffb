"""What a table in docs is made by, with its CSV. Runs from a clone: `python -m benchmarks.NAME` in the root of the repository."""
import functools
import sys
from collections.abc import Callable


def command(main: Callable[[], int | None]) -> Callable[[], int]:
    """Decorate what a command does: its exit status is what is returned, or 0; 2 with one line where words or packages are wrong."""
    @functools.wraps(main)
    def run() -> int:
        try:
            return main() or 0
        except (ValueError, ImportError) as e:
            print(f'error: {e}', file=sys.stderr)
            return 2
    return run
