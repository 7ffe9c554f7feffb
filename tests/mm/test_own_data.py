"""Own data in configs: put in once, found everywhere, and what does not agree is said before training starts."""
import json
import re
from contextlib import nullcontext

import pytest
import shapes
import torch
from PIL import Image
from samples import build

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.config import Config  # noqa: E402

from vitzoo.mm import config_path, set_data, setup  # noqa: E402
from vitzoo.mm.config import CONFIGS  # noqa: E402

DETECTION, SEGMENTATION = 'detection/mask-rcnn_svit_micro_digits', 'segmentation/fpn_svit_micro_digits'


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return shapes.draw(tmp_path_factory.mktemp('shapes'))


def own(root, name, **more):
    seg = name.startswith('segmentation')
    part = dict(images=str(root / 'images'), annotations=str(root / ('maps' if seg else 'objects.json')))
    return dict(classes=['background', *shapes.CLASSES] if seg else shapes.CLASSES, train=part, val=part, **more)


def config_of_a_user(folder, name, **content):
    file = folder / 'mine.py'
    file.write_text(f'_base_ = {str(config_path(name))!r}\n' + ''.join(f'{key} = {value!r}\n' for key, value in content.items()))
    return file


def counts(part):
    """Every number of classes in a model but the one of proposals and losses."""
    if isinstance(part, dict):
        own = [part['num_classes']] if 'num_classes' in part else []
        return own + [n for key, value in part.items() if key != 'rpn_head' for n in counts(value)]
    return [n for v in part for n in counts(v)] if isinstance(part, list | tuple) else []


@pytest.mark.parametrize('name', [
    DETECTION, 'detection/cascade-mask-rcnn_svit_small_3x_coco', 'detection/dino_svit_small_12e_coco',
    'detection/retinanet_svit_small_1x_coco', SEGMENTATION, 'segmentation/upernet_svit_small_160k_ade20k',
    'segmentation/mask2former_svit_small_160k_ade20k'])
def test_a_short_config_over_any_of_ours(name, root, tmp_path):
    """Classes and paths in one place reach each data set, evaluator and head."""
    cfg = setup(config_of_a_user(tmp_path, name, own_data=own(root, name)))
    classes = own(root, name)['classes']
    assert {*counts(cfg.model)} == {len(classes)} and 'own_data' not in cfg
    for part in 'train', 'val', 'test':
        dataset = cfg[f'{part}_dataloader'].dataset
        assert dataset.metainfo.classes == classes and dataset.pipeline
        if cfg.default_scope == 'mmdet':
            assert (dataset.ann_file, dataset.data_prefix.img) == (str(root / 'objects.json'), str(root / 'images'))
            assert part == 'train' or cfg[f'{part}_evaluator'].ann_file == str(root / 'objects.json')
        else:
            assert not dataset.reduce_zero_label and not any(step.get('reduce_zero_label') for step in dataset.pipeline)
    weights = cfg.model.get('decode_head', {}).get('loss_cls', {}).get('class_weight')
    assert weights is None or weights == [1.0] * len(classes) + [0.1]


@pytest.mark.parametrize('name', [
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'])
def test_configs_of_the_libraries(name, root):
    from mmengine.hub import get_config
    ours = DETECTION if name.startswith('mmdet') else SEGMENTATION
    cfg = setup(set_data(get_config(name), **own(root, ours)))
    assert {*counts(cfg.model)} == {len(own(root, ours)['classes'])}
    assert {cfg[f'{part}_dataloader'].dataset.type for part in ('train', 'val', 'test')} <= {'CocoDataset', 'BaseSegDataset'}


def test_the_photographs_of_the_page(root, tmp_path, monkeypatch):
    """With names and paths in the place of the dots, that config has nothing to be refused or warned of."""
    said = []
    monkeypatch.setattr('vitzoo.mm.schedules.print_log', lambda text, *_: said.append(text))
    text = re.search(r'```py\n(# photos_detector.py.*?)```', shapes.PAGE.read_text(encoding='utf-8'), re.DOTALL)[1]
    for name, dots, value in (('classes', '[...]', shapes.CLASSES), ('images', '...', str(root / 'images')),
                              ('annotations', '...', str(root / 'objects.json'))):
        text = text.replace(f'{name}={dots}', f'{name}={value!r}')
    (tmp_path / 'photos.py').write_text(text.replace("'configs/", f"'{CONFIGS}/"))
    cfg = setup(tmp_path / 'photos.py')
    assert cfg.model.bbox_head.num_classes == 2 and cfg.train_cfg.max_epochs == 60 and len(cfg.param_scheduler) == 2 and not said


@pytest.mark.parametrize('name', [DETECTION, SEGMENTATION])
def test_data_loads(name, root, tmp_path):
    """The data sets find each picture and object, of the classes that were named; validation and test may differ."""
    from mmengine.registry import DATASETS
    other = shapes.draw(tmp_path / 'other', num=4, seed=1)
    data = own(root, name, test=own(other, name)['train'])
    cfg = setup(config_of_a_user(tmp_path, name, own_data=data))
    build(cfg)
    val, test = (DATASETS.build(cfg[f'{part}_dataloader'].dataset) for part in ('val', 'test'))
    assert (len(val), len(test)) == (10, 4) and list(val.metainfo['classes']) == data['classes']
    sample = val[0]['data_samples']
    if name == DETECTION:
        assert sorted(sample.gt_instances.labels.tolist()) == [0, 1]
        assert cfg.test_evaluator.ann_file == str(other / 'objects.json') != cfg.val_evaluator.ann_file
    else:
        assert sample.gt_sem_seg.data.unique().tolist() == [0, 1, 2]


def test_options_of_the_command_line_come_first(root, tmp_path):
    file = config_of_a_user(tmp_path, DETECTION, own_data=own(root, DETECTION))
    cfg = setup(file, cfg_options={'own_data.classes': ['box'], 'train_dataloader.batch_size': 3})
    assert {*counts(cfg.model)} == {1} and cfg.train_dataloader.batch_size == 3
    cfg.dump(tmp_path / 'dump.py')  # what training leaves in its folder
    assert setup(tmp_path / 'dump.py').model == cfg.model


DIFFERENT = {
    'detection': (r'model.roi_head.bbox_head.num_classes=10, and train_dataloader.dataset has 2 classes', DETECTION,
                  {'train_dataloader.dataset.metainfo.classes': ['circle', 'box']}),
    'segmentation': (r'model.decode_head.num_classes=11, and .* has 3 classes', SEGMENTATION,
                     {'train_dataloader.dataset.metainfo.classes': ['a', 'b', 'c']}),
    'heads alone': (r'num_classes=2, and train_dataloader.dataset has 80 classes.*own_data', 'detection/retinanet_svit_small_1x_coco',
                    {'model.bbox_head.num_classes': 2}),
    'validation': (r'val_dataloader.dataset has the classes .*same order', DETECTION,
                   {'val_dataloader.dataset.metainfo.classes': [f'digit {d}' for d in range(9, -1, -1)]}),
    'a comma': (r"is a string: expected a list of names, such as \['circle'\]", DETECTION,
                {'train_dataloader.dataset.metainfo.classes': 'circle'}),
    'evaluator': (r'val_evaluator.ann_file=.*and val_dataloader.dataset reads .*expected the same file', DETECTION,
                  {'val_evaluator.ann_file': 'other.json'}),
}


@pytest.mark.parametrize('case', DIFFERENT)
def test_what_does_not_agree_is_refused(case):
    words, name, options = DIFFERENT[case]
    with pytest.raises(ValueError, match=words):
        setup(config_path(name), cfg_options=options)


WRONG = {
    'no file of that kind': (SEGMENTATION, dict(image_suffix='.png'), r'holds no file that ends in .png \(it has .jpg\); set image_suffix'),
    'too few classes': (SEGMENTATION, dict(classes=['background', 'circle']),
                        r'holds the value 2, and .*has 2 classes: expected 0 to 1, and 255'),
    'another spelling': (DETECTION, dict(classes=['circle', 'Box']), r"has the categories \['circle', 'box'\], without \['Box'\]"),
    'another order': (DETECTION, dict(classes=['box', 'circle']), r"in the order \['circle', 'box'\], by which MMDetection numbers them"),
    'a name that is none': (DETECTION, dict(root='data'), r"own_data: .*'root'.*expected classes, train, val and"),
    'twice': (DETECTION, dict(classes=['box', 'box']), 'expected different names'),
    'a string': (DETECTION, dict(classes='box'), "classes='box': expected"),
    'no folder': (DETECTION, dict(train=dict(annotations='x.json')),
                  r'own_data.train=.*expected dict\(images=FOLDER, annotations=COCO FILE'),
    'a classifier': ('classification/svit_micro_digits', {}, 'own_data is for detectors and segmentors'),
}


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_with_own_data(case, root, tmp_path):
    name, change, words = WRONG[case]
    with pytest.raises(ValueError, match=words):
        setup(config_of_a_user(tmp_path, name, own_data={**own(root, name), **change}))


def test_files_that_are_wrong(tmp_path):
    root = shapes.draw(tmp_path, num=2)
    det, seg = (config_path(name) for name in (DETECTION, SEGMENTATION))
    content = json.loads((root / 'objects.json').read_text())

    def refused(path, name, words):
        with pytest.raises(ValueError, match=words):
            set_data_and_check(path, name)

    def set_data_and_check(path, name):
        return setup(set_data(Config.fromfile(path), **own(root, name)))

    (root / 'objects.json').write_text(json.dumps({**content, 'annotations': [
        {key: value for key, value in annotation.items() if key != 'segmentation'} for annotation in content['annotations']]}))
    refused(det, DETECTION, 'objects without a segmentation.*retinanet')
    set_data_and_check(config_path('detection/retinanet_svit_micro_digits'), DETECTION)
    (root / 'objects.json').write_text(json.dumps({**content, 'images': [dict(image, file_name='x/0.jpg') for image in content['images']]}))
    refused(det, DETECTION, r"names 'x/0.jpg', which is not in .*images")
    for text in '[1, 2]', '{', json.dumps({**content, 'annotations': [1]}):
        (root / 'objects.json').write_text(text)
        refused(det, DETECTION, 'objects.json is no COCO file')

    with Image.open(root / 'maps' / '0.png') as labels:
        labels.convert('RGB').save(root / 'maps' / '0.png')
    refused(seg, SEGMENTATION, 'is a picture of mode RGB: expected a label map')
    (root / 'maps' / '0.png').write_bytes(b'x')
    refused(seg, SEGMENTATION, '0.png cannot be read as a label map')
    (root / 'maps' / '0.png').unlink()
    refused(seg, SEGMENTATION, r'0.jpg has no label map .*0.png')


def test_warm_up_of_a_recipe_for_coco_is_too_long_for_ten_pictures(root, monkeypatch):
    said = []
    monkeypatch.setattr('vitzoo.mm.schedules.print_log', lambda text, *_: said.append(text))
    name = 'detection/retinanet_svit_small_1x_coco'
    setup(set_data(Config.fromfile(config_path(name)), **own(root, name)))
    assert len(said) == 1 and 'takes 500 iterations and training has 60' in said[0] and 'param_scheduler.0.end=6 ' in said[0]


@pytest.mark.parametrize('kind, shifted, refused', [
    ('BaseSegDataset', False, 2), ('BaseSegDataset', True, None), ('ADE20KDataset', False, None)])
def test_maps_that_count_from_one(root, kind, shifted, refused):
    """0 is then for pixels that do not count; kinds of data set with files of their own are left to them."""
    cfg = set_data(Config.fromfile(config_path(SEGMENTATION)), **own(root, SEGMENTATION))
    for part in 'train', 'val', 'test':
        cfg[f'{part}_dataloader'].dataset.update(dict(type=kind, reduce_zero_label=shifted, metainfo=dict(classes=['circle', 'box'])))
    cfg.model.decode_head.num_classes = 2
    with pytest.raises(ValueError, match=f'holds the value {refused}') if refused else nullcontext():
        setup(cfg)


def test_a_head_that_counts_in_another_way(root):
    cfg = Config.fromfile(config_path(DETECTION))
    cfg.model = dict(type='Mask2Former', panoptic_head=dict(num_things_classes=80, num_stuff_classes=0))
    with pytest.raises(ValueError, match='no part of the Mask2Former has a num_classes'):
        set_data(cfg, **own(root, DETECTION))


def test_what_is_not_there_is_not_read():
    """Whoever predicts or exports has no data."""
    absent = dict(images='gone/images', annotations='gone/objects.json')
    cfg = set_data(Config.fromfile(config_path(DETECTION)), classes=['x'], train=absent, val=absent)
    assert {*counts(setup(cfg).model)} == {1}
    with torch.device('meta'):
        build(cfg)
