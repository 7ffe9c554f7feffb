"""How messages show what comes from files: names and errors in one line, without control characters, and not too long."""
import re
from collections.abc import Callable

from vitzoo_runtime.terminal import printable


def one_line(e: Exception) -> str:
    """The first sentence of what went wrong, without the colours and the advice that follow it in some of torch's."""
    text = re.sub(r'\x1b\[[0-9;]*m', '', str(e)).split('WeightsUnpickler error:')[-1].strip() or type(e).__name__
    return shown(re.split(r'\.\s|\n', text)[0], 200)


def shown(name: object, limit: int = 60) -> str:
    """A name from a file as a message shows it."""
    return printable(name, limit)


def some(what: str, names: list[str], number: int = 3) -> str:
    """'5 missing (a, b, c, ...). ', with so many of the names; '' of none."""
    listed = ', '.join([*map(shown, names[:number]), *(['...'] if len(names) > number else [])])
    return f'{len(names)} {what}{f" ({listed})" if number else ""}. ' if names else ''


def fitted(message: Callable[[int], str], limit: int = 300) -> str:
    """A message about names, `message(how many of them it lists)`, with as many as leave it below `limit` characters."""
    return next((text for number in (3, 2, 1) if len(text := message(number)) < limit), message(0))
