import subprocess
import sys

import golden
import pytest
import timm
import torch

pytest.importorskip('mmengine')
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402

from vitzoo.dense import DenseBackbone  # noqa: E402
from vitzoo.mm import Backbone  # noqa: E402


def same(module, state):
    own = module.state_dict()
    return own.keys() == state.keys() and all(torch.equal(v, state[k]) for k, v in own.items())


@pytest.fixture
def logged(monkeypatch):
    lines = []
    monkeypatch.setattr('vitzoo.mm.backbone.print_log', lambda message, logger=None: lines.append(message))
    return lines


def test_is_a_dense_backbone_with_a_tuple():
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='vitzoo.Backbone', model_name='svit_micro', out_indices=(1, 3), out_norm='layer')).eval()
    dense = DenseBackbone('svit_micro', (1, 3), out_norm='layer').eval()
    dense.load_state_dict(backbone.state_dict())
    x = torch.rand(1, 3, 65, 97)
    with torch.inference_mode():
        maps = backbone(x)
        assert isinstance(maps, tuple)
        torch.testing.assert_close(maps, tuple(dense(x)), rtol=0, atol=0)
    assert (backbone.out_channels, backbone.strides) == ((64, 192), (8, 32))


def test_tokens_are_reduced_as_a_config_says(tmp_path):
    weights = timm.create_model('deit_tiny_patch16_224', depth=3, embed_dim=48, num_heads=3).state_dict()
    torch.save(weights, tmp_path / 'classifier.pth')
    config = Config.fromstring(f"""backbone = dict(
        type='vitzoo.Backbone', model_name='deit_tiny_patch16_224', depth=3, embed_dim=48, num_heads=3, frozen_stages=1,
        init_cfg=dict(type='Pretrained', checkpoint={str(tmp_path / 'classifier.pth')!r}),
        reduction=dict(method='expedite', location=0, clusters=[2, 3]))""", '.py')
    backbone = MODELS.build(config.backbone)
    backbone.init_weights()
    assert all(torch.equal(v, weights[k]) for k, v in backbone.model.state_dict().items())
    assert backbone.model.reduction.clusters == (2, 3)
    assert [m.shape[2:] for m in backbone(torch.rand(1, 3, 65, 97))] == [(17, 25), (9, 13), (5, 7), (3, 4)]


def test_golden_case(tmp_path):
    """A published dense backbone in a config: its file, as part of a detector's, gives its maps. All of them: models/test_golden.py."""
    facts, published = golden.load_case('biformer/biformer_tiny-dense-pad-232x312.npz')
    state = golden.make_state_dict(facts['entries'], facts['rescale'])
    torch.save({'state_dict': {f'backbone.{key}': value for key, value in state.items()}}, tmp_path / 'detector.pth')
    options = {key: value for key, value in facts['kwargs'].items() if key == 'n_win'}
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'detector.pth'))
    backbone = MODELS.build(dict(type='vitzoo.Backbone', model_name=golden.our_name(facts), init_cfg=init_cfg, **options)).eval()
    backbone.init_weights()
    with torch.inference_mode():
        maps = backbone(golden.make_input(facts['seed'], facts['shape']))
    found = {f'feat{i}': m for i, m in enumerate(maps)} | {f'feat{i}_mean': m.mean((2, 3)) for i, m in enumerate(maps)}
    for name, value in published.items():
        assert golden.error(golden.take(found[name], facts['index'].get(name, ':')), value) < golden.limit(facts), name


def test_full_path_resolves():
    assert MODELS.get('vitzoo.mm.Backbone') is Backbone


FRESH = {
    'mmengine': 'from mmengine.registry import MODELS',
    'mmdet': 'from mmdet.registry import MODELS',
    'mmseg': 'from mmseg.registry import MODELS',
    'mmpretrain': 'from mmpretrain.registry import MODELS',
    'default scope': 'from mmengine.registry import MODELS, init_default_scope; init_default_scope("mmdet")',
    'custom_imports': '''
from mmengine.config import Config
from mmengine.registry import init_default_scope
Config.fromfile(r"{config}")
init_default_scope("mmdet")
from mmengine.registry import MODELS
''',
}


@pytest.mark.parametrize('scope', [s if s == 'custom_imports' else pytest.param(s, marks=pytest.mark.slow) for s in FRESH])
def test_builds_in_a_fresh_process(scope, tmp_path):
    """Without custom_imports mmdet and mmseg need mmcv's operators before they know of us: the start-up file of vitzoo.mm.enable."""
    if scope not in ('mmengine', 'default scope', 'custom_imports'):
        pytest.importorskip(scope)
    else:
        pytest.importorskip('mmdet')
    from vitzoo.mm.enable import _lines
    config = tmp_path / 'config.py'
    config.write_text("custom_imports = dict(imports=['vitzoo.mm'], allow_failed_imports=False)")
    code = '' if scope in ('mmengine', 'custom_imports') else _lines()
    code += FRESH[scope].format(config=config)
    if scope != 'custom_imports':
        code += '\nimport sys; assert "vitzoo" not in sys.modules'
    code += '\nprint("built", MODELS.build(dict(type="vitzoo.Backbone", model_name="svit_micro")).strides)'
    result = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert 'built (4, 8, 16, 32)' in result.stdout, result.stderr


def test_init_weights_keeps_loaded_weights(tmp_path):
    classifier = timm.create_model('svit_micro')
    torch.save(classifier.state_dict(), tmp_path / 'classifier.pth')
    backbone = Backbone('svit_micro', checkpoint_path=tmp_path / 'classifier.pth')
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    backbone.init_weights()
    assert same(backbone, before)
    wanted = classifier.state_dict()
    assert all(torch.equal(v, wanted[k.removeprefix('body.model.')]) for k, v in before.items())


@pytest.mark.parametrize('name', ['svit_micro', 'resnet10t'])
@pytest.mark.parametrize('kind, prefix', [
    ('classifier', None), ('backbone', None), ('detector', None), ('detector', 'backbone'), ('detector', 'backbone.'),
    ('student', 'student.')])
def test_init_cfg_loads_and_counts(tmp_path, logged, name, kind, prefix):
    source = Backbone(name, out_norm='layer')
    torch.nn.init.normal_(source.norm1.weight)
    state, out_norm = source.state_dict(), 'layer'
    if kind == 'classifier':
        saved = timm.create_model(name).state_dict()
        state, out_norm = {f'body.model.{k}': v for k, v in saved.items()}, False
    else:
        put = {'backbone': '', 'detector': 'backbone.', 'student': 'student.'}[kind]
        saved = {put + k: v for k, v in state.items()}
        if put:
            saved['neck.weight'] = torch.zeros(2)
    torch.save({'state_dict': saved, 'meta': {}}, tmp_path / 'weights.pth')
    init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    if prefix:
        init_cfg['prefix'] = prefix
    backbone = Backbone(name, out_norm=out_norm, init_cfg=init_cfg)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    assert not same(backbone, {k: state[k] for k in before}) and not logged  # nothing is read before
    backbone.init_weights()
    assert same(backbone, {k: state[k] for k in before})
    assert len(logged) == 1 and f'{len(before)} entries loaded' in logged[0] and '0 new' in logged[0]
    assert ('1 of other modules left out' in logged[0]) == (kind in ('detector', 'student'))


def test_init_weights_inside_a_detector_runs_once(tmp_path, logged):
    pytest.importorskip('mmdet')
    from mmengine.model import BaseModule

    class Whole(BaseModule):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    torch.save(timm.create_model('svit_micro').state_dict(), tmp_path / 'weights.pth')
    whole = Whole(Backbone('svit_micro', init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))))
    whole.init_weights()
    whole.backbone.init_weights()
    assert len(logged) == 1


@pytest.mark.parametrize('init_cfg, message', [
    (dict(type='Pretrained', checkpoint='missing.pth'), 'missing.pth'),
    (dict(type='Pretrained', checkpoint='weights.pth', prefix='student.'), 'student'),
])
def test_bad_checkpoints_change_nothing(tmp_path, monkeypatch, init_cfg, message):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model('svit_micro').state_dict(), 'weights.pth')
    backbone = Backbone('svit_micro', init_cfg=init_cfg)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        backbone.init_weights()
    assert same(backbone, before)


@pytest.mark.parametrize('kwargs, message', [
    (dict(pretrained='weights.pth'), 'checkpoint_path'),
    (dict(init_cfg=dict(type='Kaiming')), 'Pretrained'),
    (dict(init_cfg=dict(type='Pretrained')), 'Pretrained'),
])
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Backbone('svit_micro', **kwargs)
