"""The form in which models are exported."""
import copy
from pathlib import Path

import pytest
import timm
import torch
import zoo
from timm.layers import LayerScale
from torch import nn

import vitzoo
from vitzoo.export.deploy import RUNTIMES, deploy_form
from vitzoo.export.watch import watch
from vitzoo.layers import tables
from vitzoo.profiling.counters import count_traffic, on_meta


@pytest.mark.parametrize('name', zoo.MICRO)
def test_deployed_model_computes_the_same(name):
    model, x = zoo.build(name), torch.randn(2, 3, 224, 224)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed = deploy_form(model)
    with torch.inference_mode():
        expected, found = model(x), deployed(x)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_module_in_two_places_stays_one():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = self.second = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.first(x) + self.second(x)

    model, x = Twice(), torch.randn(1, 2, 4, 4)
    deployed = deploy_form(model)
    assert deployed.first is deployed.second and type(deployed.first) is not nn.AdaptiveAvgPool2d
    torch.testing.assert_close(deployed(x), model(x))


@pytest.mark.slow
@pytest.mark.parametrize('runtime', RUNTIMES)
@pytest.mark.parametrize('name', zoo.FIRST.values())
def test_torch_export_reads_a_model_with_a_module_in_two_places_as_any_other(name, runtime):
    class Twice(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.first = self.second = model

        def forward(self, x):
            return self.first(x)

    x = torch.randn(1, 3, 64, 64)
    deployed = deploy_form(vitzoo.DenseBackbone(name).eval(), runtime, x)
    once, twice = (torch.export.export(model, (x,), strict=False) for model in (deployed, Twice(deployed)))
    assert [str(node.target) for node in twice.graph.nodes if node.op == 'call_function'] == [
        str(node.target) for node in once.graph.nodes if node.op == 'call_function']
    with torch.no_grad():
        for found, expected in zip(twice.module()(x), deployed(x), strict=True):
            assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_parametrised_layer_becomes_plain_and_its_original_stays():
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    nn.utils.parametrizations.orthogonal(model[0])
    deployed = deploy_form(model)
    assert type(deployed[0]) is nn.Linear and nn.utils.parametrize.is_parametrized(model[0], 'weight')
    torch.testing.assert_close(deployed(x), model(x))


def test_unknown_runtime_is_refused():
    for refuse in lambda: deploy_form(nn.Identity(), 'abacus'), lambda: vitzoo.deploy(nn.Identity(), 8, 'abacus'):
        with pytest.raises(ValueError, match="runtime='abacus': expected 'pytorch', 'onnx' or 'onnx-int8'"):
            refuse()


def as_list(outputs):
    return [outputs] if isinstance(outputs, torch.Tensor) else outputs


def check_deployed(model, size, runtime='pytorch'):
    """The same outputs for other images than those that `deploy` looked at, nothing left to fold, and no more work than before."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    deployed, x = vitzoo.deploy(model, size, runtime), torch.randn(2, 3, *size)
    with torch.inference_mode():
        pairs = list(zip(as_list(deployed(x)), as_list(model(x)), strict=True))
    for found, expected in pairs:
        assert found.shape == expected.shape and (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not deployed.training and not any(p.requires_grad for p in deployed.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not watch(deployed, x).pairs
    if runtime == 'pytorch':
        old, new = (count_traffic(on_meta(m), x.to('meta')) for m in (model, deployed))
        assert new.operators <= old.operators and new.bytes <= old.bytes
    return deployed


@pytest.mark.parametrize('form', zoo.first_quick(['classifier', 'features', 'dense']))
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in zoo.FIRST.values(), zoo.MICRO))
def test_every_model(name, form):
    model = vitzoo.DenseBackbone(name).eval() if form == 'dense' else zoo.build(name, features_only=form == 'features')
    size = (72, 136) if form == 'dense' else (112, 144)
    deployed = check_deployed(model, size)
    assert not any(isinstance(module, LayerScale) for module in deployed.modules())
    x = torch.randn(1, 3, 80, 96)
    if not hasattr(model, 'min_input_size') or min(model.min_input_size) <= 80:
        with torch.inference_mode():
            expected = as_list(model(x))
            try:
                found = as_list(deployed(x))
            except ValueError as e:
                assert 'vitzoo.deploy' in str(e)
            else:
                for got, want in zip(found, expected, strict=True):
                    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'svit_micro', zoo.FIRST.values()))
def test_form_to_be_quantised_has_no_pointwise_convolution_more(name):
    """But for what is under a hundredth of the multiply-adds, such as gates, where 8 bits do not pay."""
    model, image = zoo.build(name), torch.randn(1, 3, 112, 144)

    @torch.no_grad()
    def pointwise(m):
        macs = []
        for layer in m.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
                layer.register_forward_hook(lambda layer, args, out: macs.append(out.numel() * layer.in_channels))
        m(image)
        return sum(macs)
    total = vitzoo.profile(model, (112, 144)).macs
    assert pointwise(check_deployed(model, (112, 144), 'onnx-int8')) - pointwise(model) < total / 100


TIMM = {
    'convnext_atto': dict(depths=(1, 1, 1, 1)), 'cait_xxs24_224': dict(depth=1), 'xcit_nano_12_p16_224': dict(depth=1),
    'resnet10t': {}, 'mobilenetv4_conv_small': {}, 'fastvit_t8': {}, 'repvit_m0_9': {}, 'levit_128s': {}, 'edgenext_xx_small': {},
    'vit_tiny_patch16_224': dict(depth=2, init_values=0.1, img_size=64),
    'vit_tiny_patch16_dinov3_qkvb': dict(depth=2), 'beit_base_patch16_224': dict(depth=1, embed_dim=192, num_heads=3),
    'swin_tiny_patch4_window7_224': dict(depths=(1, 1, 1, 1)), 'inception_next_atto': {}, 'swiftformer_xs': {},
}
QUICK = ('convnext_atto', 'cait_xxs24_224', 'vit_tiny_patch16_224')


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in QUICK, TIMM))
def test_timm_s_models(name):
    if not timm.is_model(name):
        pytest.skip(f'this timm has no {name}')
    model = timm.create_model(name, **TIMM[name]).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if 'gamma' in key:
                value.uniform_(0.3, 0.7)
    size = model.pretrained_cfg['input_size'][1:] if 'img_size' not in TIMM[name] else (64, 64)
    deployed = check_deployed(model, size if 'input_size' in model.pretrained_cfg else (64, 64))
    if name not in ('xcit_nano_12_p16_224', 'swiftformer_xs'):  # which also scale what no single layer gives
        assert not [key for key, _ in deployed.named_parameters() if 'gamma' in key and 'grn' not in key]


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in ('eva02_tiny_patch14_224', 'stvit_deit_micro'), [
    'vit_tiny_patch16_224', 'eva02_tiny_patch14_224', *zoo.FIRST.values()]))
def test_tables_are_stored(name, monkeypatch):
    """A forward at the size resamples nothing and makes no table, whatever there was in between."""
    ours = name in zoo.MICRO
    model = zoo.build(name) if ours else timm.create_model(name, depth=1, dynamic_img_size=True).eval()
    x = torch.randn(1, 3, *((112, 144) if ours else (112, 224)))
    with torch.inference_mode():
        expected = model(x)
    deployed = vitzoo.deploy(model, tuple(x.shape[2:]))

    def fail(*args, **kwargs):
        raise AssertionError('work for the size')
    for owner, attribute in (nn.functional, 'interpolate'), (tables, '_to_tensor'):
        monkeypatch.setattr(owner, attribute, fail)
    if getattr(deployed, 'rope', None) is not None:
        monkeypatch.setattr(deployed.rope.rope, 'get_embed', fail)
    with torch.inference_mode():
        torch.testing.assert_close(deployed(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_positions_stored_for_one_size_refuse_another():
    model = timm.create_model('vit_tiny_patch16_224', depth=1, dynamic_img_size=True)
    with pytest.raises(ValueError, match='Image of 64x64: .*stored for 96x128.*vitzoo.deploy'):
        vitzoo.deploy(model, (96, 128))(torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="does not take images"):
        vitzoo.deploy(timm.create_model('vit_tiny_patch16_224', depth=1), 96)


@pytest.mark.parametrize('method', zoo.first_quick(['evit', 'tome', 'expedite']))
def test_reduced_models(method):
    model = timm.create_model('vit_tiny_patch16_224', init_values=0.5, depth=7).eval()
    options = {'evit': dict(locations=(3,)), 'tome': dict(r=5), 'expedite': {}}[method]
    deployed = check_deployed(vitzoo.reduce_tokens(model, method, **options), (224, 224))
    assert not any(isinstance(module, LayerScale) for module in deployed.modules())


class Auxiliary(nn.Module):
    """With a head for training, and a convolution whose result two others read."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head, self.auxiliary = nn.Linear(4, 5), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5))
        self.read_twice = False

    def forward(self, x):
        x = self.conv(x)
        y = self.norm(x).mean((2, 3)) + (x.mean((2, 3)) if self.read_twice else 0)
        return (self.head(y), self.auxiliary(y)) if self.training else self.head(y)


def test_auxiliary_head_is_dropped():
    model = Auxiliary().eval()
    deployed = check_deployed(model, (8, 8))
    assert {name.partition('.')[0] for name, _ in deployed.named_parameters()} == {'conv', 'head'}
    with pytest.raises(ValueError, match='8x8 alone'):
        deployed.train()(torch.randn(1, 3, 8, 8))


def test_norm_stays_where_the_layer_before_it_is_read_elsewhere_or_watched():
    read, hooked = Auxiliary().eval(), Auxiliary().eval()
    read.read_twice = True
    hooked.conv.register_forward_hook(lambda module, args, out: 1.5 * out)
    for model in read, hooked:
        nn.init.uniform_(model.norm.running_mean)
        assert type(check_deployed(model, (8, 8)).norm) is nn.BatchNorm2d


def test_ours_with_a_hook_is_refused_by_name():
    model = zoo.build('svit_micro')
    model.stages[0].blocks[0].mlp.fc1.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(ValueError, match=r'stages\.0\.blocks\.0\.mlp\.fc1'):
        vitzoo.deploy(model, 64)


def test_deployed_model_is_deployed_copied_and_saved():
    model = vitzoo.deploy(timm.create_model('cait_xxs24_224', depth=1), 224)
    x = torch.randn(1, 3, 224, 224)
    again = vitzoo.deploy(copy.deepcopy(model), 224)
    torch.testing.assert_close(again(x), model(x))


@pytest.mark.parametrize('options, becomes', [
    (dict(kernel_size=4, stride=4), True), (dict(kernel_size=(2, 3), stride=(2, 3), bias=False), True), (dict(kernel_size=1), False),
    (dict(kernel_size=4, stride=2), False), (dict(kernel_size=4, stride=4, padding=1), False),
    (dict(kernel_size=4, stride=4, groups=2), False)])
def test_patch_embedding_is_a_product_for_8_bits(options, becomes):
    model, x = nn.Sequential(nn.Conv2d(4, 6, **options)), torch.randn(3, 4, 13, 18)
    deployed = deploy_form(model, 'onnx-int8')
    assert (type(deployed[0]) is not nn.Conv2d) == becomes and type(deploy_form(model)[0]) is nn.Conv2d
    torch.testing.assert_close(deployed(x), model(x))


def test_no_forward_asks_whether_it_is_exported():
    """What export wants written otherwise is in `deploy` methods."""
    root = Path(vitzoo.__file__).parent
    files = [*(root / 'models').glob('*.py'), *(root / 'layers').glob('*.py')]
    assert files and not [file.name for file in files if 'is_exporting' in file.read_text()]
