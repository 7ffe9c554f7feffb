"""What is special about CAS-ViT: additive attention and local means against plain loops, its two classifiers, what folds, its numbers."""
import pytest
import timm
import torch
from torch import nn

import vitzoo
from vitzoo.export.deploy import RUNTIMES
from vitzoo.models.cas_vit import AdditiveAttention, Block, DeployedBlock, Gates, mean_around

OFFSETS = [(i, j) for i in range(3) for j in range(3)]


def randomise_norms(module):
    """Batch norms as training leaves them."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, 0, 0.3)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.weight, 1, 0.2)
            nn.init.normal_(norm.bias, 0, 0.2)
    return module.eval()


def double(kind, *args):
    return randomise_norms(kind(*args, dtype=torch.float64))


def plain_norm(norm, x):
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def plain_linear(linear, x):
    y = x @ linear.weight.T
    return y if linear.bias is None else y + linear.bias


def plain_depthwise(conv, x):
    """Position by position and tap by tap of a map (B, H, W, C)."""
    B, H, W, C = x.shape
    rows = []
    for r in range(H):
        for c in range(W):
            near = [conv.weight[:, 0, i, j] * x[:, r + i - 1, c + j - 1] for i, j in OFFSETS if 0 <= r + i - 1 < H and 0 <= c + j - 1 < W]
            rows.append(conv.bias + sum(near))
    return torch.stack(rows, 1).reshape(B, H, W, C)


def plain_gates(gates, x):
    near = plain_norm(gates.norm, plain_depthwise(gates.dwconv, x)).clamp(min=0)
    x = x / (1 + torch.exp(-near @ gates.position.weight[0]))[..., None]
    mean = torch.stack([image.reshape(-1, image.shape[-1]).sum(0) / (image.shape[0] * image.shape[1]) for image in x])
    return x / (1 + torch.exp(-mean @ gates.channel.weight.T))[:, None, None]


def plain_attention(attn, x):
    C = x.shape[-1]
    rows = attn.qkv.weight
    q, k, v = (x @ rows[i * C:(i + 1) * C].T for i in range(3))
    return plain_depthwise(attn.proj, plain_depthwise(attn.context, plain_gates(attn.gates_q, q) + plain_gates(attn.gates_k, k)) * v)


def plain_block(block, x):
    local = plain_norm(block.local.norm, plain_linear(block.local.fc1, x))
    x = x + plain_linear(block.local.fc2, nn.functional.gelu(plain_depthwise(block.local.dwconv, local)))
    x = x + plain_attention(block.attn, plain_norm(block.norm1, x))
    return x + plain_linear(block.mlp.fc2, nn.functional.gelu(plain_linear(block.mlp.fc1, plain_norm(block.norm2, x))))


@pytest.mark.parametrize('size', [(4, 5), (1, 3), (2, 1), (1, 1)])
@pytest.mark.parametrize('kind, args, plain', [
    (Gates, (6,), plain_gates), (AdditiveAttention, (6,), plain_attention), (Block, (6, 2., 0.), plain_block),
], ids=lambda value: getattr(value, '__name__', ''))
def test_against_plain_loops(kind, args, plain, size):
    module = double(kind, *args)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    y, expected = module(x), plain(module, x)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    inputs = [x, *module.parameters()]
    direction = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, direction), torch.autograd.grad(expected, inputs, direction),
                               rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('size, window', [((6, 7), (3, 3)), ((6, 7), (2, 4)), ((5, 9), (8, 4)), ((9, 2), (4, 8)), ((3, 3), (3, 2))])
def test_mean_around_against_plain_loops(size, window):
    (H, W), (h, w) = size, window
    x = torch.randn(2, 3, H, W, dtype=torch.float64)
    found = mean_around(x, window)
    assert found.shape == x.shape
    h, w = min(h, H), min(w, W)
    for i in range(H):
        for j in range(W):
            top, left = (min(max(n - (size - 1) // 2, 0), end - size) for n, size, end in ((i, h, H), (j, w, W)))
            torch.testing.assert_close(found[..., i, j], x[:, :, top:top + h, left:left + w].mean((2, 3)))


@pytest.mark.parametrize('window', [None, (3, 4), (5, 9)])
def test_mean_of_a_map_that_fits_is_the_global_one(window):
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(mean_around(x, window), x.mean((2, 3), keepdim=True))


def test_local_means_do_not_see_far():
    x = torch.randn(1, 16, 16, 6)
    other = x.clone()
    other[:, 10:] += 1
    gates = randomise_norms(Gates(6, (4, 4)))
    with torch.no_grad():
        torch.testing.assert_close(gates(x)[:, :6], gates(other)[:, :6], rtol=0, atol=0)
        gates.window = None
        assert (gates(x)[:, :6] - gates(other)[:, :6]).abs().max() > 1e-3


def build_pair(**kwargs):
    """`cas_vit_micro` as it is and with an option, on the same weights."""
    plain, other = (timm.create_model('cas_vit_micro', num_classes=5, dtype=torch.float64, **options) for options in ({}, kwargs))
    randomise_norms(plain)
    other.load_state_dict(plain.state_dict())
    return plain, other.eval()


@pytest.mark.parametrize('size, same', [((64, 64), True), ((33, 50), True), ((96, 96), False), ((64, 128), False), ((160, 40), False)])
def test_local_pool_acts_on_larger_images_alone(size, same):
    plain, local = build_pair(local_pool=64)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        difference = (plain(x) - local(x)).abs().max() / plain(x).abs().max()
    assert difference <= 1e-12 if same else difference > 1e-7


def test_local_windows_are_those_of_the_training_size():
    model = timm.create_model('cas_vit_micro', local_pool=(224, 100))
    windows = [{gates.window for gates in stage.modules() if isinstance(gates, Gates)} for stage in model.stages]
    assert windows == [{(56, 25)}, {(28, 13)}, {(14, 7)}, {(7, 4)}]


@pytest.mark.parametrize('runtime', RUNTIMES)
@pytest.mark.parametrize('kwargs', [{}, dict(local_pool=64), dict(distilled=True), dict(global_pool='max')], ids=str)
def test_every_batch_norm_folds(kwargs, runtime):
    model = randomise_norms(timm.create_model('cas_vit_micro', num_classes=7, **kwargs))
    folded = vitzoo.deploy(model, (96, 80), runtime)
    kinds = [type(module) for module in folded.modules()]
    assert kinds.count(nn.BatchNorm2d) == (kwargs.get('global_pool') == 'max')  # a maximum does not pass a norm
    assert kinds.count(DeployedBlock) == (0 if runtime == 'pytorch' else 5)
    heads = [module for name, module in folded.named_modules() if name.startswith('head.') and isinstance(module, nn.Linear)]
    assert len(heads) == 1
    x = torch.randn(2, 3, 96, 80)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(folded(x), y, rtol=0, atol=1e-5 * y.abs().max().item())
    products = sum(isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1 for module in folded.modules())
    assert products == {'pytorch': 0, 'onnx-int8': 5 * 4, 'onnx': 5 * (4 + 7)}[runtime]  # four gates a block are not worth 8 bits


def test_distilled_model_has_two_classifiers():
    model = timm.create_model('cas_vit_micro', num_classes=5, distilled=True)
    x = torch.randn(2, 3, 64, 64)
    first, second = model.get_classifier()
    nn.init.normal_(second.bias)
    model.eval()
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model(x), (first(features) + second(features)) / 2)
    model.set_distilled_training()
    assert isinstance(model(x), torch.Tensor)  # in training alone
    pair = model.train()(x)
    assert [y.shape for y in pair] == [(2, 5)] * 2 and not torch.equal(*pair)
    model.reset_classifier(3)
    assert [y.shape for y in model(x)] == [(2, 3)] * 2
    model.set_distilled_training(False)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 192)


def test_file_with_two_classifiers_gives_one_the_same_logits(tmp_path):
    trained = randomise_norms(timm.create_model('cas_vit_micro', num_classes=5, distilled=True))
    nn.init.normal_(trained.head.fc_dist.bias)
    torch.save(trained.state_dict(), tmp_path / 'x.pth')
    one, two = (timm.create_model('cas_vit_micro', num_classes=5, distilled=distilled).eval() for distilled in (False, True))
    x = torch.randn(2, 3, 64, 64)
    for model in one, two:
        vitzoo.load_checkpoint(model, tmp_path / 'x.pth')
        with torch.no_grad():
            torch.testing.assert_close(model(x), trained(x))


def test_new_classifier_keeps_the_norm_of_the_features():
    model = randomise_norms(timm.create_model('cas_vit_micro', num_classes=5))
    norm = model.head.norm
    model.reset_classifier(3)
    assert model.head.norm is norm


def test_gates_group_nothing():
    with pytest.raises(ValueError, match='cas_vit_micro has no token maps'):
        vitzoo.token_map(timm.create_model('cas_vit_micro'), torch.randn(3, 64, 64))


def test_local_perception_is_never_dropped():
    block = Block(6, 2., drop_path=0.999).train()
    nn.init.zeros_(block.local.fc2.weight)
    nn.init.ones_(block.local.fc2.bias)
    torch.manual_seed(0)
    x = torch.randn(4, 3, 3, 6)
    torch.testing.assert_close(block(x), x + 1)


@pytest.mark.parametrize('kwargs, message', [
    (dict(local_pool=0), r'local_pool=.*positive'),
    (dict(local_pool=(64, 64, 64)), r'local_pool=.*pair'),
    (dict(embed_dims=(32, 64, 128)), r'one value per stage|embed_dims'),
    (dict(depths=(1, 1, 0, 1)), r'depths=\(1, 1, 0, 1\)'),
    (dict(mlp_ratio=-1.), r'mlp_ratio=-1.0'),
], ids=str)
def test_numbers_that_do_not_fit_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('cas_vit_micro', **kwargs)


@pytest.mark.parametrize('name, both, one', [
    ('cas_vit_xs', 3_200_700, 2_979_700), ('cas_vit_s', 5_764_224, 5_507_224),
    ('cas_vit_m', 12_421_520, 12_036_520), ('cas_vit_t', 21_763_120, 21_250_120),
])
def test_published_number_of_parameters(name, both, one):
    """Published with two classifiers."""
    with torch.device('meta'):
        for distilled, params in (True, both), (False, one):
            assert sum(p.numel() for p in timm.create_model(name, distilled=distilled).parameters()) == params


@pytest.mark.parametrize('name, published, dims, depths', [
    ('cas_vit_xs', 0.554, (48, 56, 112, 220), (2, 2, 4, 2)), ('cas_vit_s', 0.923, (48, 64, 128, 256), (3, 3, 6, 3)),
    ('cas_vit_m', 1.874, (64, 96, 192, 384), (3, 3, 6, 3)), ('cas_vit_t', 3.579, (96, 128, 256, 512), (3, 3, 6, 3)),
])
def test_published_operations_count_batch_norms_and_means(name, published, dims, depths):
    """fvcore: two operations an element and norm, one an element and mean; five norms and two means a block."""
    with torch.device('meta'):
        found = vitzoo.profile(timm.create_model(name).eval(), (3, 224, 224)).macs
    norms = dims[0] // 2 * 112 ** 2  # of the stem's first convolution
    for i, (dim, depth) in enumerate(zip(dims, depths, strict=True)):
        size = dim * (56 >> i) ** 2
        norms += (1 + 5 * depth) * size
        found += 2 * depth * size
    assert found + 2 * norms == pytest.approx(published * 1e9, rel=1e-3)
