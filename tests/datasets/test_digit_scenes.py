"""Digit scenes: what is in a scene, what is on disk, and what happens when something goes wrong in between."""
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import time

import numpy as np
import pytest

pytest.importorskip('sklearn')
Image = pytest.importorskip('PIL.Image')

from vitzoo.datasets import digit_scenes as ds  # noqa: E402

STANDARD = ds.PRESETS['standard']
PILE = ds.resolve_preset('standard', height=60, width=60, min_side=60, max_side=60)  # every digit in the same place
FEW = dict(det_train=3, seg_train=2, cls_train=10, val=10, test=10)

# Over pixels, labels, boxes and masks (`fingerprint`). A change of these numbers is a change of the data set: raise `VERSION` with it,
# and measure again what was published on it.
FROZEN = {
    'train': 'c7e7636db5b713053078f3e9108aeddc259a788989fa017d4572ea0faa1f2f83',
    'val': '9a5f1c75f8776ea9d45e3a958b402514787b1e43e421180bb8ce5afb899b0a86',
    'test': '0517934ee6f35b7a1594c082c748ef1a5a7e3a33e5aaa517862809fa558acf8e',
}
FROZEN_WHOLE = '9feacb461c1ef0f7f87bd243cb91775e49a1a61de94ef2758cb816792a47381c'
FROZEN_TEST = '44d12b7d236f8077110942acc3ac7f605341b45f825dccc8ad1da6892712efd9'
FROZEN_HARD = '36b5837a5305d649c8269ff21fddeab646b671543575bda256d1514cca208b7c'


def scenes(preset=STANDARD, seed=0, split='train', num=12):
    return [ds.make_scene(preset, seed, split, i) for i in range(num)]


@pytest.fixture(scope='module')
def some():
    return scenes(num=60)


@pytest.fixture(scope='module')
def micro(tmp_path_factory):
    return ds.build(tmp_path_factory.mktemp('digits'), 'micro', progress=False)


def snapshot(root):
    """Every file below a folder with its bytes and the time of its last change."""
    return {str(p.relative_to(root)): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(root.rglob('*')) if p.is_file()}


# ---- scenes ----

@pytest.mark.parametrize('split', ds.SPLITS)
def test_standard_is_frozen(split):
    assert ds.fingerprint(scenes(split=split)) == FROZEN[split]


def test_standard_has_the_published_numbers():
    expected = dict(height=128, width=160, min_digits=2, max_digits=5, min_side=28, max_side=60, field_height=9, field_width=11, noise=0.03,
                    colour_distance=0.15, ink=0.4, min_visible=0.3, det_train=400, seg_train=3000, val=100, test=100)
    assert {name: getattr(STANDARD, name) for name in expected} == expected


def test_hard_has_colours_over_the_whole_range():
    some = scenes(ds.PRESETS['hard'])
    assert ds.fingerprint(some) == FROZEN_HARD
    colours = np.stack([scene.background for scene in some])
    assert colours.min() == 0 and colours.max() == 255
    assert ds.resolve_preset('hard', field_min=STANDARD.field_min, field_max=STANDARD.field_max) == STANDARD


def test_the_seed_decides():
    first = ds.fingerprint(scenes(seed=3, num=4))
    assert ds.fingerprint(scenes(seed=3, num=4)) == first
    assert ds.fingerprint(scenes(seed=4, num=4)) != first
    assert ds.fingerprint(scenes(seed=3, num=4, split='val')) != first


def test_source_digits_are_disjoint_and_stratified():
    images, labels, split = ds.source_digits()
    train, val, test = (np.concatenate(split[name]) for name in ds.SPLITS)
    assert not (set(train) & set(val) or set(train) & set(test) or set(val) & set(test))
    assert len(train) + len(set(val)) + len(test) == len(labels) == 1797 and len(test) == len(set(test)) == 145
    for label in range(10):
        assert {*labels[split['train'][label]], *labels[split['val'][label]], *labels[split['test'][label]]} == {label}
        assert len(split['val'][label]) == (labels == label).sum() // 5 and len(split['test'][label]) >= 10
    # nor is a digit of one split the same picture as one of another
    pictures = [{images[i].tobytes() for i in indices} for indices in (train, val, test)]
    assert len(set.union(*pictures)) == sum(map(len, pictures))


@pytest.mark.parametrize('split', ds.SPLITS)
def test_scenes_use_digits_of_their_split(split):
    _, labels, sources = ds.source_digits()
    for scene in scenes(split=split):
        assert set(scene.sources) <= set(np.concatenate(sources[split]))
        assert (labels[scene.sources] == scene.labels).all()


def test_ten_scenes_show_all_classes(some):
    for start in 0, 10, 20:
        assert {int(scene.labels[-1]) for scene in some[start:start + 10]} == set(range(10))


def test_boxes_are_the_extents_of_the_visible_masks(some):
    for scene in some:
        for mask, box in zip(scene.masks, scene.boxes, strict=True):
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]
            assert max(box[2:]) <= STANDARD.max_side


def test_the_semantic_map_is_the_union_of_the_masks(some):
    for scene in some:
        assert scene.masks.sum(0).max() == 1  # disjoint
        assert ((scene.semantic > 0) == scene.masks.any(0)).all()
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            assert (scene.semantic[mask] == label + 1).all()


def test_numbers_of_digits_and_their_visible_share(some):
    counts = [len(scene.labels) for scene in some]
    assert 1 <= min(counts) and max(counts) == STANDARD.max_digits
    visible = np.concatenate([scene.visible for scene in some])
    assert visible.min() >= STANDARD.min_visible and visible.max() == 1 and (visible < 1).mean() > 0.1
    assert all(scene.visible[-1] == 1 for scene in some)


def test_later_digits_occlude_earlier_ones():
    piles = [scene for scene in scenes(PILE, num=30) if len(scene.labels) > 1]
    assert len(piles) > 10
    for scene in piles:
        inner = scene.masks[-1].copy()  # without its edge, where colours mix
        for shift, axis in (1, 0), (-1, 0), (1, 1), (-1, 1), (3, 0), (-3, 0), (3, 1), (-3, 1):
            inner &= np.roll(scene.masks[-1], shift, axis)
        difference = np.abs(scene.image.astype(int) - scene.colours[-1]).max(-1)
        assert np.median(difference[inner]) <= 1, 'the last digit shows its own colour'


def test_a_digit_that_is_hardly_visible_is_neither_drawn_nor_hides_anything():
    kept = scenes(ds.resolve_preset(PILE, min_visible=1.0), num=20)
    assert all(len(scene.labels) == 1 for scene in kept)
    for scene in kept:
        # far from the one digit that is left, nothing but background and its noise is seen
        near = sum(np.roll(scene.masks[0], (i, j), (0, 1)) for i in range(-9, 10, 3) for j in range(-9, 10, 3)) > 0
        difference = scene.image.astype(int) - scene.background
        inside = scene.background[~near]
        free = (inside > 40) & (inside < 215)  # not clipped
        assert abs(difference[~near][free]).max() < 5 * 0.03 * 255


def test_noise_has_the_standard_deviation_of_the_preset():
    noise = []
    for scene in scenes(ds.resolve_preset('standard', min_digits=1, max_digits=1), num=4):
        x, y, w, h = scene.boxes[0]
        free = np.ones(scene.background.shape[:2], bool)
        free[max(y - 12, 0):y + h + 12, max(x - 12, 0):x + w + 12] = False
        values = scene.background[free]
        noise.append((scene.image[free] / 255 - values / 255)[(values > 40) & (values < 215)])
    noise = np.concatenate(noise)
    assert abs(noise.std() - 0.03) < 0.0005 and abs(noise.mean()) < 0.0005


def test_the_field_keeps_its_range():
    for scene in scenes(ds.resolve_preset('standard', field_min=0.3, field_max=0.5), num=3):
        assert 0.25 * 255 < scene.background.min() and scene.background.max() < 0.55 * 255  # bicubic overshoots a little


def test_digits_keep_their_colour_distance(some):
    for scene in some:
        for colour, mask in zip(scene.colours, scene.masks, strict=True):
            behind = scene.background[mask].astype(float)
            assert np.linalg.norm(behind - colour, axis=1).min() / 255 >= STANDARD.colour_distance
        whole = scene.visible == 1
        for colour, mask in zip(scene.colours[whole], scene.masks[whole], strict=True):
            assert np.linalg.norm(scene.background[mask].astype(float).mean(0) - colour) / 255 >= STANDARD.colour_distance


def test_a_colour_that_is_far_enough_can_be_missing():
    with pytest.raises(ValueError, match='smaller colour_distance'):
        everywhere = np.stack(np.meshgrid(*[np.arange(0, 256, 51)] * 3), -1).reshape(-1, 3)
        ds.scenes._far_colour(lambda low, high, size: np.random.RandomState(0).randint(low, high + 1, size), everywhere, 0.3)


def test_upsampling_agrees_with_an_independent_bicubic():
    torch = pytest.importorskip('torch')
    field = np.random.RandomState(0).rand(9, 11)
    ours = ds.scenes._bicubic(9, 128) @ field @ ds.scenes._bicubic(11, 160).T / 1024 ** 2
    # PIL has the same cubic and another border; torch has the same border and another cubic (a = -0.75), which stays near
    theirs = np.asarray(Image.fromarray(field.astype(np.float32)).resize((160, 128), Image.Resampling.BICUBIC))
    assert np.abs(ours - theirs)[22:-22, 22:-22].max() < 2e-3
    other = torch.nn.functional.interpolate(torch.tensor(field)[None, None], (128, 160), mode='bicubic')[0, 0].numpy()
    assert np.abs(ours - other).max() < 0.1
    assert np.abs(ds.scenes._bicubic(8, 61).sum(1) - 1024).max() <= 2


# ---- files ----

def test_detection_through_pycocotools(micro):
    COCO = pytest.importorskip('pycocotools.coco').COCO
    sources = {}
    for split, num in ('train', 24), ('val', 12), ('test', 12):
        coco = COCO(micro.annotations(split))
        assert len(coco.imgs) == num == len(os.listdir(micro.images(split)))
        assert [coco.cats[i + 1]['name'] for i in range(10)] == list(ds.CLASSES)
        for index, (image_id, image) in enumerate(sorted(coco.imgs.items())):
            scene = ds.make_scene(ds.PRESETS['micro'], 0, split, index)
            assert (np.asarray(Image.open(micro.images(split) / image['file_name'])) == scene.image).all()
            objects = coco.loadAnns(coco.getAnnIds(image_id))
            assert [a['category_id'] - 1 for a in objects] == scene.labels.tolist()
            assert [a['bbox'] for a in objects] == scene.boxes.tolist()
            for a, mask in zip(objects, scene.masks, strict=True):
                assert (coco.annToMask(a) == mask).all() and a['area'] == mask.sum() and a['iscrowd'] == 0
        sources[split] = {a['source'] for a in coco.anns.values()}
        assert min(coco.anns) == 1
    assert len(set.union(*sources.values())) == sum(map(len, sources.values()))


def test_detection_through_pycocotools_evaluation(micro):
    """The ground truth offered as a prediction scores 1."""
    COCO, COCOeval = pytest.importorskip('pycocotools.coco').COCO, pytest.importorskip('pycocotools.cocoeval').COCOeval
    truth = COCO(micro.annotations('val'))
    api = pytest.importorskip('pycocotools.mask')
    found = [{**a, 'score': 1.0, 'segmentation': api.frPyObjects(a['segmentation'], 128, 160)} for a in truth.anns.values()]
    for kind in 'bbox', 'segm':
        evaluation = COCOeval(truth, truth.loadRes([dict(a) for a in found]), kind)
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)


def test_detection_through_mmdet(micro):
    pytest.importorskip('mmdet')
    pytest.importorskip('vitzoo.mm')
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets import CocoDataset
    from mmdet.datasets.transforms import LoadAnnotations
    from mmengine.registry import init_default_scope
    init_default_scope('mmdet')
    dataset = CocoDataset(
        ann_file=str(micro.annotations('val')), data_prefix=dict(img=str(micro.images('val'))), metainfo=dict(classes=ds.CLASSES),
        filter_cfg=dict(filter_empty_gt=True, min_size=32), pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True)])
    assert len(dataset) == 12
    scene = ds.make_scene(ds.PRESETS['micro'], 0, 'val', 5)
    sample = dataset[5]
    assert (sample['img'][..., ::-1] == scene.image).all() and (sample['gt_bboxes_labels'] == scene.labels).all()
    assert (sample['gt_masks'].masks == scene.masks).all() and not sample['gt_ignore_flags'].any()
    x, y, w, h = scene.boxes.T
    assert (sample['gt_bboxes'].tensor.numpy() == np.stack((x, y, x + w, y + h), 1)).all()


def test_segmentation_through_mmseg(micro):
    pytest.importorskip('mmseg')
    pytest.importorskip('vitzoo.mm')
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations
    dataset = BaseSegDataset(
        data_root=str(micro.root / 'segmentation'), data_prefix=dict(img_path='img_dir/train', seg_map_path='ann_dir/train'),
        img_suffix=ds.IMG_SUFFIX, seg_map_suffix=ds.SEG_MAP_SUFFIX, reduce_zero_label=False,
        metainfo=dict(classes=ds.SEG_CLASSES, palette=ds.SEG_PALETTE), pipeline=[LoadAnnotations()])
    assert len(dataset) == 24
    assert (dataset[7]['gt_seg_map'] == ds.make_scene(ds.PRESETS['micro'], 0, 'train', 7).semantic).all()


def test_segmentation_files(micro):
    for split, num in ('train', 24), ('val', 12), ('test', 12):
        names = sorted(os.listdir(micro.seg_maps(split)))
        assert names == sorted(os.listdir(micro.seg_images(split))) == [f'{i:06d}.png' for i in range(num)]
        for index, name in enumerate(names):
            scene = ds.make_scene(ds.PRESETS['micro'], 0, split, index)
            with Image.open(micro.seg_maps(split) / name) as image:
                assert image.mode == 'L' and (np.asarray(image) == scene.semantic).all()
            assert (np.asarray(Image.open(micro.seg_images(split) / name)) == scene.image).all()
    assert len(ds.SEG_CLASSES) == len(ds.SEG_PALETTE) == len({tuple(colour) for colour in ds.SEG_PALETTE}) == 11


def test_classification_through_torchvision(micro):
    ImageFolder = pytest.importorskip('torchvision.datasets').ImageFolder
    for split in ds.SPLITS:
        folder = ImageFolder(str(micro.crops(split)))
        assert folder.classes == [str(d) for d in range(10)]
        assert len(folder) == micro.manifest('classification')['objects'][split]
        for path, label in folder.samples:
            index, i = map(int, os.path.basename(path)[:-4].split('_'))
            scene = ds.make_scene(ds.PRESETS['micro'], 0, split, index)
            assert scene.labels[i] == label and scene.visible[i] >= STANDARD.crop_visible
            picture = np.asarray(Image.open(path))
            assert picture.shape[0] == picture.shape[1] >= scene.boxes[i][2:].max()


def test_crops_hold_the_whole_visible_digit(some):
    for scene in some[:20]:
        marked = ds.Scene(**{**vars(scene), 'image': np.repeat(scene.masks[-1][..., None], 3, -1)})
        assert ds.crop(marked, len(scene.labels) - 1, 0.15)[..., 0].sum() == scene.masks[-1].sum()


def test_complete_folders_are_reused(micro):
    before = snapshot(micro.root)
    again = ds.build(micro.root, 'micro', progress=False)
    assert set(again.status.values()) == {'reused'} and snapshot(micro.root) == before


def test_parts_are_independent(tmp_path):
    one = ds.build(tmp_path, 'micro', parts=['detection'], progress=False, **FEW)
    assert sorted(os.listdir(tmp_path)) == ['detection'] and list(one.status) == ['detection']
    more = ds.build(tmp_path, 'micro', parts=('segmentation', 'detection'), progress=False, **FEW)
    assert more.status['detection'] == 'reused' and more.status['segmentation'] != 'reused'
    assert (len(os.listdir(more.images('train'))), len(os.listdir(more.seg_images('train')))) == (3, 2)


def damage_truncated(folder):
    path = folder / 'train' / '000001.png'
    path.write_bytes(path.read_bytes()[:-7])


def damage_one_bit(folder):
    path = folder / 'annotations' / 'det_val.json'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    'truncated image': damage_truncated,
    'one bit of the annotations': damage_one_bit,
    'missing image': lambda folder: (folder / 'val' / '000000.png').unlink(),
    'missing annotations': lambda folder: (folder / 'annotations' / 'det_train.json').unlink(),
    'empty image': lambda folder: (folder / 'val' / '000003.png').write_bytes(b''),
    'one image too many': lambda folder: (folder / 'train' / '000077.png').write_bytes(b''),
    'missing manifest': lambda folder: (folder / ds.MANIFEST).unlink(),
    'truncated manifest': lambda folder: (folder / ds.MANIFEST).write_text('{"name": '),
    'foreign manifest': lambda folder: (folder / ds.MANIFEST).write_text('[]'),
    'manifest without objects': lambda folder: change_manifest(folder, lambda m: m.pop('objects')),
    'manifest with another fingerprint': lambda folder: change_manifest(folder, lambda m: m.update(fingerprint='0' * 64)),
    'manifest with other files': lambda folder: change_manifest(folder, lambda m: m.update(files={os.devnull: [0, 0]})),
    'manifest of a folder': lambda folder: ((folder / ds.MANIFEST).unlink(), (folder / ds.MANIFEST).mkdir()),
    'manifest ten thousand deep': lambda folder: (folder / ds.MANIFEST).write_text('[' * 10_000 + ']' * 10_000),
    'manifest that is no text': lambda folder: (folder / ds.MANIFEST).write_bytes(b'\xff\xfe'),
    'folder in the place of an image': lambda folder: ((folder / 'val' / '000000.png').unlink(), (folder / 'val' / '000000.png').mkdir()),
}


def change_manifest(folder, change):
    manifest = json.loads((folder / ds.MANIFEST).read_text())
    change(manifest)
    (folder / ds.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize('damage', DAMAGE)
def test_damaged_folders_are_rebuilt(tmp_path, damage):
    args = dict(preset='micro', parts=['detection'], progress=False, **FEW)
    data = ds.build(tmp_path, **args)
    before = {name: content for name, (content, _) in snapshot(tmp_path).items()}
    DAMAGE[damage](data.root / 'detection')
    assert ds.build(tmp_path, **args).status['detection'] != 'reused'
    assert {name: content for name, (content, _) in snapshot(tmp_path).items()} == before
    assert ds.build(tmp_path, **args).status['detection'] == 'reused'
    assert os.listdir(tmp_path) == ['detection']


@pytest.mark.parametrize('change', [dict(seed=1), dict(noise=0.05), dict(det_train=4)], ids=str)
def test_another_specification_replaces(tmp_path, change):
    args = dict(preset='micro', parts=['detection'], progress=False, **FEW)
    first = ds.build(tmp_path, **args).manifest('detection')['fingerprint']
    data = ds.build(tmp_path, **{**args, **change})
    assert data.status['detection'] == 'built (another preset, seed or version)' and data.manifest('detection')['fingerprint'] != first


def test_a_folder_without_the_test_part_is_replaced(tmp_path, micro):
    """As the first version wrote them."""
    shutil.copytree(micro.root / 'detection', tmp_path / 'detection')
    folder = tmp_path / 'detection'
    shutil.rmtree(folder / 'test')
    (folder / 'annotations' / 'det_test.json').unlink()
    manifest = json.loads((folder / ds.MANIFEST).read_text())
    del manifest['checksum'], manifest['objects']['test'], manifest['preset']['test']
    manifest.update(version=1, files={name: about for name, about in manifest['files'].items() if 'test' not in name})
    (folder / ds.MANIFEST).write_text(json.dumps({**manifest, 'checksum': ds.parts._checksum(manifest)}))
    assert ds.build(tmp_path, 'micro', parts=['detection'], progress=False).status['detection'] == \
        'built (another preset, seed or version)'


def test_foreign_files_are_never_deleted(tmp_path):
    args = dict(preset='micro', parts=['detection'], progress=False, **FEW)
    data = ds.build(tmp_path, **args)
    note = data.root / 'detection' / 'train' / 'note.txt'
    note.write_text('mine')
    assert ds.build(tmp_path, **args).status['detection'] == 'reused'
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match='note.txt'):
        ds.build(tmp_path, **args, seed=1)
    assert snapshot(tmp_path) == before
    (tmp_path / 'segmentation').write_text('a file')
    with pytest.raises(ValueError, match='not an ordinary folder'):
        ds.build(tmp_path, 'micro', parts=['segmentation'], progress=False)


@pytest.mark.parametrize('part, name', [
    ('classification', 'train/3/mine.JPG'), ('classification', 'val/cat/x.png'), ('segmentation', 'img_dir/train/mine.png')])
def test_foreign_pictures_among_those_that_are_scanned(part, name, tmp_path):
    args = dict(preset='micro', parts=[part], progress=False, **FEW)
    path = ds.build(tmp_path, **args).root / part / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'mine')
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=path.name):
        ds.build(tmp_path, **args)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_build_leaves_what_was_there(tmp_path, monkeypatch, error):
    args = dict(preset='micro', progress=False, **FEW)
    original = ds.make_scene

    def interrupted(preset, seed, split, index):
        if split == 'val' and index == 5:
            raise error('stop')
        return original(preset, seed, split, index)

    monkeypatch.setitem(ds.build.__globals__, 'make_scene', interrupted)
    with pytest.raises(error):
        ds.build(tmp_path, **args)
    assert os.listdir(tmp_path) == []
    monkeypatch.setitem(ds.build.__globals__, 'make_scene', original)
    ds.build(tmp_path, **args)
    before = snapshot(tmp_path)
    monkeypatch.setitem(ds.build.__globals__, 'make_scene', interrupted)
    with pytest.raises(error):
        ds.build(tmp_path, **args, seed=1)
    assert snapshot(tmp_path) == before


def _build_in_process(root, barrier, results):
    barrier.wait()
    results.put(ds.build(root, 'micro', parts=('detection', 'classification'), progress=False).manifest('detection')['fingerprint'])


@pytest.mark.parametrize('before', ['nothing', 'damaged'])
def test_processes_that_build_at_the_same_time(tmp_path, before):
    root = tmp_path / 'digits'
    if before == 'damaged':
        damage_truncated(ds.build(root, 'micro', parts=('detection', 'classification'), progress=False).root / 'detection')
    ds.source_digits()  # inherited by the children
    context = multiprocessing.get_context('fork')
    barrier, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_build_in_process, args=(root, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    prints = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert len(prints) == 1 and sorted(os.listdir(root)) == ['classification', 'detection']
    data = ds.build(root, 'micro', parts=('detection', 'classification'), progress=False)
    assert set(data.status.values()) == {'reused'}


def test_what_a_killed_build_left_is_swept(tmp_path):
    old, young, mine = (tmp_path / name for name in ('.building-detection-0123456789ab', '.old-detection-0123456789ab', '.building-house'))
    for path in old, young, mine:
        path.mkdir()
    hours_ago = time.time() - 7200
    for path in old, mine:
        os.utime(path, (hours_ago, hours_ago))
    ds.build(tmp_path, 'micro', parts=['detection'], progress=False, **FEW)
    assert not old.exists() and young.exists() and mine.exists()


@pytest.mark.parametrize('args, message', [
    (dict(preset='huge'), r"preset 'huge' does not exist; expected one of \['hard', 'micro', 'standard'\]"),
    (dict(preset=3), 'preset 3'),
    (dict(size=3), "no 'size'; it has height"),
    (dict(seed=-1), 'seed -1'),
    (dict(seed=2 ** 32), 'seed 4294967296'),
    (dict(seed=0.5), 'seed 0.5'),
    (dict(seed=True), 'seed True'),
    (dict(parts='detection'), "parts 'detection'"),
    (dict(parts=()), r'parts \(\)'),
    (dict(parts=['detection', 'depth']), 'depth'),
    (dict(height=50), r'max_side <= min\(height, width\)'),
    (dict(min_digits=4, max_digits=3), 'min_digits <= max_digits'),
    (dict(min_digits=0), 'min_digits'),
    (dict(noise='much'), "noise='much'"),
    (dict(noise=float('nan')), 'noise in 0..1'),
    (dict(height=128.0), 'height=128.0: expected an integer'),
    (dict(val=True), 'val=True: expected an integer'),
    (dict(colour_distance=0.9), 'colour_distance'),
    (dict(ink=0.1), 'edge in'),
    (dict(field_min=0.6, field_max=0.4), 'field_min <= field_max'),
    (dict(min_visible=0), 'min_visible'),
    (dict(val=9), 'at least 10'),
    (dict(test=9), 'at least 10'),
    (dict(det_train=0), 'at least 1'),
    (dict(root=''), "root ''"),
    (dict(root=None), 'root None'),
], ids=lambda value: str(value) if isinstance(value, dict) else '')
def test_bad_arguments(tmp_path, args, message):
    with pytest.raises(ValueError, match=message):
        ds.build(**{'root': tmp_path / 'new', 'preset': 'micro', 'progress': False, **args})
    assert not (tmp_path / 'new').exists()


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / 'root').write_text('')
    with pytest.raises(ValueError, match='is a file'):
        ds.build(tmp_path / 'root', 'micro', progress=False)


def test_missing_scikit_learn_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'sklearn.datasets', None)
    ds.source_digits.cache_clear()
    with pytest.raises(ImportError, match=r'vitzoo\[viz\]'):
        ds.build(tmp_path / 'new', 'micro', progress=False)
    assert not (tmp_path / 'new').exists()


# ---- preview and command ----

def test_preview(micro, tmp_path):
    path = ds.preview(micro, tmp_path / 'new' / 'sheet.png', num=5, columns=2, scale=1)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (3 * 128 + 2 * 4, 2 * (2 * 160 + 8) - 4, 3)
    scene = ds.make_scene(ds.PRESETS['micro'], 0, 'val', 0)
    assert (sheet[:128, :160] == scene.image).all()
    changed = (sheet[:128, 160:320] != scene.image).any(-1)
    assert changed[scene.masks.any(0)].mean() > 0.98
    x, y, w, h = scene.boxes[-1]
    outside = np.ones((128, 160), bool)
    for x, y, w, h in scene.boxes:
        outside[y:y + h, x:x + w + 8] = False  # with the width of a label
    assert not changed[outside].any()
    assert os.listdir(path.parent) == ['sheet.png']
    with pytest.raises(ValueError, match='build the part detection'):
        ds.preview(tmp_path, tmp_path / 'x.png')
    with pytest.raises(ValueError, match='split'):
        ds.preview(micro, tmp_path / 'x.png', split='dev')
    with pytest.raises(ValueError, match='num=0'):
        ds.preview(micro, tmp_path / 'x.png', num=0)


@pytest.mark.parametrize('annotations', ['{}', '[]', '{"images": []}', '[' * 10_000, '{"images": [{"id": 1, "file_name": "../x"}]}'])
def test_preview_of_damaged_annotations(micro, tmp_path, annotations):
    shutil.copytree(micro.root / 'detection', tmp_path / 'detection')
    (tmp_path / 'detection' / 'annotations' / 'det_val.json').write_text(annotations)
    with pytest.raises(ValueError, match='damaged'):
        ds.preview(tmp_path, tmp_path / 'x.png')
    assert not (tmp_path / 'x.png').exists()


def test_command(tmp_path, capsys):
    args = ['--out', str(tmp_path / 'd'), '--preset', 'micro', '--seed', '5', '--parts', 'detection', '--set', 'det_train=2', 'val=10',
            'test=10']
    assert ds.main([*args, '--json', '--preview', str(tmp_path / 'p.png')]) == 0
    result = json.loads(capsys.readouterr().out)
    part = result['parts']['detection']
    assert part['status'] == 'built (not there)' and part['files'] == 25 and (tmp_path / 'p.png').is_file()
    jobs = [(split, i) for split, num in (('train', 2), ('val', 10), ('test', 10)) for i in range(num)]
    expected = [ds.make_scene(ds.PRESETS['micro'], 5, *job) for job in jobs]
    assert part['fingerprint'] == ds.fingerprint(expected)
    assert ds.main(args) == 0
    assert 'reused' in capsys.readouterr().out


def test_command_keeps_files_of_others(tmp_path, capsys):
    (tmp_path / 'p.png').write_text('mine')
    assert ds.main(['--out', str(tmp_path / 'd'), '--preset', 'micro', '--preview', str(tmp_path / 'p.png')]) == 2
    assert '--force' in capsys.readouterr().err and os.listdir(tmp_path) == ['p.png']


@pytest.mark.parametrize('args', ['--preset huge', '--set val', '--set val=many', '--seed -1', '--parts depth', f'--set val={"[" * 9999}'])
def test_command_errors(tmp_path, capsys, args):
    assert ds.main(['--out', str(tmp_path / 'd'), *args.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ') and not captured.out and not (tmp_path / 'd').exists()


def test_command_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['digit_scenes', '--set', 'val'])
    with pytest.raises(SystemExit) as end:
        runpy.run_module('vitzoo.datasets.digit_scenes', run_name='__main__')
    assert end.value.code == 2


@pytest.mark.slow
def test_the_whole_of_standard_is_frozen():
    jobs = [('train', i) for i in range(STANDARD.seg_train)] + [('val', i) for i in range(STANDARD.val)]
    assert ds.fingerprint(ds.make_scene(STANDARD, 0, *job) for job in jobs) == FROZEN_WHOLE
    assert ds.fingerprint(scenes(split='test', num=STANDARD.test)) == FROZEN_TEST


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(3))
def test_every_digit_of_hard_finds_a_colour(seed):
    for split, num in ('train', 3000), ('val', 100), ('test', 100):
        assert len(scenes(ds.PRESETS['hard'], seed, split, num)) == num
