"""The pages on fine-tuning and own data, typed as they stand: their code, their configs, their commands, one after the other."""
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shapes
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('onnxruntime')

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'([^\n]*)\n```(\w*)\n(.*?)^```', re.DOTALL | re.MULTILINE)


def walk(page: str, folder: Path, only: str = '') -> None:
    """Do what a page says in an empty folder; of its commands those that have the word `only` in them."""
    names, here = {}, os.getcwd()
    os.chdir(folder)
    try:
        for before, language, text in BLOCK.findall((ROOT / 'docs' / page).read_text(encoding='utf-8')):
            if language == 'python':
                exec(compile(text, page, 'exec'), names)
            elif language == 'py':
                Path(re.match(r'# (\S+\.py)\n', text)[1]).write_text(text)
            elif not language and not before.startswith('<!-- not checked'):
                for line in text.replace('\\\n', ' ').splitlines():
                    if re.match(r'(\w+=\S+ )?(python|vitzoo) ', line) and only in line:
                        run(line)
    finally:
        os.chdir(here)


def run(line: str) -> None:
    words = shlex.split(line)
    env = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    while '=' in words[0]:
        name, _, env[name] = words.pop(0).partition('=')
    command = [sys.executable, *words[1:]] if words[0] == 'python' else [sys.executable, '-m', 'vitzoo', *words[1:]]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f'{line}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}'


def metrics(work: Path) -> dict[str, float]:
    """What `vitzoo test` leaves in its folder."""
    file, = work.glob('2*/2*.json')
    return json.loads(file.read_text())


@pytest.mark.slow
def test_finetune(tmp_path):
    walk('finetune.md', tmp_path)
    work = tmp_path / 'runs' / 'digits'
    page, log = (ROOT / 'docs' / 'finetune.md').read_text(), min(work.glob('2*/2*.log')).read_text()
    assert re.search('^svit_micro: .* loaded .*$', page, re.MULTILINE)[0] in log
    assert 0 <= metrics(work)['top1'] <= 100 and (work / 'model.onnx').is_file()
    found = json.loads((work / 'found' / 'predictions.json').read_text())
    pictures = list((tmp_path / 'data' / 'digits' / 'classification' / 'val' / '3').iterdir())
    assert found['classes'] == [str(d) for d in range(10)] and len(found['images']) == len(pictures) > 0


@pytest.mark.slow
def test_detector_on_own_data(tmp_path):
    """The circle and the box of each new picture are found where they are, by PyTorch and by the exported file."""
    walk('own_data.md', tmp_path, only='detector')
    assert metrics(tmp_path / 'runs' / 'detector')['coco/segm_mAP_50'] > 0.5
    objects = json.loads((tmp_path / 'data' / 'shapes' / 'val' / 'objects.json').read_text())
    for folder in 'found', 'found_onnx':
        assert len(list((tmp_path / 'runs' / 'detector' / folder).rglob('*.png'))) == 4
        found = json.loads((tmp_path / 'runs' / 'detector' / folder / 'predictions.json').read_text())
        hits = 0
        for image in found['images']:
            number = int(Path(image['image']).stem)
            for true in (a for a in objects['annotations'] if a['image_id'] == number):
                name = shapes.CLASSES[true['category_id'] - 1]
                hits += any(o['name'] == name and overlap(o['box'], true['bbox']) > 0.5 for o in image['objects'])
        assert hits >= 6, f'{hits} of 8 objects in {folder}'


def overlap(box, other):
    """Intersection over union of left, top, right, bottom and left, top, width, height."""
    left, top, width, height = other
    right, bottom = left + width, top + height
    inside = max(0, min(box[2], right) - max(box[0], left)) * max(0, min(box[3], bottom) - max(box[1], top))
    return inside / ((box[2] - box[0]) * (box[3] - box[1]) + width * height - inside)


@pytest.mark.slow
def test_segmentor_on_own_data(tmp_path):
    walk('own_data.md', tmp_path, only='segmentor')
    assert metrics(tmp_path / 'runs' / 'segmentor')['mIoU'] > 60
    for folder in 'found', 'found_onnx':
        maps = sorted((tmp_path / 'runs' / 'segmentor' / folder).rglob('*.labels.png'))
        assert len(maps) == 4
        for file in maps:
            name = file.name.replace('.labels.png', '').split('.')[0]
            with Image.open(file) as drawn, Image.open(tmp_path / 'data' / 'shapes' / 'val' / 'maps' / f'{name}.png') as true:
                assert drawn.size == true.size and (np.asarray(drawn) == np.asarray(true)).mean() > 0.8
