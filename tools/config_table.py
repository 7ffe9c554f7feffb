"""Write the table of configs in docs/configs.md from configs/metafiles: python tools/config_table.py"""
from pathlib import Path

import yaml

from vitzoo_runtime.files import replacing

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'configs.md'
MARK = '<!-- from here on: tools/config_table.py -->\n'


def table() -> str:
    lines = []
    for file in sorted((ROOT / 'configs' / 'metafiles').glob('*.yml')):
        content = yaml.safe_load(file.read_text())
        family = content['Collections'][0]
        lines += [f'## {family["Name"]}', '']
        if 'Paper' in family:
            lines += [f'[{family["Paper"]["Title"]}]({family["Paper"]["URL"]})', '']
        lines += ['| config | head | schedule | published | weights |', '| --- | --- | --- | --- | --- |']
        lines += [row(entry) for entry in content['Models']] + ['']
    return '\n'.join(lines)


def row(entry: dict) -> str:
    values = [f'{value} {name}' for result in entry.get('Results', []) for name, value in result['Metrics'].items()]
    published = f'{", ".join(values)} ([source]({entry["Source"]}))' if values else ''
    weights = entry.get('Weights', '')
    if weights:
        weights = f'[{"link there" if weights == entry["Source"] else "file"}]({weights})'
    facts = entry['Metadata']
    return f'| `{entry["Name"]}` | {facts["Head"]} | {facts["Schedule"]} | {published} | {weights} |'


def page() -> str:
    """The page as it should be: what is written by hand, then the table."""
    return PAGE.read_text().split(MARK)[0] + MARK + '\n' + table()


if __name__ == '__main__':
    with replacing(PAGE) as temporary:
        temporary.write_text(page())
