"""Libraries that talk: what they print and warn of is kept for a file, or for nobody."""
import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path


class Log(io.TextIOBase):
    """A stream in the place of stdout and stderr; `save` says where all that is written belongs."""

    def __init__(self):
        self.file = io.StringIO()

    def write(self, text: str) -> int:
        return self.file.write(text)

    def flush(self) -> None:
        self.file.flush()

    def save(self, path: str | Path) -> None:
        """Append to this file what was written and what will be, line by line, since processes fork and are killed."""
        text = self.file.getvalue()
        self.file = open(path, 'a', buffering=1, encoding='utf-8', errors='backslashreplace')
        self.file.write(text)

    def end(self) -> None:
        """Close the file; loggers that hold on to this stream may write on, for nobody."""
        self.file.close()
        self.file = io.StringIO()


@contextmanager
def quiet() -> Iterator[Log]:
    """What is printed meanwhile, by Python's streams, goes to the log; an `Output` made before has the terminal still."""
    log = Log()
    try:
        with redirect_stdout(log), redirect_stderr(log):
            yield log
    finally:
        log.end()
