"""The shipped micro recipes learn: what they must reach on the frozen digit scenes, from scratch on a CPU (minutes each)."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
BARS = [  # part of the data, config, lowest metrics
    ('detection', 'detection/mask-rcnn_svit_micro_digits', {'coco/bbox_mAP': 0.45, 'coco/bbox_mAP_50': 0.75}),
    ('detection', 'detection/retinanet_svit_micro_digits', {'coco/bbox_mAP_50': 0.1}),
    ('segmentation', 'segmentation/fpn_svit_micro_digits', {'mIoU': 47}),
    ('segmentation', 'segmentation/upernet_svit_micro_digits', {'mIoU': 45}),
    ('classification', 'classification/svit_micro_digits', {'top1': 90}),
]


@pytest.fixture(scope='module')
def standard(tmp_path_factory):
    from vitzoo.datasets import digit_scenes
    return digit_scenes.build(tmp_path_factory.mktemp('standard'), 'standard', progress=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize('part, config, bars', BARS, ids=[Path(config).name for _, config, _ in BARS])
def test_recipe_learns(part, config, bars, standard, tmp_path):
    subprocess.run([sys.executable, 'tools/train.py', f'configs/{config}.py', '--work-dir', str(tmp_path), '--seed', '0'],
                   cwd=ROOT, env={**os.environ, 'DIGIT_SCENES': str(standard.root)}, check=True, capture_output=True)
    log, = tmp_path.glob('*/vis_data/scalars.json')
    metrics = json.loads(log.read_text().splitlines()[-1])
    assert all(metrics[name] >= bar for name, bar in bars.items()), metrics
