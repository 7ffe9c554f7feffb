"""What the site shows of files outside docs/: the changelog, and the README's table of families. mkdocs calls these functions."""
import re
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
INCLUDE = re.compile(r'^<!-- include: section "(.+)" of README.md -->$', re.MULTILINE)


def on_files(files, config):
    """Add the changelog as a page."""
    files.append(File.generated(config, 'changelog.md', abs_src_path=str(ROOT / 'CHANGELOG.md')))


def on_page_markdown(markdown, **_):
    """Put sections of the README, with links as they are from docs/, in the place of their marks."""
    return INCLUDE.sub(lambda match: section(match[1]), markdown)


def section(title: str) -> str:
    """What is below a heading of the README, up to the next one. Raises PluginError if there is no such heading."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    found = re.search(rf'^## {re.escape(title)}\n(.*?)(?=^## |\Z)', readme, re.DOTALL | re.MULTILINE)
    if not found:
        raise PluginError(f'README.md has no section "## {title}"; expected one, for a page includes it')
    return found[1].strip().replace('](docs/', '](')
