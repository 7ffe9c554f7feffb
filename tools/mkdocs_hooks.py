"""What the site shows of files outside docs/: the changelog, and sections of the README. mkdocs calls these functions."""
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# links where pages are read as they are, such as in the repository; in the site what they link to
INCLUDE = re.compile(r'^\[(.+)\]\(\.\./README\.md#\S+\) <!-- (its table )?included here -->$', re.MULTILINE)


def on_files(files, config):
    """Add the changelog as a page."""
    from mkdocs.structure.files import File
    files.append(File.generated(config, 'changelog.md', abs_src_path=str(ROOT / 'CHANGELOG.md')))


def on_page_markdown(markdown, **_):
    """Put sections of the README, or their tables alone, in the place of their links."""
    return INCLUDE.sub(lambda match: section(match[1], table=bool(match[2])), markdown)


def section(title: str, table: bool = False) -> str:
    """What is below a heading of the README, with links as they are from docs/. Raises ValueError if there is none."""
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    found = re.search(rf'^## {re.escape(title)}\n(.*?)(?=^## |\Z)', readme, re.DOTALL | re.MULTILINE)
    lines = [line for line in found[1].splitlines() if line.startswith('|') or not table] if found else []
    if not any(lines):
        raise ValueError(f'README.md has no {"table in the " if table else ""}section "## {title}"; expected one, since a page includes it')
    return '\n'.join(lines).strip().replace('](docs/', '](')
