"""Write the tables of docs/configs.md, models by heads, from configs/ and its metafiles: python tools/config_table.py"""
from collections import Counter
from pathlib import Path

import yaml

from vitzoo_runtime.files import replacing

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / 'configs'
PAGE = ROOT / 'docs' / 'configs.md'
MARK = '<!-- from here on: tools/config_table.py -->\n'
SECTIONS = {'detection': ('Detection: COCO', 'box AP / mask AP'), 'segmentation': ('Segmentation: ADE20K', 'mIoU')}


def entries() -> list[dict]:
    """All of the metafiles, with `recipe` and `model`: mask-rcnn_svit_small_1x_coco -> mask-rcnn_MODEL_1x_coco, svit_small."""
    found = []
    for file in sorted((CONFIGS / 'metafiles').glob('*.yml')):
        for entry in yaml.safe_load(file.read_text(encoding='utf-8'))['Models']:
            head, *model, schedule, data = entry['Name'].split('_')
            found.append({**entry, 'model': '_'.join(model), 'recipe': f'{head}_MODEL_{schedule}_{data}'})
    return found


def matrix(chosen: list[dict], links: dict[str, int]) -> list[str]:
    """Models by recipes. Recipes of one model alone get a line each, below."""
    columns = Counter(entry['recipe'] for entry in chosen)  # in the order of the files, the most frequent first
    recipes = [recipe for recipe, count in columns.most_common() if count > 1]
    lines = [f'| model | {" | ".join(title(recipe, chosen) for recipe in recipes)} |', '| --- |' + ' :---: |' * len(recipes)]
    for model in dict.fromkeys(entry['model'] for entry in chosen):
        cells = {entry['recipe']: cell(entry, links) for entry in chosen if entry['model'] == model}
        if set(cells) & set(recipes):
            lines.append(f'| `{model}` | {" | ".join(cells.get(recipe, "") for recipe in recipes)} |')
    single = [entry for entry in chosen if entry['recipe'] not in recipes]
    return [*lines, '', *(f'- `{entry["Name"]}`: {entry["Metadata"]["Head"]}, {entry["Metadata"]["Schedule"]}'
                          + (f', {cell(entry, links)}' if 'Results' in entry else '') for entry in single)]


def title(recipe: str, chosen: list[dict]) -> str:
    head = next(entry['Metadata']['Head'] for entry in chosen if entry['recipe'] == recipe)
    return f'{head}<br>`{recipe.rpartition("_")[0]}`'


def cell(entry: dict, links: dict[str, int]) -> str:
    """That there is a config; what was published, linked to its source; an arrow where there are weights of the whole network."""
    values = [str(value) for result in entry.get('Results', []) for value in result['Metrics'].values()]
    published = f'[{" / ".join(values)}][{number(entry["Source"], links)}]' if values else '●'
    return published + (f' [↓][{number(entry["Weights"], links)}]' if 'Weights' in entry else '')


def number(link: str, links: dict[str, int]) -> int:
    return links.setdefault(link, len(links) + 1)


def table() -> str:
    found, links, lines = entries(), {}, []
    for folder, (heading, metrics) in SECTIONS.items():
        chosen = [entry for entry in found if entry['Config'].startswith(f'configs/{folder}/')]
        data = chosen[0]['recipe'].rpartition('_')[2]
        lines += [
            f'## {heading}', '',
            f'A cell is the config `configs/{folder}/` + its column + `_{data}.py`, with the model in the place of MODEL. ● if nothing was '
            f'published with it, else {metrics}, linked to the source; ↓ links to weights of the whole network, or to their page.',
            '', *matrix(chosen, links), '']
    lines += [
        '## Classification: ImageNet', '',
        'In `configs/classification`: recipes from scratch at 224x224, `MODEL_in1k.py`, and for fine-tuning at 384x384, '
        '`MODEL_384_in1k.py` ([training](training.md#classification)):', '', *classifiers(), '',
        '## Own data', '',
        'To start from, with pictures of your own ([fine-tuning](finetune.md), [own data](own_data.md)):', '',
        *listing('*_own.py', 'finetune_*.py'), '',
        '## Digit scenes', '',
        'Small ones that train on a CPU in minutes, on [digit scenes](digit_scenes.md):', '', *listing('*_digits.py'), '']
    return '\n'.join([*lines, *(f'[{i}]: {link}' for link, i in links.items()), ''])


def classifiers() -> list[str]:
    names = sorted(file.stem.removesuffix('_in1k') for file in (CONFIGS / 'classification').glob('*_in1k.py'))
    large = [name.removesuffix('_384') for name in names if name.endswith('_384')]
    return ['- 224: ' + ', '.join(f'`{name}`' for name in names if not name.endswith('_384')),
            '- 384: ' + ', '.join(f'`{name}`' for name in large)]


def listing(*patterns: str) -> list[str]:
    """A line for each folder that has such files."""
    names = {folder: sorted(file.stem for pattern in patterns for file in (CONFIGS / folder).glob(pattern))
             for folder in ('detection', 'segmentation', 'classification')}
    return [f'- `configs/{folder}/`: ' + ', '.join(f'`{name}`' for name in names[folder]) for folder in names if names[folder]]


def page() -> str:
    """The page as it should be: what is written by hand, then the tables."""
    return PAGE.read_text(encoding='utf-8').split(MARK)[0] + MARK + '\n' + table()


if __name__ == '__main__':
    text = page()
    with replacing(PAGE) as temporary:
        temporary.write_text(text, encoding='utf-8')
