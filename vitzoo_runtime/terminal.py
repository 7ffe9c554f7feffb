"""What a command needs of the terminal and the process it runs in, however they are: text that is safe to print, streams, signals."""
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1000  # characters of a message


def printable(text: object, longest: int = 120) -> str:
    """A name or message from outside on one line: what is not printable (control characters, line ends, halves of surrogate pairs) is
    escaped, and what is longer than `longest` cut in the middle."""
    text = _cut(str(text), longest)  # before it is escaped too, since it may be very long
    return _cut(''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text), longest)


def _cut(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f'{text[:half]}...{text[-half:]}'


@contextmanager
def command() -> Iterator[None]:
    """Surround a command's work, so that it can print and ends tidily.

    Streams that the caller closed lead nowhere, characters that a terminal does not know are escaped, a width of 0 is none. SIGTERM and
    SIGHUP end the process by SystemExit (128 + the signal's number), so that what is half written is removed; a signal that was ignored,
    as under nohup, stays so.
    """
    _open_streams()
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    for name in 'COLUMNS', 'LINES':
        if not os.environ.get(name, '1').strip('0'):
            del os.environ[name]
    signals = []
    if threading.current_thread() is threading.main_thread():  # others may not
        signals = [s for name in ('SIGTERM', 'SIGHUP') if (s := getattr(signal, name, None)) and signal.getsignal(s) is signal.SIG_DFL]
    for number in signals:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_DFL)
        _flush()


def _end(number: int, frame) -> None:
    raise SystemExit(128 + number)


def _open_streams() -> None:
    """Open what is closed of the standard streams; else the next file that is opened, by whatever library, would get its number."""
    if None not in (sys.stdin, sys.stdout, sys.stderr):
        return
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    for name, mode in ('stdin', 'r'), ('stdout', 'w'), ('stderr', 'w'):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))


def _flush() -> None:
    """Write out what was printed; where nobody takes it (`| head`, a full disk), keep Python from complaining at its end."""
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except (OSError, ValueError):
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            except (OSError, ValueError):
                pass
