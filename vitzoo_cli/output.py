"""What the commands print: tables and progress by rich where it is installed, plain text where it is not, JSON for machines."""
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from vitzoo_runtime.files import to_json
from vitzoo_runtime.terminal import LONGEST, printable


class Output:
    """Results go to stdout, all else to stderr, to those that there were when it was made. With `as_json`, stdout gets one JSON value and
    stderr nothing but notes.

    What is printed is on one line, without control characters, and not longer than `LONGEST`: names come from files. A bar makes room
    for it.
    """

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.stdout, self.stderr = sys.stdout, sys.stderr
        self._bar = None  # the rich one that is shown

    def silence(self) -> None:
        """Print nothing from here on."""
        self.stdout = self.stderr = open(os.devnull, 'w')

    def json(self, data: object) -> None:
        """Print `data`, if JSON was asked for."""
        if self.as_json:
            print(to_json(data), file=self.stdout)

    def note(self, text: str) -> None:
        with self._room():
            print(printable(text, LONGEST), file=self.stderr)

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
            with self._room():
                _plain_table(title, columns, rows, right, self.stdout)
            return
        table = Table(show_header=bool(columns))
        for column in columns or [''] * max(map(len, rows), default=0):
            table.add_column(column, justify='right' if column in right else 'left', overflow='fold')
        for row in rows:
            table.add_row(*map(escape, row))
        console = _console(self.stdout)
        with self._room():
            console.print(title, style='bold', markup=False, highlight=False, soft_wrap=True)
            console.print(table)

    def facts(self, title: str, facts: dict[str, object]) -> None:
        """A table of names and values; what is None is left out."""
        self.table(title, (), [(name, value) for name, value in facts.items() if value is not None])

    def rich(self, renderable: object) -> None:
        """Print what knows how to show itself in rich."""
        if not self.as_json:
            with self._room():
                _console(self.stdout).print(renderable)

    @contextmanager
    def _room(self) -> Iterator[None]:
        """Take away the bar, if there is one, while something else is printed."""
        if self._bar:
            self._bar.stop()
        yield
        if self._bar:
            self._bar.start()

    @contextmanager
    def bar(self, description: str, total: int) -> Iterator[Callable[..., None]]:
        """Show how far `total` steps are and how long they take: a bar in a terminal, else a line now and then.

        Gives a function to be called after every step, with a new description if there is one; with `steps=0` in the midst of one.
        """
        if self.as_json:
            yield lambda text='', steps=1: None
            return
        try:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        except ImportError:
            yield _Lines(description, total, self.stderr)
            return
        console = Console(file=self.stderr)
        if not console.is_terminal:
            yield _Lines(description, total, self.stderr)
            return
        columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
            task = progress.add_task(description, total=total)
            self._bar = progress
            try:
                yield lambda text='', steps=1: progress.update(task, advance=steps, **({'description': text} if text else {}))
            finally:
                self._bar = None

    def progress(self, items: Sequence, description: str) -> Iterator:
        """Go through `items` with a bar."""
        with self.bar(description, len(items)) as advance:
            for item in items:
                yield item
                advance()


def _console(stdout):
    """rich on stdout; by itself it would end the process where nobody reads on."""
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self):
            raise BrokenPipeError

    # in a file or a pipe there is no width to respect
    return Quiet(file=stdout, width=None if stdout.isatty() else 200)


def _cell(cell: object) -> str:
    return '\n'.join(printable(line, LONGEST) for line in (cell if isinstance(cell, list) else [cell]))


class _Lines:
    """Progress as a line every few seconds, and not more than some hundred of them."""

    def __init__(self, description: str, total: int, stream, every: float = 10):
        self.description, self.total, self.stream, self.every = description, total, stream, every
        self.done, self.start = 0, time.monotonic()
        self.said, self.done_then = self.start, 0

    def __call__(self, text: str = '', steps: int = 1) -> None:
        self.done += steps
        self.description = text or self.description
        now = time.monotonic()
        if now - self.said >= self.every and self.done - self.done_then >= self.total / 100:
            self.said, self.done_then = now, self.done
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f'{self.description}: {self.done}/{self.total}, about {left:.0f} s left', file=self.stream, flush=True)


def _plain_table(title: str, columns: Sequence[str], rows: list[list[str]], right: Sequence[str], stream) -> None:
    rows = [[cell.replace('\n', ', ') for cell in row] for row in rows]
    lines = [list(columns), *rows] if columns else rows
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    right = [column in right for column in columns] if columns else [False] * len(widths)
    print(title, file=stream)
    for line in lines:
        cells = (cell.rjust(width) if r else cell.ljust(width) for cell, width, r in zip(line, widths, right, strict=True))
        print('  '.join(cells).rstrip(), file=stream)
