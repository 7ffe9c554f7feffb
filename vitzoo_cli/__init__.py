"""The `vitzoo` command. Importing this imports neither torch nor vitzoo: a command does so when it needs them."""
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (default: that of this process); returns the exit status: 0 fine, 1 something failed, 2 bad arguments."""
    from .app import run
    return run(argv)
