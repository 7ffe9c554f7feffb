"""What docs/clients.md says, for the tests to hold it to: its recipes and its table of what is refused."""
import functools
import os
import re
import tempfile
from pathlib import Path

import pytest

TEXT = (Path(__file__).parents[2] / 'docs' / 'clients.md').read_text(encoding='utf-8')
TABLE = 'What does not go, and why'


def sections() -> dict[str, str]:
    parts = re.split(r'^## (.+)\n', TEXT, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


@functools.cache
def recipe(heading: str) -> dict:
    """What the Python blocks of a section define, after running them in an empty folder. Skips the test if one imports what is missing."""
    blocks = re.findall(r'^```python\n(.*?)^```', sections()[heading], re.DOTALL | re.MULTILINE)
    for library in re.findall(r'^(?:import|from) (\w+)', ''.join(blocks), re.MULTILINE):
        pytest.importorskip(library)
    names, here = {'__name__': 'recipe'}, Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in blocks:
                exec(compile(block, f'docs/clients.md, {heading}', 'exec'), names)
        finally:
            os.chdir(here)
    return names


def refused() -> dict[str, str]:
    """What is tried -> a part of the message, as the first two columns of the table have it."""
    rows = re.findall(r'^\| (.+?) \| `(.+?)` \| .+ \|$', sections()[TABLE], re.MULTILINE)
    return dict(rows)
