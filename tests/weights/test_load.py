"""load_checkpoint: every layout by every door, all or nothing, nothing executed.

The files are made from a micro model, in the layout in which the published code would write it.
"""
import argparse
import copy
import pickle
import re
import sys
from pathlib import Path
from types import ModuleType

import golden
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import model_entrypoint
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.weights.layout import known_layouts
from vitzoo_cli import main

NAME = 'svit_micro'
SCALES = dict(init_values=(None, 0.1, None, 0.2))  # so that layer scales are covered too
# our names -> published ones
TO_PUBLISHED = [
    (r'^head\.fc\.', 'head.'), (r'^proj\.fc\.', 'proj.'), (r'^proj\.norm\.', 'norm.'), (r'^stem\.', 'patch_embed.proj.'),
    (r'\.mlp\.dwconv\.', '.mlp2.conv.conv.'), (r'\.mlp\.', '.mlp2.'), (r'\.attn\.attn\.', '.attn.stoken_refine.'),
    (r'\.norm1\.', '.norm1.norm.'), (r'\.pos_embed\.', '.pos_embed.conv.'), (r'\.ls(\d)\.gamma', r'.gamma_\1'),
    (r'^stages\.(\d)\.downsample\.(\w+)', lambda m: f'layers.{int(m[1]) - 1}.downsample.proj.{0 if m[2] == "conv" else 1}'),
    (r'^stages\.', 'layers.'),
]


def publish(model):
    """The checkpoint that the published code would write: convolutions for linear layers, qkv by heads, constants in every block."""
    state = {}
    for name, value in model.state_dict().items():
        if '.qkv.' in name:
            heads = model.get_submodule(name.rsplit('.qkv.', 1)[0]).num_heads
            value = value.reshape(3, heads, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
        if value.ndim == 2 and not name.startswith('head.'):
            value = value[:, :, None, None]
        if name.endswith('gamma'):
            value = value[None, :, None, None]
        for pattern, replacement in TO_PUBLISHED:
            name = re.sub(pattern, replacement, name)
        state[name] = value.clone()
    for block in {name.split('.attn.')[0] for name in state if '.attn.' in name}:
        for kind in ('fold', 'unfold'):
            state[f'{block}.attn.{kind}.weights'] = torch.eye(9).reshape(9, 1, 3, 3)
    return state


def dense_part(state):
    return {name: value for name, value in state.items() if not re.match(r'(head|proj|norm)\.', name)}


def new_model(**kwargs):
    """In eval mode, with statistics that are not the initial ones, and other weights each time."""
    model = timm.create_model(NAME, **SCALES, **kwargs).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            module.num_batches_tracked += 7
    return model


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = DenseBackbone(NAME, **SCALES)
        self.neck = nn.Conv2d(32, 8, 1)
        self.eval()

    def forward(self, x):
        return self.neck(self.backbone(x)[0])


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    after = module.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.fixture
def source():
    return new_model()


@pytest.fixture
def x():
    return torch.randn(2, 3, 64, 96)


# ---- layouts

WRAPPERS = {
    'bare': lambda s: s,
    'as the training script wrote it': lambda s: {
        'model': s, 'optimizer': {'state': {0: {'step': 3}}, 'param_groups': [{'lr': 1e-3}]}, 'epoch': 299,
        'args': argparse.Namespace(lr=1e-3)},
    'state_dict': lambda s: {'state_dict': s, 'meta': {'epoch': 12}},
    'data parallel': lambda s: {'model': {f'module.{name}': value for name, value in s.items()}},
    'whole detector': lambda s: {'state_dict': {**{f'backbone.{name}': value for name, value in s.items()},
                                                'neck.conv.weight': torch.zeros(3), 'bbox_head.fc.bias': torch.zeros(2)}},
    'parallel detector': lambda s: {'state_dict': {f'module.backbone.{name}': value for name, value in s.items()}},
    'half precision': lambda s: {name: value.half() for name, value in s.items()},
}


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize('published', [True, False], ids=['published', 'ours'])
def test_layouts(wrapper, published, source, x, tmp_path):
    state = publish(source) if published else source.state_dict()
    path = tmp_path / 'checkpoint.pth'
    torch.save(WRAPPERS[wrapper](state), path)
    model = new_model()
    report = vitzoo.load_checkpoint(model, path)
    assert set(report.loaded) == set(model.state_dict()) and report.new == []
    assert sum(name.endswith('fold.weights') for name in report.dropped) == (10 if published else 0)
    assert sum('neck' in name or 'bbox_head' in name for name in report.dropped) == (2 if wrapper == 'whole detector' else 0)
    assert bool(report.renamed) == published
    with torch.no_grad():
        y = source(x)
        tolerance = 1e-2 if wrapper == 'half precision' else 0
        torch.testing.assert_close(model(x), y, rtol=0, atol=tolerance * y.abs().max().item())
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}


def test_path_may_be_str_and_source_a_state_dict(source, x, tmp_path):
    save_file(source.state_dict(), tmp_path / 'ours.safetensors')
    save_file(publish(source), tmp_path / 'published.safetensors')
    for given in (str(tmp_path / 'ours.safetensors'), tmp_path / 'published.safetensors', publish(source), {'model': publish(source)}):
        model = new_model()
        vitzoo.load_checkpoint(model, given)
        with torch.no_grad():
            assert torch.equal(model(x), source(x))


@pytest.mark.parametrize('part', ['classifier', 'dense part'])
@pytest.mark.parametrize('build', [
    lambda: timm.create_model(NAME, features_only=True, **SCALES).eval(),
    lambda: DenseBackbone(NAME, **SCALES).eval(),
], ids=['features_only', 'DenseBackbone'])
def test_feature_models_take_classifier_and_dense_files(build, part, source, x):
    state = publish(source) if part == 'classifier' else dense_part(publish(source))
    model = build()
    report = vitzoo.load_checkpoint(model, state)
    others = {name for name in report.dropped if not name.endswith('fold.weights')}
    assert others == ({n for n in state if n.startswith(('proj.', 'norm.', 'head.'))} if part == 'classifier' else set())
    assert report.new == []
    for found, want in zip(model(x), source.forward_intermediates(x, intermediates_only=True), strict=True):
        assert torch.equal(found, want)


def test_partial_backbone_drops_the_stages_it_lacks(source, x):
    model = DenseBackbone(NAME, (0, 1), **SCALES).eval()
    report = vitzoo.load_checkpoint(model, publish(source))
    assert any(name.startswith('layers.3.') for name in report.dropped)
    with torch.no_grad():
        for found, want in zip(model(x), source.forward_intermediates(x, [0, 1], intermediates_only=True), strict=True):
            assert torch.equal(found, want)


def test_output_norms_come_from_a_dense_file_and_start_at_identity_otherwise(source):
    model = DenseBackbone(NAME, out_norm='layer', **SCALES)
    report = vitzoo.load_checkpoint(model, publish(source))
    assert report.new == [f'norm{i}.{p}' for i in range(4) for p in ('weight', 'bias')]
    assert torch.equal(model.norm2.weight, torch.ones(128)) and torch.equal(model.norm2.bias, torch.zeros(128))
    other = DenseBackbone(NAME, out_norm='layer', **SCALES)
    nn.init.normal_(other.norm2.weight)
    report = vitzoo.load_checkpoint(model, other.state_dict())
    assert report.new == [] and torch.equal(model.norm2.weight, other.norm2.weight)


def test_detector_takes_a_backbone_file_and_its_own(source, x):
    detector = Detector()
    neck = snapshot(detector.neck)
    report = vitzoo.load_checkpoint(detector, publish(source))
    assert unchanged(detector.neck, neck) and report.new == ['neck.weight', 'neck.bias']
    assert vitzoo.load_checkpoint(detector, dense_part(publish(source))).new == report.new
    with torch.no_grad():
        assert torch.equal(detector.backbone(x)[3], source.forward_intermediates(x, intermediates_only=True)[3])
        other = Detector()
        report = vitzoo.load_checkpoint(other, {'state_dict': detector.state_dict()})
        assert torch.equal(other(x), detector(x)) and set(report.loaded) == set(detector.state_dict())


@pytest.mark.parametrize('ours', [True, False], ids=['ours', 'anybody\'s'])
def test_detector_of_other_classes(ours):
    """Its own file, whoever's its backbone is."""
    def build(num_classes):
        detector = Detector()
        detector.backbone = detector.backbone if ours else timm.create_model('resnet10t', features_only=True)
        detector.bbox_head = nn.Conv2d(8, num_classes, 3)
        return detector

    source, model = build(9), build(4)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'another number of classes.*bbox_head\.weight gives 9 values in the file, 4 in the model'):
        vitzoo.load_checkpoint(model, source.state_dict())
    assert unchanged(model, before)
    report = vitzoo.load_checkpoint(model, source.state_dict(), reset_head=True)
    assert report.new == report.dropped == ['bbox_head.weight', 'bbox_head.bias']
    assert unchanged(model, {**source.state_dict(), **{name: before[name] for name in report.new}})


def test_names_of_a_report_are_those_of_the_file_and_of_the_model(source):
    state = {f'module.backbone.{name}': value for name, value in publish(source).items()}
    model = Detector()
    report = vitzoo.load_checkpoint(model, state)
    assert set(report.loaded) == {name for name in model.state_dict() if name.startswith('backbone.')}
    assert report.renamed['module.backbone.patch_embed.proj.0.weight'] == 'backbone.body.model.stem.0.weight'
    assert set(state) == set(report.renamed) | set(report.dropped)


def test_counters_of_batches_may_be_missing(source, x):
    state = {name: value for name, value in publish(source).items() if not name.endswith('num_batches_tracked')}
    model = new_model()
    vitzoo.load_checkpoint(model, state)
    with torch.no_grad():
        assert torch.equal(model(x), source(x))


def test_averaged_weights_on_request(source, x):
    averaged = new_model()
    content = {'model': publish(source), 'model_ema': publish(averaged)}
    for use_ema, want in ((False, source), (True, averaged)):
        model = new_model()
        vitzoo.load_checkpoint(model, content, use_ema=use_ema)
        with torch.no_grad():
            assert torch.equal(model(x), want(x))
    with pytest.raises(ValueError, match='no averaged weights'):
        vitzoo.load_checkpoint(model, {'model': publish(source)}, use_ema=True)


def test_head_of_other_classes(source, x):
    model = new_model(num_classes=5)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'1000 classes, the model 5.*num_classes=1000.*reset_head=True'):
        vitzoo.load_checkpoint(model, publish(source))
    assert unchanged(model, before)
    report = vitzoo.load_checkpoint(model, publish(source), reset_head=True)
    assert set(report.new) == {'head.fc.weight', 'head.fc.bias'} and {'head.weight', 'head.bias'} <= set(report.dropped)
    with torch.no_grad():
        assert torch.equal(model.forward_features(x), source.forward_features(x))
    assert torch.equal(model.head.fc.weight, before['head.fc.weight'])


def test_model_without_classifier(source, x):
    model = new_model(num_classes=0)
    report = vitzoo.load_checkpoint(model, publish(source))
    assert {'head.weight', 'head.bias'} <= set(report.dropped)
    with torch.no_grad():
        assert torch.equal(model(x), source.forward_head(source.forward_features(x), pre_logits=True))


def test_not_strict_lists_what_did_not_fit(source):
    state = publish(source)
    del state['layers.0.blocks.0.mlp2.fc1.weight']
    state['surprise'] = torch.zeros(1)
    state['patch_embed.proj.0.weight'] = torch.zeros(1, 2, 3, 3)
    model = new_model()
    before = snapshot(model)
    report = vitzoo.load_checkpoint(model, state, strict=False)
    assert set(report.new) == {'stages.0.blocks.0.mlp.fc1.weight', 'stem.0.weight'}
    assert {'surprise', 'patch_embed.proj.0.weight'} <= set(report.dropped)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in report.new)


# ---- what does not fit

def without(state, name):
    return {key: value for key, value in state.items() if key != name}


def semantic_tokens():
    return {'patch_embed.proj.weight': torch.zeros(96, 3, 4, 4), 'layers.0.blocks.0.attn.relative_position_bias_table': torch.zeros(169, 3),
            'layers.2.blocks.1.layer_scale_1': torch.zeros(384), 'layers.2.blocks.1.attn.kv.weight': torch.zeros(768, 384)}


MISFITS = {
    'missing': (lambda s: without(s, 'layers.2.blocks.1.mlp2.fc2.bias'), r'1 missing \(stages\.2\.blocks\.1\.mlp\.fc2\.bias\)'),
    'unexpected': (lambda s: {**s, 'layers.0.blocks.7.extra': torch.zeros(1)}, r'1 unexpected \(stages\.0\.blocks\.7\.extra\)'),
    'shape': (lambda s: {**s, 'proj.weight': torch.zeros(3, 5, 1, 1)}, r'proj\.fc\.weight.*another size'),
    'constants': (lambda s: {**s, 'layers.0.blocks.0.attn.fold.weights': torch.ones(9, 1, 3, 3)}, r'fold\.weights is a constant'),
    'no head': (lambda s: without(without(s, 'head.weight'), 'head.bias'), r'2 missing \(head\.fc\.weight.*reset_head=True'),
    'dense part': (dense_part, r'missing'),
    'semantic tokens': (lambda s: semantic_tokens(), r'stvit_small'),
    'swin': (lambda s: {'layers.0.blocks.0.attn.relative_position_bias_table': torch.zeros(169, 3)}, r"timm's swin"),
    'resnet': (lambda s: timm.create_model('resnet10t').state_dict(), r'missing'),
    'empty': (lambda s: {}, r'expected a state dict'),
    'no tensors': (lambda s: {'model': {'a': 1}}, r'found int'),
    'a list': (lambda s: [1, 2], r'found list'),
}


@pytest.mark.parametrize('misfit, build', [
    *((misfit, new_model) for misfit in MISFITS),
    *((misfit, Detector) for misfit in MISFITS if misfit not in ('shape', 'no head', 'dense part')),  # it has no classifier
])
def test_misfit_changes_nothing(misfit, build, source, tmp_path):
    change, message = MISFITS[misfit]
    torch.save(change(publish(source)), tmp_path / 'checkpoint.pth')
    model = build()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, tmp_path / 'checkpoint.pth')
    assert unchanged(model, before)


def test_another_size_of_the_family_is_named(source):
    with torch.device('meta'):
        small = timm.create_model('svit_small')
    model = new_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match='svit_micro'):
        vitzoo.load_checkpoint(model, {n: v if n.endswith('fold.weights') else torch.zeros(v.shape) for n, v in publish(small).items()})
    assert unchanged(model, before)


def test_modules_that_timm_did_not_build_are_refused(source):
    with pytest.raises(ValueError, match=r'takes what timm\.create_model builds.*Sequential is not'):
        vitzoo.load_checkpoint(nn.Sequential(nn.Linear(1, 1)), publish(source))


# ---- the families, by the registry

def hollow(name, **kwargs):
    """A model whose values nobody made, in no time."""
    with torch.device('meta'):
        return timm.create_model(name, **kwargs).to_empty(device='cpu')


MICRO = {model_entrypoint(name).__module__: name for name in timm.list_models('*micro*')
         if model_entrypoint(name).__module__.startswith('vitzoo.')}
GOLDEN = {  # where the code was published
    'svit/svit_small': 'svit', 'stvit/stvit_r_swin_tiny': 'stvit', 'biformer/biformer_tiny': 'biformer',
    'biformer/biformer_stl': 'biformer', 'biformer/biformer_stl_nchw': 'biformer', 'davit/davit_tiny': 'davit'}


def test_every_family_has_layouts_and_their_names_lead_to_models():
    for name in MICRO.values():
        assert type(hollow(name)).layouts
    for layout in known_layouts():
        advice = re.search(r"(?:use|such as) (?:timm's )?(.*?)(?: have)?$", layout.name)
        assert advice, layout.name
        assert all(timm.list_models(name) for name in re.split(', | or | and ', advice[1])), layout.name


@pytest.mark.parametrize('family', MICRO)
def test_own_names_are_no_published_layout_and_are_known_to_the_other_families(family):
    model = hollow(MICRO[family])
    report = vitzoo.load_checkpoint(model, model.state_dict())
    assert len(report.loaded) == len(model.state_dict()) and not (report.renamed or report.dropped or report.new)
    called = '|'.join(re.escape(layout.name) for layout in model.layouts)
    for other in set(MICRO) - {family}:
        with pytest.raises(ValueError, match=f'This is ({called})\\. {type(hollow(MICRO[other])).__name__} cannot load it'):
            vitzoo.load_checkpoint(hollow(MICRO[other]), model.state_dict())


@pytest.mark.parametrize('name', [*MICRO.values(), 'resnet10t', 'convnext_atto'])
def test_models_without_classes_take_files_with(name):
    model, state = hollow(name, num_classes=0), hollow(name).state_dict()
    report = vitzoo.load_checkpoint(model, state)
    assert set(report.loaded) == set(model.state_dict()) and set(report.dropped) == set(state) - set(report.loaded) != set()


@pytest.mark.parametrize('case', GOLDEN)
def test_published_files_are_known_to_the_other_families(case):
    facts, _ = golden.load_case(f'{case}.npz')
    state = {entry[0]: torch.zeros(1) for entry in facts['entries']}
    called = '|'.join(re.escape(layout.name) for layout in hollow(golden.our_name(facts)).layouts)
    for family in MICRO:
        if family.rsplit('.')[-1] != GOLDEN[case]:
            with pytest.raises(ValueError, match=f'This is ({called})'):
                vitzoo.load_checkpoint(hollow(MICRO[family]), state)
    with pytest.raises(ValueError, match=f'This is ({called})'):
        vitzoo.load_checkpoint(hollow('resnet10t'), state)


# ---- every door gives the same weights

def by_command(name, path, monkeypatch):
    """The model that `vitzoo export --checkpoint` would export."""
    exported = []

    def stop(model, *args, **kwargs):
        exported.append(model)
        raise ValueError('far enough')
    monkeypatch.setattr('vitzoo.export.export_onnx', stop)
    assert main(['export', name, '--checkpoint', str(path), '--out', str(path.with_suffix('.onnx'))]) == 2
    return exported[0]


@pytest.mark.parametrize('name', [NAME, 'resnet10t', 'test_convnext', 'test_vit', 'test_efficientnet'])
def test_doors(name, tmp_path, monkeypatch):
    source, path = timm.create_model(name), tmp_path / 'classifier.pth'
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    state = source.state_dict()
    torch.save({'state_dict': {f'module.{key}': value for key, value in state.items()}}, path)

    for prefix in ('', 'module.', '_orig_mod.', 'module._orig_mod.', 'model.'):
        model = timm.create_model(name)
        report = vitzoo.load_checkpoint(model, {prefix + key: value for key, value in state.items()})
        assert unchanged(model, state) and set(report.loaded) == set(state) and not report.dropped
    assert unchanged(by_command(name, path, monkeypatch), state)

    features = timm.create_model(name, features_only=True)  # of timm's some are lists that write stages.0 as stages_0
    wrapper, built = DenseBackbone(name), DenseBackbone(name, checkpoint_path=path)
    vitzoo.load_checkpoint(features, path)
    wrapper.load(state)
    for model in (features, wrapper.body, built.body):
        flat = {re.sub(r'[._]', '', key): value for key, value in state.items()}
        for key, value in model.state_dict().items():
            assert torch.equal(value, flat[re.sub(r'[._]', '', key.removeprefix('model.'))]), key
    again = DenseBackbone(name)
    report = vitzoo.load_checkpoint(again, wrapper.state_dict())
    assert unchanged(again, wrapper.state_dict()) and not (report.renamed or report.dropped or report.new)


def test_timm_models_with_a_body_of_their_own():
    for model in hollow('tresnet_m'), hollow('tresnet_m', features_only=True):
        report = vitzoo.load_checkpoint(model, hollow('tresnet_m').state_dict())
        assert len(report.loaded) == len(model.state_dict()) and not report.new


def test_head_of_a_timm_model():
    source, model = timm.create_model('resnet10t', num_classes=7), timm.create_model('resnet10t')
    before = snapshot(model)
    with pytest.raises(ValueError, match=r'7 classes, the model 1000'):
        vitzoo.load_checkpoint(model, source.state_dict())
    assert unchanged(model, before)
    report = vitzoo.load_checkpoint(model, source.state_dict(), reset_head=True)
    assert report.new == report.dropped == ['fc.weight', 'fc.bias']
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight) and torch.equal(model.fc.weight, before['fc.weight'])
    assert vitzoo.load_checkpoint(timm.create_model('resnet10t', num_classes=0), source.state_dict()).dropped == ['fc.weight', 'fc.bias']


@pytest.mark.parametrize('change, message', [
    (lambda s: without(s, 'layer2.0.conv1.weight'), r'does not fit resnet10t: 1 missing \(layer2\.0\.conv1\.weight\)'),
    (lambda s: {**s, 'layer2.7.conv1.weight': torch.zeros(1)}, r'1 unexpected \(layer2\.7\.conv1\.weight\)'),
    (lambda s: {**s, 'layer2.0.conv1.weight': torch.zeros(1, 2, 3, 3)}, r'another shape, such as layer2\.0\.conv1\.weight'),
])
def test_misfit_of_a_timm_model_changes_nothing(change, message):
    model = timm.create_model('resnet10t')
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, change(timm.create_model('resnet10t').state_dict()))
    assert unchanged(model, before)


@pytest.mark.parametrize('name, conv', [(NAME, 'stem.0'), ('resnet10t', 'conv1.0')])
def test_image_channels_are_adapted_by_timm_s_rule(name, conv, tmp_path):
    source = timm.create_model(name)
    gray = timm.create_model(name, in_chans=1)
    report = vitzoo.load_checkpoint(gray, source.state_dict())
    assert report.adapted == [f'{conv}.weight'] and not report.new
    torch.testing.assert_close(gray.get_submodule(conv).weight, source.get_submodule(conv).weight.sum(1, keepdim=True))
    before = snapshot(source)
    with pytest.raises(ValueError, match='another shape'):  # there is no rule for the way back
        vitzoo.load_checkpoint(source, gray.state_dict())
    assert unchanged(source, before)


def test_prefix(source):
    state = {**{f'student.{name}': value for name, value in publish(source).items()}, 'teacher.x': torch.zeros(1)}
    model = new_model()
    report = vitzoo.load_checkpoint(model, state, prefix='student')
    assert unchanged(model, source.state_dict()) and report.num_others == 1 and 'teacher.x' in report.dropped
    with pytest.raises(ValueError, match=r"nothing under prefix 'pupil\.'; its keys start with"):
        vitzoo.load_checkpoint(model, state, prefix='pupil.')


# ---- hostile and damaged files

class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize('where', ['alone', 'beside the weights', 'old format', 'plain pickle'])
def test_nothing_in_a_pickle_is_executed(where, source, tmp_path):
    trace, path = tmp_path / 'executed', tmp_path / 'checkpoint.pth'
    content = Payload(trace) if where == 'alone' else {'model': publish(source), 'args': Payload(trace)}
    if where == 'plain pickle':
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=where != 'old format')
    model = new_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match='Nothing in it was executed'):
        vitzoo.load_checkpoint(model, path)
    with pytest.raises(ValueError, match='Nothing in it was executed'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    with pytest.raises(ValueError, match='state dict alone') as refusal:
        DenseBackbone(NAME, checkpoint_path=path)
    assert 'pathlib.' in str(refusal.value)
    assert not trace.exists() and unchanged(model, before)
    torch.load(path, weights_only=False) if where != 'plain pickle' else pickle.loads(path.read_bytes())
    assert trace.exists(), 'the attack itself does not work'


def test_configuration_nodes_of_training_scripts_stay_inert(source, x, tmp_path, monkeypatch):
    """yacs is not needed to read what a script pickled with it."""
    yacs, config = ModuleType('yacs'), ModuleType('yacs.config')
    CfgNode = type('CfgNode', (dict,), {'__module__': 'yacs.config'})
    config.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', yacs)
    monkeypatch.setitem(sys.modules, 'yacs.config', config)
    node = CfgNode(MODEL=CfgNode(TYPE='stvit'))
    node.__dict__['__immutable__'] = True
    torch.save({'model': publish(source), 'config': node}, tmp_path / 'checkpoint.pth')
    monkeypatch.delitem(sys.modules, 'yacs.config')
    monkeypatch.delitem(sys.modules, 'yacs')
    model = new_model()
    vitzoo.load_checkpoint(model, tmp_path / 'checkpoint.pth')
    assert 'yacs' not in sys.modules
    with torch.no_grad():
        assert torch.equal(model(x), source(x))


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('kept', [0, 5, 100, 0.5, 0.99, -1], ids=str)
def test_truncated_file(suffix, kept, source, tmp_path):
    path = tmp_path / f'checkpoint{suffix}'
    save_file(publish(source), path) if suffix == '.safetensors' else torch.save(publish(source), path)
    data = path.read_bytes()
    path.write_bytes(data[:int(len(data) * kept) if isinstance(kept, float) else kept])
    model = new_model()
    before = snapshot(model)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        vitzoo.load_checkpoint(model, path)
    assert unchanged(model, before)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('data', [b'Not found\n' * 50, b'<!DOCTYPE html><html>', b'\x00' * 64, b'\xff' * 64, b'PK\x03\x04' + b'\x00' * 64])
def test_file_of_something_else(suffix, data, tmp_path):
    path = tmp_path / f'checkpoint{suffix}'
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        vitzoo.load_checkpoint(new_model(), path)


def test_no_file(tmp_path):
    for path in (tmp_path, tmp_path / 'nothing.pth'):
        with pytest.raises(ValueError, match='no such checkpoint file'):
            vitzoo.load_checkpoint(new_model(), path)


# ---- timm's ways in

def test_timm_takes_a_local_file(source, x, tmp_path):
    torch.save({'model': publish(source)}, tmp_path / 'checkpoint.pth')
    save_file(publish(source), tmp_path / 'checkpoint.safetensors')
    options = dict(pretrained=True, **SCALES)
    for file in ('checkpoint.pth', 'checkpoint.safetensors'):
        overlay = dict(file=str(tmp_path / file))
        with torch.no_grad():
            assert torch.equal(timm.create_model(NAME, pretrained_cfg_overlay=overlay, **options).eval()(x), source(x))
            other = timm.create_model(NAME, pretrained_cfg_overlay=overlay, num_classes=3, **options).eval()
            assert torch.equal(other.forward_features(x), source.forward_features(x)) and other(x).shape == (2, 3)
            features = timm.create_model(NAME, pretrained_cfg_overlay=overlay, features_only=True, **options).eval()
            assert torch.equal(features(x)[3], source.forward_intermediates(x, intermediates_only=True)[3])
            gray = timm.create_model(NAME, pretrained_cfg_overlay=overlay, in_chans=1, **options).eval()
            image = x[:, :1]
            torch.testing.assert_close(gray(image), source(image.expand(-1, 3, -1, -1)))  # timm sums the kernels over the channels


@pytest.mark.parametrize('misfit', ['missing', 'unexpected', 'shape', 'semantic tokens'])
def test_timm_refuses_a_file_that_does_not_fit(misfit, source, tmp_path):
    torch.save(MISFITS[misfit][0](publish(source)), tmp_path / 'checkpoint.pth')
    overlay = dict(file=str(tmp_path / 'checkpoint.pth'))
    with pytest.raises(ValueError, match=r'svit_micro|stvit_small'):
        timm.create_model(NAME, pretrained=True, pretrained_cfg_overlay=overlay, **SCALES)


@pytest.mark.parametrize('name', ['svit_small', 'svit_base', 'svit_large', 'svit_small.in1k_384'])
def test_weights_on_a_share_are_named(name):
    where, how = r'https://drive\.google\.com/\S+ .*stvit-\w+-\d+\.pth', r'pretrained_cfg_overlay=dict\(file=.*load_checkpoint'
    with pytest.raises(ValueError, match=f'{where}.*{how}'):
        timm.create_model(name, pretrained=True)


def test_weights_that_do_not_exist_are_not_promised():
    with pytest.raises(ValueError, match='None were published'):
        timm.create_model('svit_micro', pretrained=True)


def test_timm_lists_as_pretrained_only_what_can_be_downloaded():
    assert timm.list_models('svit_*') and not timm.list_models('svit_*', pretrained=True) and not timm.list_pretrained('svit_*')
    assert timm.create_model('svit_small.in1k_384').pretrained_cfg['input_size'] == (3, 384, 384)


def test_load_copies(source):
    state = publish(source)
    model = new_model()
    vitzoo.load_checkpoint(model, state)
    before = copy.deepcopy(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(state[name], before[name]) for name in state)
