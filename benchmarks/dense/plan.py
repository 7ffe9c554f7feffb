"""What there is to train: models, tasks, and the choice among their rows."""
import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import timm
import torch

import vitzoo  # noqa: F401  (registers the models)
from vitzoo.mm.config import CONFIGS

BACKBONES = CONFIGS / '_base_' / 'backbones'
BASELINE = 'timm_resnet'
REFERENCES = ('timm_swin', BASELINE)  # timm's, narrowed to the multiply-adds of svit_micro
# timm's plain ViTs with and without token reduction, for docs/vit_backbones.md
PLAIN = ('timm_vit', 'timm_vit_expedite', 'timm_vit_tome', 'timm_dinov3', 'timm_dinov3_expedite')
# ways back to the grid, for docs/dense.md
RECOVER = ('timm_vit_evit', 'timm_vit_evit_nearest', 'timm_vit_evit_learnt', 'timm_vit_expedite_nearest', 'timm_vit_expedite_learnt')
SCENE = (128, 160)
COARSEST = 8  # pixels a step of the finest maps: of 16, the crop of a digit would have nine


def _families() -> list[str]:
    """The micro model of each family, of several generations that with the plain name, if its maps are fine enough."""
    micro = defaultdict(list)
    for name in timm.list_models('*_micro'):
        module = timm.model_entrypoint(name).__module__
        if module.startswith('vitzoo.'):
            micro[module].append(name)
    with torch.device('meta'):
        return [name for name in (min(names, key=len) for names in micro.values())
                if timm.create_model(name).feature_info[0]['reduction'] <= COARSEST]


def _backbone(name: str) -> str:
    """What `set_backbone` takes: a file where the model has options for digit scenes, else its name."""
    file = BACKBONES / f'{name}.py'
    return str(file) if file.is_file() else name


FAMILIES = tuple(_families())
MODELS = {name: _backbone(name) for name in (*FAMILIES, *REFERENCES, *PLAIN, *RECOVER)}


@dataclass(frozen=True)
class Task:
    """`metrics`: column of the CSV to name in the Runner's evaluation; the first is the one that is drawn and has to reach `bar`.

    `iterations`: None for the recipe's.
    """
    config: str
    title: str
    metrics: dict[str, str]
    bar: float
    digits: int
    iterations: int | None = None


TASKS = {
    'detection': Task('detection/mask-rcnn_svit_micro_digits', 'Mask R-CNN, box mAP50',
                      {'box_mAP50': 'coco/bbox_mAP_50', 'box_mAP': 'coco/bbox_mAP', 'mask_mAP': 'coco/segm_mAP'}, 0.7, 3,
                      iterations=700),  # the recipe's 800 would bring a seed of all rows to an hour on two cores
    'segmentation': Task('segmentation/upernet_svit_micro_digits', 'UPerNet, mIoU %', {'mIoU': 'mIoU'}, 45, 1),
    'classification': Task('classification/svit_micro_digits', 'classification, top-1 %', {'top1': 'top1'}, 90, 1,
                           iterations=1600),  # the recipe's 1300 keep svit_micro under three minutes; others learn more slowly
}
Key = tuple[str, str, int]  # model, task, seed


def select(models: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Key]:
    """The rows of that choice, seed by seed. Nothing chosen means all models but those of `PLAIN` and `RECOVER`, all tasks, seeds 0 to 2.

    Raises ValueError for an unknown name.
    """
    for what, chosen, there in ('models', models, MODELS), ('tasks', tasks, TASKS):
        if unknown := [name for name in chosen if name not in there]:
            raise ValueError(f'{what}: {", ".join(map(repr, unknown))} unknown; expected some of {", ".join(map(repr, there))}')
    if any(seed < 0 for seed in seeds):
        raise ValueError(f'seeds: expected integers from 0 on, got {list(seeds)}')
    models = models or (*FAMILIES, *REFERENCES)
    keys = itertools.product(dict.fromkeys(seeds or range(3)), dict.fromkeys(models), dict.fromkeys(tasks or TASKS))
    return [(model, task, seed) for seed, model, task in keys]
