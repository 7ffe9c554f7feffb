"""What docs/clients.md says, for the tests to hold it to: its recipes and its table of what is refused."""
import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / 'docs' / 'clients.md').read_text(encoding='utf-8')


def sections() -> dict[str, str]:
    parts = re.split(r'^## (.+)\n', TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def recipes(heading: str) -> list[str]:
    """The Python blocks of a section."""
    return re.findall(r'^```python\n(.*?)^```', sections()[heading], re.DOTALL | re.MULTILINE)


def recipe(heading: str) -> dict:
    """What the Python blocks of a section define, after running them."""
    names = {'__name__': 'recipe'}
    for block in recipes(heading):
        exec(compile(block, f'docs/clients.md, {heading}', 'exec'), names)
    return names


def refused() -> dict[str, str]:
    """What is tried -> a part of the message, as the first two columns of the table have it."""
    rows = re.findall(r'^\| (.+?) \| `(.+?)` \| .+ \|$', sections()['What does not go, and why'], re.MULTILINE)
    return dict(rows)
