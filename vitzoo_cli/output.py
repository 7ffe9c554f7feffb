"""What the commands print: tables and progress by rich where it is installed, plain text where it is not, JSON for machines."""
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vitzoo_runtime.files import to_json
from vitzoo_runtime.terminal import LONGEST, printable


class Output:
    """Results go to stdout, all else to stderr. With `as_json`, stdout gets one JSON value and stderr nothing but notes.

    What is printed is on one line, without control characters, and not longer than `LONGEST`: names come from files.
    """

    def __init__(self, as_json: bool = False):
        self.as_json = as_json

    def json(self, data: object) -> None:
        """Print `data`, if JSON was asked for."""
        if self.as_json:
            print(to_json(data))

    def note(self, text: str) -> None:
        print(printable(text, LONGEST), file=sys.stderr)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
        """Print a table for people; `columns` may be empty (no header). Those named in `right` hold numbers. A list is a cell of several
        lines."""
        if self.as_json:
            return
        title, rows = printable(title, LONGEST), [[_cell(cell) for cell in row] for row in rows]
        try:
            from rich.markup import escape
            from rich.table import Table
        except ImportError:
            _plain_table(title, columns, rows, right)
            return
        table = Table(show_header=bool(columns))
        for column in columns or [''] * max(map(len, rows), default=0):
            table.add_column(column, justify='right' if column in right else 'left', overflow='fold')
        for row in rows:
            table.add_row(*map(escape, row))
        console = _console()
        console.print(title, style='bold', markup=False, highlight=False, soft_wrap=True)
        console.print(table)

    def facts(self, title: str, facts: dict[str, object]) -> None:
        """A table of names and values; what is None is left out."""
        self.table(title, (), [(name, value) for name, value in facts.items() if value is not None])

    def rich(self, renderable: object) -> None:
        """Print what knows how to show itself in rich."""
        if not self.as_json:
            _console().print(renderable)

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[[str], None]]:
        """Show how far `total` steps are and how long they take: a bar in a terminal, else a line now and then.

        Gives a function to be called after every step, with a new description if there is one.
        """
        if self.as_json:
            yield lambda text='': None
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        except ImportError:
            yield _Lines(description, total)
            return
        console = Console(stderr=True)
        if not console.is_terminal:
            yield _Lines(description, total)
            return
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
            task = progress.add_task(description, total=total)
            yield lambda text='': progress.update(task, advance=1, **({'description': text} if text else {}))

    def progress(self, items: Sequence, description: str) -> Iterator:
        """Go through `items` with a bar."""
        with self.bar(description, len(items)) as advance:
            for item in items:
                yield item
                advance()


def _console():
    """rich on stdout; it would end the process where nobody reads on."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self):
            raise BrokenPipeError

    # in a file or a pipe there is no width to respect
    return Quiet(width=None if sys.stdout.isatty() else 200)


def _cell(cell: object) -> str:
    return '\n'.join(printable(line, LONGEST) for line in (cell if isinstance(cell, list) else [cell]))


class _Lines:
    """Progress as a line on stderr every few seconds."""

    def __init__(self, description: str, total: int, every: float = 10):
        self.description, self.total, self.every = description, total, every
        self.done, self.start = 0, time.monotonic()
        self.said = self.start
        self.stream = sys.stderr

    def __call__(self, text: str = '') -> None:
        self.done += 1
        self.description = text or self.description
        now = time.monotonic()
        if now - self.said >= self.every:
            self.said = now
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f'{self.description}: {self.done}/{self.total}, about {left:.0f} s left', file=self.stream, flush=True)


def _plain_table(title: str, columns: Sequence[str], rows: list[list[str]], right: Sequence[str]) -> None:
    rows = [[cell.replace('\n', ', ') for cell in row] for row in rows]
    lines = [list(columns), *rows] if columns else rows
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    right = [column in right for column in columns] if columns else [False] * len(widths)
    print(title)
    for line in lines:
        cells = (cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True))
        print('  '.join(cells).rstrip())
