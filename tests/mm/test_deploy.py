import json

import numpy as np
import pytest
import torch
import zoo
from PIL import Image

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from torch import nn  # noqa: E402

import vitzoo  # noqa: E402
from vitzoo.export import verify  # noqa: E402
from vitzoo.export.verify import photo  # noqa: E402
from vitzoo.mm import config_path, deploy, setup  # noqa: E402
from vitzoo.mm.deploy.modules import MatrixPool  # noqa: E402

SIZE = (64, 96)
FAMILIES = zoo.slow_if(lambda name: name != 'svit_micro', zoo.FIRST.values())
OTHERS = ['cascade-mask-rcnn', 'atss', 'fcos', 'deformable-detr', 'dino']  # with one backbone
# head, backbone, opset; 17 is quicker
FILES = [('retinanet', 'svit_micro', 17), ('deformable-detr', 'svit_micro', 17), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
    *((head, name, 20) for head in ('retinanet', 'mask-rcnn') for name in zoo.FIRST.values()), ('cascade-mask-rcnn', 'stvit_micro', 20),
    ('deformable-detr', 'vz_davit_micro', 20),  # which has modules under several names
    *((head, 'svit_micro', opset) for head in OTHERS for opset in (17, 20) if (head, opset) != ('deformable-detr', 17))))]


def build(name, backbone=None, **changes):
    """A model of a shipped config whose heads answer to the image: as initialised, they find nothing."""
    cfg = setup(config_path(name), backbone=backbone, cfg_options=changes)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).eval()
    if hasattr(model, 'encoder'):  # a transformer
        nn.init.normal_(model.level_embed)  # has no values before
        for path, layer in model.named_modules():
            if path.endswith(('sampling_offsets', 'attention_weights')):
                nn.init.normal_(layer.weight, std=0.1)
    for part in ('bbox_head', 'rpn_head', 'roi_head'):
        for path, layer in getattr(model, part, nn.Identity()).named_modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, nonlinearity='relu')
                layer.weight.data *= 0.2 if 'reg' in path else 0.1 if path.endswith('cls') else 1
    return model


def predict(model, image):
    """What MMDetection itself finds in a normalised image."""
    from mmdet.structures import DetDataSample
    height, width = image.shape[2:]
    padded = nn.functional.pad(image, (0, -width % 32, 0, -height % 32))
    sample = DetDataSample(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), pad_shape=padded.shape[2:], batch_input_shape=padded.shape[2:],
        scale_factor=(1., 1.)))
    with torch.no_grad():
        found = model.predict(padded, [sample], rescale=False)[0].pred_instances
    return [found.bboxes, found.scores, found.labels, *([found.masks] if 'masks' in found else [])]


def run(path, image):
    session = ort.InferenceSession(path, providers=['CPUExecutionProvider'])
    return session.run(None, {'image': image.numpy()})


def metadata(path):
    return {p.key: json.loads(p.value) for p in onnx.load(path).metadata_props}


@pytest.mark.parametrize('size', [SIZE, (77, 93)])
@pytest.mark.parametrize('name', ['retinanet', 'mask-rcnn', *zoo.slow_if(lambda name: name not in ('cascade-mask-rcnn', 'fcos'), OTHERS)])
def test_detector_is_what_mmdet_predicts(name, size):
    model = build(f'detection/{name}_svit_micro_digits')
    deployed = deploy.detector(model, size)
    labels = set()
    for seed in range(3):
        image = photo(seed, (3, *size))
        with torch.no_grad():
            found = deployed(image)
        expected = predict(model, image)
        assert len(found) == len(expected) == len(deployed.output_names) and len(expected[0]) > 5
        for got, want in zip(found, expected, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
        labels |= set(expected[2].tolist())
    assert len(labels) > 1


# what the micro config leaves out; MMDetection's two stages need 256 channels
REFINED = {'model.with_box_refine': True}
WIDE = [f'model.{part}.embed_dims' for part in (
    'bbox_head', 'encoder.layer_cfg.self_attn_cfg', 'encoder.layer_cfg.ffn_cfg', 'decoder.layer_cfg.self_attn_cfg',
    'decoder.layer_cfg.cross_attn_cfg', 'decoder.layer_cfg.ffn_cfg')]
IN_TWO_STAGES = {**REFINED, 'model.as_two_stage': True, 'model.neck.out_channels': 256, 'model.positional_encoding.num_feats': 128,
                 **dict.fromkeys(WIDE, 256)}


@pytest.mark.slow
@pytest.mark.parametrize('size', [SIZE, (77, 93)])
@pytest.mark.parametrize('changes', [REFINED, IN_TWO_STAGES], ids=['refined', 'two stages'])
def test_other_forms_of_deformable_detr(changes, size, tmp_path):
    model = build('detection/deformable-detr_svit_micro_digits', **changes)
    deployed = deploy.detector(model, size)
    assert deployed.selects == ('model.as_two_stage' in changes)
    report = vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', size, opset=17, dynamic_batch=False, rounds=0)
    image = photo(9, (3, *size))
    case = verify.Case(image, (9,), predict(model, image), objects=True)
    assert len(case.outputs[0]) == 20
    verify.check(verify.open_session(report.path), case, report.outputs, selects=False)


def test_detector_finds_nothing_as_mmdet_does():
    model = build('detection/mask-rcnn_svit_micro_digits', **{'model.test_cfg.rcnn.score_thr': 0.999})
    image = photo(0, (3, *SIZE))
    with torch.no_grad():
        found = deploy.detector(model, SIZE)(image)
    assert [len(values) for values in found] == [0, 0, 0, 0] == [len(values) for values in predict(model, image)]
    assert found[3].shape == (0, *SIZE)


@pytest.mark.parametrize('head, backbone, opset', FILES)
def test_detector_in_onnx(head, backbone, opset, tmp_path):
    model = build(f'detection/{head}_svit_micro_digits', backbone)
    model.dataset_meta = {'classes': [f'digit {i}' for i in range(10)]}
    deployed = deploy.detector(model, SIZE)
    report = vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', SIZE, opset=opset, dynamic_batch=False, rounds=0)
    names = ('boxes', 'scores', 'labels', 'masks')[:4 if 'mask' in head else 3]
    assert report.outputs == names and [c.batch for c in report.checks] == [1] * 4 and report.max_error < 1e-4
    assert not any('zero or empty' in warning for warning in report.warnings)
    for seed in 9, 10:
        image = photo(seed, (3, *SIZE))
        expected = predict(model, image)
        assert len(expected[0]) > 5
        verify.check(verify.open_session(report.path), verify.Case(image, (seed,), expected, objects=True), names, selects=False)
        assert [values.dtype for values in run(report.path, image)] == [np.float32, np.float32, np.int64, bool][:len(names)]
    if head in ('deformable-detr', 'dino'):  # a sample for each level of each layer, and of the decoder only what the last layer says
        nodes = [node.op_type for node in onnx.load(report.path).graph.node]
        assert nodes.count('GridSample') == (2 + 2) * 4 and nodes.count('TopK') == 1 + deployed.selects
        assert not {'If', 'Loop', 'Einsum', 'ScatterND', 'ScatterElements', 'GatherElements'} & set(nodes)
    found = metadata(report.path)
    assert found['model'] == f'{type(model).__name__} on {backbone}' and found['class_names'][9] == 'digit 9'
    assert (found['task'], found['num_classes'], found['score_threshold']) == ('detection', 10, 0 if hasattr(model, 'encoder') else 0.05)
    np.testing.assert_allclose(found['mean'], [0.485, 0.456, 0.406], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('head', ['retinanet', 'mask-rcnn'])
def test_detector_in_8_bits(head, tmp_path):
    model = build(f'detection/{head}_svit_micro_digits')
    deployed = deploy.detector(model, SIZE)
    images = [Image.fromarray(np.random.default_rng(i).integers(256, size=(*SIZE, 3), dtype=np.uint8)) for i in range(3)]
    report = vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', SIZE, opset=17, dynamic_batch=False, rounds=0, precision='int8',
                                force_precision=True, calibration=images)
    found = report.quantisation.drift
    assert found.objects > 5 and 0.5 < found.boxes <= 1 and found.box_iou > 0.7 and found.images == 3
    assert (found.mask_iou is not None) == (head == 'mask-rcnn') and (found.mask_iou or 1) > 0.3  # random masks are near ties
    assert found.error is found.top1 is found.labels is None
    assert 'MatMulInteger' in {node.op_type for node in onnx.load(report.path).graph.node}
    boxes, scores, labels, *_ = run(report.path, photo(9, (3, *SIZE)))
    assert len(boxes) == len(scores) == len(labels) and metadata(report.path)['drift'] == found.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize('argmax', [False, True])
def test_segmentor_in_8_bits(argmax, tmp_path):
    model = build('segmentation/upernet_svit_micro_digits')
    images = [Image.fromarray(np.random.default_rng(i).integers(256, size=(*SIZE, 3), dtype=np.uint8)) for i in range(3)]
    report = vitzoo.export_onnx(deploy.segmentor(model, SIZE, argmax=argmax), tmp_path / 'model.onnx', SIZE, opset=17, rounds=0,
                                precision='int8', force_precision=True, calibration=images)
    assert 0.5 < report.quantisation.drift.labels <= 1 and report.quantisation.drift.images == 3


@pytest.mark.slow
def test_detector_by_the_default_exporter(tmp_path):
    model = build('detection/retinanet_svit_micro_digits')
    report = vitzoo.export_onnx(deploy.detector(model, SIZE), tmp_path / 'model.onnx', SIZE, dynamic_batch=False, rounds=0)
    nodes = [node.op_type for node in onnx.load(report.path).graph.node]
    assert nodes.count('NonMaxSuppression') == 1 and report.exporter == 'dynamo'


@pytest.mark.parametrize('opset', [17, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'retinanet', ['retinanet', 'mask-rcnn', 'cascade-mask-rcnn', 'fcos']))
def test_a_file_that_finds_nothing_runs(name, opset, tmp_path):
    threshold = f'model.test_cfg.{"rcnn." if "rcnn" in name else ""}score_thr'
    model = build(f'detection/{name}_svit_micro_digits', **{threshold: 0.999})
    report = vitzoo.export_onnx(deploy.detector(model, SIZE), tmp_path / 'model.onnx', SIZE, opset=opset, dynamic_batch=False, rounds=0)
    assert [len(values) for values in run(report.path, photo(0, (3, *SIZE)))] == [0] * len(report.outputs)
    assert 'zero or empty' in report.warnings[0]


@pytest.mark.parametrize('backbone', FAMILIES)
@pytest.mark.parametrize('head', ['upernet', pytest.param('fpn', marks=pytest.mark.slow)])
def test_segmentor_in_onnx(head, backbone, tmp_path):
    model = build(f'segmentation/{head}_svit_micro_digits', backbone)
    slow = backbone != 'svit_micro' or head != 'upernet'
    report = vitzoo.export_onnx(deploy.segmentor(model, SIZE), tmp_path / 'model.onnx', SIZE, opset=20 if slow else 17, rounds=0)
    assert report.outputs == ('seg',) and [c.batch for c in report.checks] == [1, 3]
    images = torch.cat([photo(seed, (3, *SIZE)) for seed in (7, 8)])
    with torch.no_grad():
        expected = torch.stack([sample.seg_logits.data for sample in model.predict(images)])
    found, = run(report.path, images)
    assert found.shape == (2, 11, *SIZE)
    tolerance = 2e-3 if any(getattr(m, 'selects', False) for m in model.modules()) else 1e-5
    np.testing.assert_allclose(found, expected, atol=tolerance * float(expected.abs().max()))
    assert metadata(report.path)['task'] == 'segmentation'


def test_segmentor_with_labels(tmp_path):
    model = build('segmentation/fpn_svit_micro_digits')
    deployed = deploy.segmentor(model, SIZE, argmax=True)
    report = vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', SIZE, opset=17, rounds=0)
    image = photo(7, (3, *SIZE))
    found, = run(report.path, image)
    with torch.no_grad():
        expected = model.predict(image)[0].pred_sem_seg.data
    assert found.dtype == np.int64 and found.shape == (1, *SIZE)
    assert (found != expected.numpy()).mean() <= 1e-4 and len(np.unique(found)) > 1


@pytest.mark.parametrize('length', [4, 5, 7])
def test_matrix_pooling_is_adaptive_pooling(length):
    x = torch.randn(2, 3, length, 9)
    for bins in (1, 2, 3, 6):
        torch.testing.assert_close(MatrixPool(bins)(x), nn.AdaptiveAvgPool2d(bins)(x))


def test_raw_maps(tmp_path):
    model = build('detection/mask-rcnn_svit_micro_digits')
    report = vitzoo.export_onnx(deploy.raw(model, SIZE), tmp_path / 'model.onnx', SIZE, opset=17, rounds=0)
    image = photo(5, (3, *SIZE))
    with torch.no_grad():
        scores, deltas = model.rpn_head(model.extract_feat(image))
    for got, want in zip(run(report.path, image), [*scores, *deltas], strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * float(want.abs().max()))


def test_the_model_itself_is_not_changed():
    model = build('segmentation/upernet_svit_micro_digits').train()
    deploy.segmentor(model, SIZE)
    assert model.training and any(isinstance(m, nn.AdaptiveAvgPool2d) for m in model.modules())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize('name, changes, make, reason', [
    ('segmentation/fpn_svit_micro_digits', {}, deploy.detector, 'EncoderDecoder'),
    ('segmentation/fpn_svit_micro_digits', {}, deploy.raw, 'bbox_head or rpn_head'),
    ('detection/retinanet_svit_micro_digits', {}, deploy.segmentor, 'RetinaNet'),
    ('detection/retinanet_svit_micro_digits', {'model.test_cfg.nms.type': 'soft_nms'}, deploy.detector, 'soft_nms.*deploy.raw'),
    ('detection/retinanet_svit_micro_digits', {'model.data_preprocessor.bgr_to_rgb': False}, deploy.detector, 'BGR'),
    ('detection/atss_svit_micro_digits', {'model.bbox_head.type': 'PAAHead'}, deploy.detector, 'PAAHead'),
    ('detection/fcos_svit_micro_digits', {'model.bbox_head.dcn_on_last_conv': True}, deploy.detector, 'FCOS with ModulatedDeformConv2d'),
    ('detection/cascade-mask-rcnn_svit_micro_digits', {'model.roi_head.type': 'HybridTaskCascadeRoIHead'}, deploy.detector,
     'HybridTaskCascadeRoIHead'),
    ('detection/deformable-detr_svit_micro_digits', {}, deploy.raw, 'DeformableDETR.*dense head'),
    ('segmentation/fpn_svit_micro_digits', {'model.test_cfg': dict(mode='slide', crop_size=(32, 32), stride=(16, 16))}, deploy.segmentor,
     r"\(32, 32\).*test_cfg.mode = 'whole'"),
])
def test_refusals(name, changes, make, reason):
    model = build(name, **changes)
    with pytest.raises(ValueError, match=f'(?s){reason}'):
        make(model, SIZE)


def test_a_detector_that_another_was_made_of_is_refused_by_name():
    model = build('detection/deformable-detr_svit_micro_digits')
    model.__class__ = type('MyDETR', (type(model),), {})
    with pytest.raises(ValueError, match='MyDETR with DeformableDETRHead'):
        deploy.detector(model, SIZE)


def test_limits_of_the_export(tmp_path):
    model = build('detection/retinanet_svit_micro_digits')
    with pytest.raises(ValueError, match=r'size=\(64, 0\)'):
        deploy.detector(model, (64, 0))
    deployed = deploy.detector(model, SIZE)
    with pytest.raises(ValueError, match='dynamic_batch=False'):
        vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', SIZE)
    with pytest.raises(ValueError, match='one size'):
        vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', SIZE, dynamic_batch=False, dynamic_size=True)
    with pytest.raises(ValueError, match='made for images of 64x96'):
        vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', (64, 64), dynamic_batch=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name, opset', [
    ('detection/mask-rcnn_timm_vit_expedite_digits', 17),
    pytest.param('segmentation/segmenter_timm_vit_tome_digits', 17, marks=pytest.mark.slow),
    pytest.param('detection/mask-rcnn_timm_dinov3_expedite_digits', 20, marks=pytest.mark.slow),
    pytest.param('segmentation/upernet_timm_vit_expedite_digits', 20, marks=pytest.mark.slow),
])
def test_reduced_tokens_in_onnx(name, opset, tmp_path):
    """The file does what the whole model with reduced tokens does, and not what it does without."""
    model, size, detects = build(name), (128, 160), name.startswith('detection')
    deployed = (deploy.detector if detects else deploy.segmentor)(model, size)
    report = vitzoo.export_onnx(deployed, tmp_path / 'model.onnx', size, opset=opset, dynamic_batch=not detects, rounds=0)
    assert report.max_error < 1e-4
    assert not any('Scatter' in node.op_type and any(a.name == 'reduction' for a in node.attribute)
                   for node in onnx.load(report.path).graph.node)
    image = photo(9, (3, *size))
    found = run(report.path, image)[int(detects)]  # scores, or logits

    def expected():
        with torch.no_grad():
            return predict(model, image)[1] if detects else model.predict(image)[0].seg_logits.data[None]
    torch.testing.assert_close(torch.from_numpy(found), expected(), rtol=0, atol=1e-4)
    vitzoo.restore_tokens(model)
    other = expected()
    assert other.shape != found.shape or (other - torch.from_numpy(found)).abs().max() > 1e-3
