"""Own data in a config: `set_data` puts it wherever it has to be, `check_data` says where class names, counts and files disagree."""
import copy
import json
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from PIL import Image

from vitzoo.arguments import check_types, show

__all__ = ['check_data', 'check_root', 'set_data']

PARTS = ('train', 'val', 'test')
LARGEST = 2 ** 26  # bytes of an annotation file that is opened before training; the larger ones of COCO take seconds
OTHER_COUNTS = ('rpn_head', 'loss')  # of a model: parts with a number of classes of their own


@check_types
def set_data(
        cfg: Config,
        *,
        classes: Sequence[str],
        train: dict,
        val: dict,
        test: dict | None = None,
        image_suffix: str = '.jpg',
        map_suffix: str = '.png',
) -> Config:
    """Put other data into the config of a detector or segmentor, in place: data sets, evaluators and the number of classes of each head.

    In a config file it is a dict of that name: `own_data = dict(classes=..., train=..., val=...)`, which `setup` hands to this function.

    Args:
        classes: the names; of a detector those of the COCO file's categories in their order, of a segmentor in the order of the values in
            its label maps.
        train: dict(images=FOLDER, annotations=...), a COCO file for detectors, a folder of label maps for segmentors, with paths as they
            are opened from the working directory.
        val: likewise.
        test: likewise; without it, `val`.
        image_suffix: of a segmentor's pictures.
        map_suffix: of a segmentor's label maps; a picture's map has the same name in front of it.

    Raises:
        ValueError: no detector or segmentor, or one whose classes are counted in another way; a split without `images` and
            `annotations`; several data sets in the place of one.
    """
    segments = cfg.get('default_scope') == 'mmseg'
    if not segments and cfg.get('default_scope') != 'mmdet':
        raise ValueError(f'own_data is for detectors and segmentors, got a config of default_scope={cfg.get("default_scope")!r}; for '
                         'classifiers set train_dataloader.dataset.root and val_dataloader.dataset.root')
    if not classes or len({*classes}) < len(classes):
        raise ValueError(f'own_data.classes: expected different names, got {show(classes)}')
    train_masks = not segments and _with_masks(_dataset(cfg, 'train'))
    for part, files in zip(PARTS, (train, val, test or val), strict=True):
        if {*files} != {'images', 'annotations'}:
            raise ValueError(f'own_data.{part}={show(dict(files))}: expected dict(images=FOLDER, annotations='
                             f'{"FOLDER of label maps" if segments else "COCO FILE"})')
        for name in f'{part}_dataloader', f'{part}_evaluator':
            cfg[name] = copy.deepcopy(cfg.get(name))  # often one dict for validation and test
        dataset = _dataset(cfg, part)
        common = {key: dataset[key] for key in ('pipeline', 'test_mode', 'filter_cfg') if key in dataset}
        common |= dict(data_root='', metainfo=dict(classes=list(classes)))
        if segments:
            new = dict(type='BaseSegDataset', data_prefix=dict(img_path=files['images'], seg_map_path=files['annotations']),
                       img_suffix=image_suffix, seg_map_suffix=map_suffix, reduce_zero_label=False)
            for step in common['pipeline']:
                if 'reduce_zero_label' in step:  # ADE20K counts from 1
                    step['reduce_zero_label'] = False
        else:
            new = dict(type='CocoDataset', data_prefix=dict(img=files['images']), ann_file=files['annotations'])
            for step in common['pipeline']:
                if 'with_mask' in step:  # where none are trained, files without them do
                    step['with_mask'] = train_masks
            for evaluator in _evaluators(cfg, part):
                evaluator['ann_file'] = files['annotations']
        dataset.clear()
        dataset.update(**new, **common)
    counts = [part for part, _ in _counts(cfg.model, 'model')]
    if not counts:
        raise ValueError(f'own_data: no part of the {cfg.model.get("type")} has a num_classes; write its numbers of classes and the data '
                         'sets into the config by hand')
    for part in counts:
        old, part['num_classes'] = part['num_classes'], len(classes)
        weights = (part.get('loss_cls') or {}).get('class_weight')
        if isinstance(weights, list) and len(weights) == old + 1:  # one more, for no object
            part['loss_cls']['class_weight'] = [1.0] * len(classes) + weights[-1:]
    return cfg


def _innermost(cfg: Config, part: str) -> dict:
    dataset = (cfg.get(f'{part}_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    return dataset


def _dataset(cfg: Config, part: str) -> ConfigDict:
    """The one that reads files, inside those that repeat or mix it."""
    dataset = _innermost(cfg, part)
    if not dataset or 'datasets' in dataset:
        raise ValueError(f'own_data: {part}_dataloader holds {"several data sets" if dataset else "no dataset"}; take a config with one')
    return dataset


def _with_masks(dataset: ConfigDict) -> bool:
    return any(step.get('with_mask') for step in dataset.get('pipeline') or [])


def _evaluators(cfg: Config, part: str) -> list[ConfigDict]:
    """Those that read the annotations themselves."""
    evaluators = cfg.get(f'{part}_evaluator') or []
    return [e for e in (evaluators if isinstance(evaluators, list | tuple) else [evaluators]) if 'ann_file' in e]


def _counts(part, name: str) -> Iterator[tuple[ConfigDict, str]]:
    """Each part of a model that has the number of classes of the data, and its dotted name."""
    if isinstance(part, dict):
        if isinstance(part.get('num_classes'), int):
            yield part, name
        for key, inner in part.items():
            if not key.startswith(OTHER_COUNTS):
                yield from _counts(inner, f'{name}.{key}')
    elif isinstance(part, list | tuple):
        for i, inner in enumerate(part):
            yield from _counts(inner, f'{name}.{i}')


def check_data(cfg: Config) -> int | None:
    """Compare class names with the number of classes of each head, and with what is in the files that are there.

    A `vitzoo.Classifier` without `num_classes` gets that of the folders, if they are there.

    Returns the number of pictures to train on, None where it was not counted.

    Raises:
        ValueError: they differ; training and validation do not have the same classes; an evaluator reads another file than its data set;
            masks are asked for where there are none; a label map holds other values than classes and 255.
    """
    model, first, num_images = cfg.get('model') or {}, None, None
    if model.get('type') == 'vitzoo.Classifier':
        return _check_folders(cfg)
    if 'language_model' in model:  # finds what it is told
        return
    for part in PARTS:
        try:
            dataset = _dataset(cfg, part)
        except ValueError:
            continue
        where = f'{part}_dataloader.dataset'
        classes = _class_names(dataset, cfg.get('default_scope'), where)
        if classes is None:
            continue
        first = first or (classes, where)
        if classes != first[0]:
            raise ValueError(f'{where} has the classes {show(classes)}, and {first[1]} {show(first[0])}: expected the same in the same '
                             'order')
        for head, name in _counts(model, 'model'):
            if head['num_classes'] != len(classes):
                raise ValueError(f'{name}.num_classes={head["num_classes"]}, and {where} has {len(classes)} classes ({show(classes)}): '
                                 f'expected {name}.num_classes={len(classes)}, or metainfo=dict(classes=...) with the names of your data '
                                 'in each dataset; own_data=dict(classes=..., ...) sets both')
        counted = None
        kind = str(dataset.get('type')).rpartition('.')[2]  # of others it is not known how their files are read
        if kind == 'CocoDataset' and dataset.get('ann_file'):
            counted = _check_coco(cfg, part, dataset, classes)
        elif kind == 'BaseSegDataset' and not dataset.get('ann_file') and (dataset.get('data_prefix') or {}).get('seg_map_path'):
            counted = _check_maps(dataset, classes, where)
        num_images = counted if part == 'train' else num_images
    return num_images


def _class_names(dataset: ConfigDict, scope: str | None, where: str) -> list[str] | None:
    """Of the config or, without any there, of the kind of data set; None if that cannot be told."""
    classes = (dataset.get('metainfo') or {}).get('classes')
    if isinstance(classes, str):
        if not os.path.isfile(classes):
            raise ValueError(f'{where}.metainfo.classes={show(classes)} is a string: expected a list of names, such as [{classes!r}], or a '
                             'file with a name a line')
        return Path(classes).read_text(encoding='utf-8').splitlines()
    if classes is None and 'Panoptic' not in str(dataset.get('type')):
        try:
            kind = DATASETS.get(f'{scope}.{dataset.get("type")}'.replace(f'{scope}.{scope}.', f'{scope}.'))
        except (ImportError, KeyError):
            kind = None
        classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
    return None if classes is None else list(classes)


def _check_coco(cfg: Config, part: str, dataset: ConfigDict, classes: list[str]) -> int | None:
    file = os.path.join(dataset.get('data_root') or '', dataset['ann_file'])
    for evaluator in _evaluators(cfg, part):
        if part != 'train' and evaluator['ann_file'] and os.path.abspath(evaluator['ann_file']) != os.path.abspath(file):
            raise ValueError(f'{part}_evaluator.ann_file={show(evaluator["ann_file"])}, and {part}_dataloader.dataset reads {show(file)}: '
                             'expected the same file')
    if not os.path.isfile(file) or os.path.getsize(file) > LARGEST:
        return None
    try:
        content = json.loads(Path(file).read_bytes())
        names = [category['name'] for category in content['categories']]
        images = [image['file_name'] for image in content['images']]
        without_mask = any(not annotation.get('segmentation') for annotation in content['annotations'])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f'{file} is no COCO file ({type(e).__name__}: {e}): expected JSON with images, annotations and categories') from e
    if lacking := [name for name in classes if name not in names]:
        raise ValueError(f'{file} has the categories {show(names)}, without {show(lacking)}: names in classes are those of the file, '
                         'letter by letter')
    if (order := [name for name in names if name in classes]) != classes:
        raise ValueError(f'{file} has the categories in the order {show(order)}, by which MMDetection numbers them, and classes are '
                         f'{show(classes)}: expected the same order, in the files of all splits')
    if without_mask and _with_masks(dataset):
        raise ValueError(f'{file} has objects without a segmentation, and the config trains masks; take one without, such as '
                         'detection/retinanet_svit_small_1x_coco')
    folder = os.path.join(dataset.get('data_root') or '', (dataset.get('data_prefix') or {}).get('img') or '')
    if images and not os.path.isfile(os.path.join(folder, images[0])):
        raise ValueError(f'{file} names {show(images[0])}, which is not in {show(folder)}; expected that images= (or data_prefix.img) and '
                         'file_name make a path together')
    return len(images)


def _check_maps(dataset: ConfigDict, classes: list[str], where: str) -> int | None:
    root, prefix = dataset.get('data_root') or '', dataset['data_prefix']
    images, maps = (Path(root, prefix.get(key) or '') for key in ('img_path', 'seg_map_path'))
    if not images.is_dir():
        return None
    suffix, map_suffix = dataset.get('img_suffix', '.jpg'), dataset.get('seg_map_suffix', '.png')
    pictures = sorted(path for path in images.rglob(f'*{suffix}') if path.is_file())
    if not pictures:
        found = sorted({path.suffix for path in images.rglob('*') if path.is_file()})
        raise ValueError(f'{images} holds no file that ends in {suffix} (it has {", ".join(found) or "none"}); set image_suffix of '
                         'own_data, or img_suffix of the data set')
    for picture in islice(pictures, 10):  # a look at the first ones finds what is wrong with all
        file = maps / f'{str(picture.relative_to(images)).removesuffix(suffix)}{map_suffix}'
        if not file.is_file():
            raise ValueError(f'{picture} has no label map {file}')
        try:
            with Image.open(file) as opened:
                mode, values = opened.mode, np.unique(np.asarray(opened))
        except OSError as e:
            raise ValueError(f'{file} cannot be read as a label map ({e})') from e
        if mode not in ('L', 'P', 'I;16', 'I'):
            raise ValueError(f'{file} is a picture of mode {mode}: expected a label map, one number a pixel (L or P), 0 for {classes[0]!r}')
        first = 1 if dataset.get('reduce_zero_label') else 0
        if len(wrong := values[(values >= first + len(classes)) & (values != 255)]):
            raise ValueError(f'{file} holds the value {wrong[0]}, and {where} has {len(classes)} classes: expected '
                             f'{first} to {first + len(classes) - 1}, and 255 for pixels that do not count')
    return len(pictures)


def check_root(cfg: Config, part: str) -> None:
    """Raise ValueError where the folder of a data set, of 'train', 'val' or 'test', is not there, with what to do."""
    dataset = _innermost(cfg, part)
    root = dataset.get('data_root') or dataset.get('root')
    if not isinstance(root, str) or not root or os.path.isdir(root):
        return
    advice = f'set {part}_dataloader.dataset.{"data_root" if dataset.get("data_root") else "root"}, or make a link to where your data are'
    scenes = os.environ.get('DIGIT_SCENES') or 'data/digit_scenes'
    if root.startswith(f'{scenes}/'):
        advice = f'python -m vitzoo.datasets.digit_scenes --out {scenes} makes the digit scenes of this config'
    raise ValueError(f'{root}: no such folder, from which the config reads its data; {advice}')


def _check_folders(cfg: Config) -> None:
    model, first = cfg.model, None
    for part in PARTS:
        dataset = (cfg.get(f'{part}_dataloader') or {}).get('dataset') or {}
        root = dataset.get('root')
        if dataset.get('type') != 'vitzoo.ImageFolder' or not root or not os.path.isdir(root):
            continue
        names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        first = first or (names, root)
        if names != first[0]:
            different = sorted({*names} ^ {*first[0]})
            raise ValueError(f'{root} and {first[1]} do not have the same folders: {show(different)} in one of them alone; expected '
                             'one for each class in both')
        if model.get('num_classes') is None:
            model.num_classes = len(names)
        if model.num_classes != len(names):
            raise ValueError(f'model.num_classes={model.num_classes}, and {root} has {len(names)} folders: expected one folder a class; '
                             f'--cfg-options model.num_classes={len(names)} fits the model to them')
