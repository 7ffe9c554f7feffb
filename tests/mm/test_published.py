"""Published detectors and segmentors: rebuilt from the names and shapes that their code gives them, loaded whole into our configs."""
import copy
import functools
import re
from collections import Counter, OrderedDict

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.runner import load_checkpoint as mmengine_load  # noqa: E402

import vitzoo  # noqa: E402
from vitzoo.mm import config_path, setup  # noqa: E402
from vitzoo_cli import main  # noqa: E402

# ---- backbones: published names and ours, as the published code lists its modules

BATCH_NORM = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
WEIGHTS = ('weight', 'bias')


def entries(published, ours, kinds=WEIGHTS):
    return {f'{published}.{kind}': f'{ours}.{kind}' for kind in kinds}


def stvit(model, levels):
    names = {}
    for i, conv in ((0, 'stem.0'), (2, 'stem.3')):
        names |= entries(f'patch_embed.proj.{i}.c', conv, ['weight'])
        names |= entries(f'patch_embed.proj.{i}.bn', f'stem.{i // 2 * 3 + 1}', BATCH_NORM)
    for i, stage in enumerate(model.stages):
        for j in range(len(stage.blocks)):
            published, ours = f'layers.{i}.blocks.{j}', f'stages.{i}.blocks.{j}'
            for layer in ('norm1', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
                names |= entries(f'{published}.{layer}', f'{ours}.{layer}')
            if i == 2 and j % 6:  # on semantic tokens
                names |= entries(f'{published}.attn.q', f'{ours}.attn.q') | entries(f'{published}.attn.kv', f'{ours}.attn.kv')
                names |= {f'{published}.layer_scale_{k}': f'{ours}.ls{k}.gamma' for k in (1, 2)}
            else:
                names |= entries(f'{published}.attn.qkv', f'{ours}.attn.qkv')
                names |= entries(f'{published}.attn', f'{ours}.attn', ['relative_position_bias_table'])
                names[f'{published}.attn.relative_position_index'] = None
        if i < 3:
            names |= entries(f'layers.{i}.downsample.norm', f'stages.{i + 1}.downsample.norm')
            names[f'layers.{i}.downsample.reduction.weight'] = f'stages.{i + 1}.downsample.reduction.weight'
    for i in levels:
        names |= entries(f'norm{i}', f'norm{i}')
    return names


def davit(model, levels):
    names = {}
    for i, stage in enumerate(model.stages):
        for kind in ('proj', 'norm'):
            names |= entries(f'patch_embeds.{i}.{kind}', f'{f"stages.{i}.downsample" if i else "stem"}.{kind.replace("proj", "conv")}')
        for j in range(len(stage.blocks)):
            for kind in (0, 1):
                published, ours = f'main_blocks.{i}.{j}.{kind}', f'stages.{i}.blocks.{j}.{kind}'
                for k in (0, 1):
                    names |= entries(f'{published}.cpe.{k}.proj', f'{ours}.cpe{k + 1}.proj')
                for layer in ('norm1', 'attn.qkv', 'attn.proj', 'norm2', 'mlp.fc1', 'mlp.fc2'):
                    names |= entries(f'{published}.{layer}', f'{ours}.{layer}')
    for i in levels:
        names |= entries(f'norm{i}', f'norm{i}')
    return names


def biformer(model, levels):
    names = {}
    for i in (0, 1):
        names |= entries(f'downsample_layers.0.{3 * i}', f'stem.{2 * i}.conv')
        names |= entries(f'downsample_layers.0.{3 * i + 1}', f'stem.{2 * i}.norm', BATCH_NORM)
    for i, stage in enumerate(model.stages):
        if i:
            names |= entries(f'downsample_layers.{i}.0', f'stages.{i}.downsample.conv')
            names |= entries(f'downsample_layers.{i}.1', f'stages.{i}.downsample.norm', BATCH_NORM)
        for j in range(len(stage.blocks)):
            published, ours = f'stages.{i}.{j}', f'stages.{i}.blocks.{j}'
            for theirs, layer in (('pos_embed', 'pos_embed'), ('norm1', 'norm1'), ('attn.lepe', 'attn.lepe'), ('norm2', 'norm2'),
                                  ('mlp.0', 'mlp.fc1'), ('mlp.3', 'mlp.fc2')):
                names |= entries(f'{published}.{theirs}', f'{ours}.{layer}')
            if i < 3:
                names |= entries(f'{published}.attn.qkv.qkv', f'{ours}.attn.qkv') | entries(f'{published}.attn.wo', f'{ours}.attn.wo')
            else:
                names |= entries(f'{published}.attn.qkv', f'{ours}.attn.qkv', ['weight'])
                names |= entries(f'{published}.attn.proj', f'{ours}.attn.proj')
    for i in levels:
        names |= entries(f'extra_norms.{i}', f'norm{i}')
    return names


def cas_vit(model, levels):
    names = {}
    for i in (0, 3):
        names |= entries(f'patch_embed.{i}', f'stem.{i}') | entries(f'patch_embed.{i + 1}', f'stem.{i + 1}', BATCH_NORM)
    for i, stage in enumerate(model.stages):
        if i:
            names |= entries(f'network.{2 * i - 1}.proj', f'stages.{i}.downsample.conv')
            names |= entries(f'network.{2 * i - 1}.norm', f'stages.{i}.downsample.norm', BATCH_NORM)
        for j in range(len(stage.blocks)):
            published, ours = f'network.{2 * i}.{j}', f'stages.{i}.blocks.{j}'
            for theirs, layer in (('local_perception.network.0', 'local.fc1'), ('local_perception.network.2', 'local.dwconv'),
                                  ('local_perception.network.4', 'local.fc2'), ('attn.dwc', 'attn.context'), ('attn.proj', 'attn.proj'),
                                  ('mlp.fc1', 'mlp.fc1'), ('mlp.fc2', 'mlp.fc2')):
                names |= entries(f'{published}.{theirs}', f'{ours}.{layer}')
            for theirs, layer in (('local_perception.network.1', 'local.norm'), ('norm1', 'norm1'), ('norm2', 'norm2')):
                names |= entries(f'{published}.{theirs}', f'{ours}.{layer}', BATCH_NORM)
            names |= entries(f'{published}.attn.qkv', f'{ours}.attn.qkv', ['weight'])
            for kind in 'qk':
                theirs, gates = f'{published}.attn.oper_{kind}', f'{ours}.attn.gates_{kind}'
                names |= entries(f'{theirs}.0.block.0', f'{gates}.dwconv') | entries(f'{theirs}.0.block.1', f'{gates}.norm', BATCH_NORM)
                names |= entries(f'{theirs}.0.block.3', f'{gates}.position', ['weight'])
                names |= entries(f'{theirs}.1.block.1', f'{gates}.channel', ['weight'])
    for i in levels:
        names |= entries(f'norm{2 * i}', f'norm{i}', BATCH_NORM)
    return names


def rmt(model, levels):
    """Queries and keys, two layers there, are one here: `joined` makes its value."""
    names = {}
    for i in (0, 3, 6, 9):
        names |= entries(f'patch_embed.proj.{i}', f'stem.{i}') | entries(f'patch_embed.proj.{i + 1}', f'stem.{i + 1}', BATCH_NORM)
    for i, stage in enumerate(model.stages):
        names |= {f'layers.{i}.Relpos.angle': None, f'layers.{i}.Relpos.decay': None}
        if i:
            names |= entries(f'layers.{i - 1}.downsample.reduction', f'stages.{i}.downsample.conv')
            names |= entries(f'layers.{i - 1}.downsample.norm', f'stages.{i}.downsample.norm', BATCH_NORM)
        for j, block in enumerate(stage.blocks):
            published, ours = f'layers.{i}.blocks.{j}', f'stages.{i}.blocks.{j}'
            for theirs, layer in (('pos.conv', 'pos_embed'), ('retention_layer_norm', 'norm1'), ('retention.q_proj', 'attn.qk'),
                                  ('retention.k_proj', 'attn.qk'), ('retention.v_proj', 'attn.v'), ('retention.lepe.conv', 'attn.lepe'),
                                  ('retention.out_proj', 'attn.proj'), ('final_layer_norm', 'norm2'), ('ffn.fc1', 'mlp.fc1'),
                                  ('ffn.dwconv.conv', 'mlp.dwconv'), ('ffn.fc2', 'mlp.fc2')):
                names |= entries(f'{published}.{theirs}', f'{ours}.{layer}')
            if hasattr(block.ls1, 'gamma'):
                names |= {f'{published}.gamma_{k}': f'{ours}.ls{k}.gamma' for k in (1, 2)}
    for i in levels:
        names |= entries(f'extra_norms.{i}', f'norm{i}')
    return names


def joined(parts, heads):
    """Ours of the queries' and keys' weights or biases: of each head the even channels, then the odd ones."""
    return torch.cat([head[i::2] for part in parts for head in part.chunk(heads) for i in (0, 1)])


# ---- necks and heads: names and shapes in MMDetection 2.11 and 2.28, MMSegmentation 0.11 and 0.30

def linear(name, channels, outputs):
    return {f'{name}.weight': (outputs, channels), f'{name}.bias': (outputs,)}


def conv(name, channels, outputs, kernel):
    return {f'{name}.weight': (outputs, channels, kernel, kernel), f'{name}.bias': (outputs,)}


def conv_bn(name, channels, outputs, kernel):
    return {f'{name}.conv.weight': (outputs, channels, kernel, kernel),
            **{f'{name}.bn.{kind}': (outputs,) for kind in BATCH_NORM[:4]}, f'{name}.bn.num_batches_tracked': ()}


def fpn(channels):
    shapes = {}
    for i, width in enumerate(channels):
        shapes |= conv(f'neck.lateral_convs.{i}.conv', width, 256, 1) | conv(f'neck.fpn_convs.{i}.conv', 256, 256, 3)
    return shapes


def retinanet(channels):
    """FPN start_level=1 of four maps: it has three lateral convolutions, and two more levels from the last map."""
    shapes = fpn(channels[1:]) | conv('neck.fpn_convs.3.conv', channels[3], 256, 3) | conv('neck.fpn_convs.4.conv', 256, 256, 3)
    for i in range(4):
        shapes |= conv(f'bbox_head.cls_convs.{i}.conv', 256, 256, 3) | conv(f'bbox_head.reg_convs.{i}.conv', 256, 256, 3)
    return shapes | conv('bbox_head.retina_cls', 256, 720, 3) | conv('bbox_head.retina_reg', 256, 36, 3)


def rpn():
    return conv('rpn_head.rpn_conv', 256, 256, 3) | conv('rpn_head.rpn_cls', 256, 3, 1) | conv('rpn_head.rpn_reg', 256, 12, 1)


def mask_head(name):
    shapes = conv(f'{name}.upsample', 256, 256, 2) | conv(f'{name}.conv_logits', 256, 80, 1)
    for i in range(4):
        shapes |= conv(f'{name}.convs.{i}.conv', 256, 256, 3)
    return shapes


def box_outputs(name):
    return linear(f'{name}.fc_cls', 1024, 81) | linear(f'{name}.fc_reg', 1024, 320)  # the background is the last class


def mask_rcnn(channels):
    return (fpn(channels) | rpn() | linear('roi_head.bbox_head.shared_fcs.0', 256 * 49, 1024)
            | linear('roi_head.bbox_head.shared_fcs.1', 1024, 1024) | box_outputs('roi_head.bbox_head') | mask_head('roi_head.mask_head'))


def cascade(channels):
    shapes = fpn(channels) | rpn()
    for i in range(3):
        head = f'roi_head.bbox_head.{i}'
        for j in range(4):
            shapes |= conv_bn(f'{head}.shared_convs.{j}', 256, 256, 3)
        shapes |= linear(f'{head}.shared_fcs.0', 256 * 49, 1024) | box_outputs(head) | mask_head(f'roi_head.mask_head.{i}')
    return shapes


def upernet(channels):
    shapes = conv('decode_head.conv_seg', 512, 150, 1)
    for i in range(4):
        shapes |= conv_bn(f'decode_head.psp_modules.{i}.1', channels[3], 512, 1)
    for i in range(3):
        shapes |= conv_bn(f'decode_head.lateral_convs.{i}', channels[i], 512, 1) | conv_bn(f'decode_head.fpn_convs.{i}', 512, 512, 3)
    shapes |= conv_bn('decode_head.bottleneck', channels[3] + 4 * 512, 512, 3) | conv_bn('decode_head.fpn_bottleneck', 4 * 512, 512, 3)
    return shapes | conv_bn('auxiliary_head.convs.0', channels[2], 256, 3) | conv('auxiliary_head.conv_seg', 256, 150, 1)


def semantic_fpn(channels):
    """Between the convolutions of a branch there are upsamplings, which count."""
    shapes = fpn(channels) | conv('decode_head.conv_seg', 128, 150, 1)
    for i in range(4):
        for j in range(max(1, i)):
            shapes |= conv_bn(f'decode_head.scale_heads.{i}.{2 * j}', 128 if j else 256, 128, 3)
    return shapes


# ---- files

# config: (names of the backbone, heads, levels with an output norm in the file, micro model)
PUBLISHED = {
    'detection/cascade-mask-rcnn_stvit_small_3x_coco': (stvit, cascade, (0, 1, 2, 3), 'stvit_micro'),
    'detection/retinanet_vz_davit_tiny_1x_coco': (davit, retinanet, (1, 2, 3), 'vz_davit_micro'),  # its code has users delete norm0
    'detection/mask-rcnn_vz_davit_tiny_3x_coco': (davit, mask_rcnn, (0, 1, 2, 3), 'vz_davit_micro'),
    'segmentation/upernet_vz_davit_tiny_160k_ade20k': (davit, upernet, (0, 1, 2, 3), 'vz_davit_micro'),
    'detection/retinanet_biformer_small_1x_coco': (biformer, retinanet, (0, 1, 2, 3), 'biformer_micro'),
    'detection/mask-rcnn_biformer_small_1x_coco': (biformer, mask_rcnn, (0, 1, 2, 3), 'biformer_micro'),
    'segmentation/fpn_biformer_small_80k_ade20k': (biformer, semantic_fpn, (0, 1, 2, 3), 'biformer_micro'),
    'segmentation/upernet_biformer_small_160k_ade20k': (biformer, upernet, (0, 1, 2, 3), 'biformer_micro'),
    'detection/retinanet_rmt_small_1x_coco': (rmt, retinanet, (0, 1, 2, 3), 'rmt_micro'),
    'detection/mask-rcnn_rmt_small_1x_coco': (rmt, mask_rcnn, (0, 1, 2, 3), 'rmt_micro'),
    'segmentation/fpn_rmt_small_80k_ade20k': (rmt, semantic_fpn, (0, 1, 2, 3), 'rmt_micro'),
    'segmentation/upernet_rmt_small_160k_ade20k': (rmt, upernet, (0, 1, 2, 3), 'rmt_micro'),
    'detection/mask-rcnn_cas_vit_s_1x_coco': (cas_vit, mask_rcnn, (0, 1, 2, 3), 'cas_vit_micro'),
    'segmentation/fpn_cas_vit_s_80k_ade20k': (cas_vit, semantic_fpn, (0, 1, 2, 3), 'cas_vit_micro'),
}
LIGHT = 'segmentation/fpn_biformer_small_80k_ade20k'
RETINANET = 'detection/retinanet_biformer_small_1x_coco'


@functools.cache
def parse(name, micro=True):
    return setup(config_path(name), backbone=PUBLISHED[name][3] if micro else None)


def build(name, micro=True, num_classes=150):
    cfg = copy.deepcopy(parse(name, micro))
    if num_classes != 150:
        cfg.model.decode_head.num_classes = num_classes
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def publish(name, model):
    """(the state dict that the published code would save of such a model, its name of each entry -> ours or None)."""
    backbone, head, levels, _ = PUBLISHED[name]
    own, pyramid = model.state_dict(), model.backbone
    prefix = 'backbone.body.model.'
    names = {f'backbone.{theirs}': ours and (f'backbone.{ours}' if re.match(r'norm\d', ours) else prefix + ours)
             for theirs, ours in backbone(pyramid.model, levels).items()}
    channels = [info['num_chs'] for info in pyramid.model.feature_info]
    parts, state = Counter(names.values()), OrderedDict()
    for theirs, ours in names.items():
        if theirs.endswith('position_index'):
            state[theirs] = torch.zeros(49, 49, dtype=torch.int64)
        elif ours is None:
            state[theirs] = torch.rand(16)
        elif ours in own:
            state[theirs] = torch.rand(len(own[ours]) // parts[ours], *own[ours].shape[1:]) if own[ours].ndim else torch.rand(())
        else:  # a norm that our RetinaNet does without is as wide as its map
            state[theirs] = torch.rand(channels[int(re.search(r'norms?\.?(\d)', theirs)[1])])
    for theirs, shape in head(channels).items():
        state[theirs], names[theirs] = torch.rand(shape), theirs
    for theirs in state:
        if theirs.endswith('num_batches_tracked'):
            state[theirs] = torch.tensor(1000)
    return state, names


def wrap(state, prefix=''):
    """What MMDetection 2 saves around it."""
    meta = dict(mmdet_version='2.11.0', config='model = dict()', epoch=36, iter=100, hook_msgs={}, CLASSES=('person', 'bicycle'))
    return {'meta': meta, 'state_dict': OrderedDict((prefix + k, v) for k, v in state.items()),
            'optimizer': {'state': {0: {'step': 3}}, 'param_groups': [{'lr': 1e-4}]}, 'amp': {'loss_scaler0': {'loss_scale': 65536.0}}}


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, state):
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


def check_whole(name, model):
    state, names = publish(name, model)
    report = vitzoo.load_checkpoint(model, wrap(state))
    own, parts = model.state_dict(), {}
    for theirs, ours in names.items():
        if ours in own:
            parts.setdefault(ours, []).append(state[theirs])
    wanted = {ours: joined(values, model.get_submodule(ours.rsplit('.', 2)[0]).num_heads) if len(values) > 1 else values[0]
              for ours, values in parts.items()}
    assert wanted.keys() == own.keys() == set(report.loaded) and report.new == []
    for ours, value in own.items():
        assert torch.equal(value, wanted[ours].reshape(value.shape)), ours
    assert set(report.dropped) == {theirs for theirs, ours in names.items() if ours not in own}
    assert report.renamed == {theirs: ours for theirs, ours in names.items() if ours in own and theirs.startswith('backbone.')
                              and theirs.removeprefix('backbone.') != ours.removeprefix('backbone.').removeprefix('body.model.')}
    return report


@pytest.mark.parametrize('name', PUBLISHED)
def test_files_load_whole(name):
    report = check_whole(name, build(name))
    if name == RETINANET:  # it has no map of stride 4
        assert report.dropped == ['backbone.extra_norms.0.weight', 'backbone.extra_norms.0.bias']


@pytest.mark.slow
@pytest.mark.parametrize('name', [*PUBLISHED, 'detection/cascade-mask-rcnn_stvit_base_3x_coco'])
def test_files_of_full_size_load_whole(name, monkeypatch):
    monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name.replace('_base_', '_small_')])
    check_whole(name, build(name, micro=False))


# ---- the tools of mmdet and mmseg

@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_mmengine_loads_published_files(tmp_path, prefix):
    """Runner(load_from=...), tools/test.py and the inferencers all call this function of mmengine."""
    wanted, found = build(LIGHT), build(LIGHT)
    torch.save(wrap(publish(LIGHT, wanted)[0], prefix), tmp_path / 'published.pth')
    vitzoo.load_checkpoint(wanted, tmp_path / 'published.pth')
    mmengine_load(found, str(tmp_path / 'published.pth'), map_location='cpu', strict=True)
    assert same(found, wanted.state_dict())


def test_mmengine_is_told_of_another_family():
    model = build(LIGHT)
    before = snapshot(model.backbone)
    with pytest.raises(ValueError, match='vz_davit_tiny'):
        model.load_state_dict({'backbone.main_blocks.0.0.0.cpe.0.proj.weight': torch.zeros(96, 1, 3, 3)}, strict=False)
    assert same(model.backbone, before)


def test_convert(tmp_path, capsys):
    model = build(LIGHT)
    torch.save(wrap(publish(LIGHT, model)[0]), tmp_path / 'published.pth')
    config = tmp_path / 'config.py'
    config.write_text(parse(LIGHT).pretty_text)
    arguments = ['convert', str(tmp_path / 'published.pth'), '--config', str(config)]
    assert main([*arguments, '--out', str(tmp_path / 'ours.pth')]) == 0
    vitzoo.load_checkpoint(model, tmp_path / 'published.pth')
    content = torch.load(tmp_path / 'ours.pth', weights_only=True)
    assert content['meta']['CLASSES'] == ('person', 'bicycle') and content['meta']['source'] == 'published.pth'
    found = build(LIGHT)
    mmengine_load(found, str(tmp_path / 'ours.pth'), map_location='cpu', strict=True)
    assert same(found, model.state_dict()) and content['state_dict'].keys() == model.state_dict().keys()

    before = sorted(tmp_path.iterdir())
    for out, more, message in (('x.safetensors', [], '.pth'), ('x.pth', ['--features'], 'go with MODEL')):
        capsys.readouterr()
        assert main([*arguments, '--out', str(tmp_path / out), *more]) == 2
        assert message in capsys.readouterr().err and sorted(tmp_path.iterdir()) == before


# ---- what does not fit

def test_another_number_of_classes():
    model = build(LIGHT, num_classes=7)
    state, _ = publish(LIGHT, model)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'another number of classes.*decode_head\.conv_seg.*150 values in the file, 7 .*reset_head=True'):
        vitzoo.load_checkpoint(model, state)
    assert same(model, before)
    report = vitzoo.load_checkpoint(model, state, reset_head=True)
    layer = ['decode_head.conv_seg.weight', 'decode_head.conv_seg.bias']
    assert report.new == report.dropped == layer
    own = model.state_dict()
    assert all(torch.equal(value, before[name] if name in layer else state[name]) for name, value in own.items() if 'backbone' not in name)


def without(part):
    return lambda state: {name: value for name, value in state.items() if not name.startswith(part)}


def davit_names(state):
    return {**without('backbone.')(state), 'backbone.main_blocks.0.0.0.cpe.0.proj.weight': torch.zeros(32, 1, 3, 3)}


MISFITS = {
    'no head': (without('decode_head.'), r'does not fit EncoderDecoder: \d+ missing \(decode_head.*model\.backbone'),
    'no entry': (without('neck.fpn_convs.2.conv.bias'), r'1 missing \(neck\.fpn_convs\.2\.conv\.bias\)'),
    'entry too many': (lambda s: {**s, 'neck.fpn_convs.4.conv.bias': torch.zeros(256)}, r'1 unexpected \(neck\.fpn_convs\.4\.conv\.bias\)'),
    'part of the backbone': (without('backbone.stages.2.0.mlp.'), r'does not fit biformer_micro: 4 missing'),
    'width of the neck': (lambda s: {**s, 'neck.fpn_convs.0.conv.weight': torch.zeros(64, 64, 3, 3)}, r'another shape'),
    'size of the backbone': (lambda s: {**s, 'backbone.stages.0.0.mlp.0.bias': torch.zeros(64)}, r'another size of the family'),
    'family': (davit_names, 'DaViT checkpoint: use vz_davit_tiny'),
    'MMDetection 1': (lambda s: {**s, 'rpn_head.rpn_conv.bias': torch.zeros(256), 'bbox_head.fc_cls.bias': torch.zeros(81)},
                      'MMDetection 1.*upgrade_model_version'),
}


@pytest.fixture(scope='module')
def published():
    model = build(LIGHT)
    return model, publish(LIGHT, model)[0]


@pytest.mark.parametrize('misfit', MISFITS)
def test_misfit_changes_nothing(published, misfit):
    (model, state), (change, message) = published, MISFITS[misfit]
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, wrap(change(state)))
    assert same(model, before)


def test_not_strict_lists_what_did_not_fit():
    model = build(LIGHT)
    state, _ = publish(LIGHT, model)
    before = snapshot(model)
    del state['neck.fpn_convs.0.conv.bias']
    report = vitzoo.load_checkpoint(model, {**state, 'neck.surprise': torch.zeros(1)}, strict=False)
    assert report.new == ['neck.fpn_convs.0.conv.bias'] and report.dropped == ['neck.surprise']
    assert torch.equal(model.neck.fpn_convs[0].conv.bias, before['neck.fpn_convs.0.conv.bias'])
    assert torch.equal(model.neck.fpn_convs[0].conv.weight, state['neck.fpn_convs.0.conv.weight'])


def test_parts_that_the_model_lacks_are_dropped(published):
    """Other heads, and what mmcv 1's EMAHook adds: whether that or the weights themselves are averages depends on the order of hooks."""
    model, state = published
    more = {'auxiliary_head.conv_seg.bias': torch.zeros(150), 'roi_head.mask_head.conv_logits.bias': torch.zeros(80),
            'ema_backbone_stages_0_0_norm1_weight': torch.zeros(32)}
    assert vitzoo.load_checkpoint(model, wrap({**state, **more})).dropped == list(more)
    with pytest.raises(ValueError, match='no averaged weights'):
        vitzoo.load_checkpoint(model, wrap({**state, **more}), use_ema=True)


@pytest.mark.parametrize('change', [
    lambda s: {k.removeprefix('backbone.'): v for k, v in s.items() if k.startswith('backbone.')},
    lambda s: {k: v for k, v in s.items() if k.startswith('backbone.')},
    lambda s: {**{k: v for k, v in s.items() if k.startswith('backbone.')}, 'head.fc.weight': torch.zeros(1000, 192)},
], ids=['backbone', 'with prefix', 'classifier of mmpretrain'])
def test_backbone_alone(published, change):
    model, state = published
    parts = snapshot(model.decode_head)
    report = vitzoo.load_checkpoint(model, change(state))
    assert set(report.loaded) == {name for name in model.state_dict() if name.startswith('backbone.')}
    assert same(model.decode_head, parts) and report.dropped == ['head.fc.weight'] * ('head.fc.weight' in change(state))


def test_counters_of_batches_may_be_missing(published):
    model, state = published
    report = vitzoo.load_checkpoint(model, {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')})
    assert not report.new
