"""Markdown pages with a part that is made of results, between two markers."""
from pathlib import Path

from vitzoo_runtime.files import replacing


def around(page: str | Path, start: str, end: str) -> tuple[str, str]:
    """What stands before and behind the part that is made, with the markers; of a page that is not there the markers alone.

    Call it before long work, whose end is no time to find that there is nowhere to write.

    Raises:
        ValueError: the page cannot be read, or has no markers in this order.
    """
    page = Path(page)
    try:
        text = page.read_text(encoding='utf-8') if page.exists() else f'{start}\n{end}\n'
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f'page {str(page)!r}: expected a Markdown file to write the table into, or none yet ({e})') from e
    if not 0 <= text.find(start) < text.find(end):
        raise ValueError(f'{page} has no {start} followed by {end} to write the table between')
    return text[:text.index(start)] + start, text[text.index(end):]


def insert(content: str, page: str | Path, start: str, end: str) -> None:
    """Put it between the markers, in the place of what was there. ValueError as `around`."""
    before, after = around(page, start, end)
    with replacing(Path(page)) as temporary:
        temporary.write_text(f'{before}\n\n{content.strip()}\n\n{after}', encoding='utf-8')
