"""What is special about DualToken-ViT: where information flows between map and global tokens, and the sizes of the reconstruction."""
import pytest
import timm
import torch
import zoo
from torch import nn

import vitzoo
from vitzoo.models.dualtoken_vit import BiDimAttn, Block, StepwiseDownsample, halve


def block(dim=16, heads=2, steps=1, **kwargs):
    options = dict(grid=(7, 7), conv_ratio=2., mlp_ratio=2., token_mlp='mix', init_values=None, drop_path=0.)
    return Block(dim, heads, steps, **{**options, **kwargs}).double().eval()


def inputs(B=2, H=14, W=14, C=16):
    return torch.randn(B, H, W, C, dtype=torch.float64), torch.randn(B, 49, C, dtype=torch.float64)


@torch.inference_mode()
def test_first_weight_is_that_of_the_image():
    """Without it what the map says of itself does not reach the tokens, nor any other place of the map but through the gates."""
    model, (x, tokens) = block(), inputs()
    _, with_image = model(x, tokens)
    assert not torch.allclose(with_image, model(torch.randn_like(x), tokens)[1])
    model.fusion[0] = 0
    first, second = (model(y, tokens)[1] for y in (x, torch.randn_like(x)))
    assert first.equal(second)


@torch.inference_mode()
def test_second_weight_is_that_of_the_tokens():
    model, (x, tokens) = block(), inputs()
    other = torch.randn_like(tokens)
    assert not torch.allclose(model(x, tokens)[0], model(x, other)[0])
    model.fusion[1] = 0
    for first, second in zip(model(x, tokens), model(x, other), strict=True):
        assert first.equal(second)


@torch.inference_mode()
def test_without_broadcast_it_is_a_convnext_block_and_an_mlp():
    model, (x, tokens) = block(), inputs()
    nn.init.zeros_(model.broadcast.proj.weight)
    nn.init.zeros_(model.broadcast.proj.bias)
    y = model.local(x)
    torch.testing.assert_close(model(x, tokens)[0], y + model.mlp(model.norm2(y)))


@torch.inference_mode()
def test_gates_of_zero_weights_halve_twice():
    gates = BiDimAttn(16)
    for layer in gates.channel_select, gates.spatial_select:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    x = torch.randn(2, 5, 6, 16)
    torch.testing.assert_close(gates(x), x / 4)


@torch.inference_mode()
def test_gates_against_the_definition():
    gates, x = BiDimAttn(16).double(), torch.randn(1, 3, 4, 16, dtype=torch.float64)
    y = gates.norm(x[0]).flatten(0, 1)
    whole = nn.functional.gelu(gates.global_reduce(y.mean(0)))
    for position, value in enumerate(x[0].flatten(0, 1)):
        local = nn.functional.gelu(gates.local_reduce(y[position]))
        expected = value * gates.channel_select(whole).sigmoid() * gates.spatial_select(torch.cat([local, whole])).sigmoid()
        torch.testing.assert_close(gates(x)[0].flatten(0, 1)[position], expected)


@torch.inference_mode()
def test_equal_positions_hear_the_same():
    model, (x, tokens) = block(), inputs()
    x = x[:, :1, :1].expand_as(x).flatten(1, 2)
    spread = model.broadcast(x, tokens)
    torch.testing.assert_close(spread, spread[:, :1].expand_as(spread))


@pytest.mark.parametrize('name', zoo.FAMILIES['dualtoken_vit'])
def test_steps_end_at_the_grid_of_tokens(name):
    """Two, one and no step at 224, and nothing is resampled there."""
    with torch.device('meta'):
        model = timm.create_model(name)
    for stage, side, steps in zip(model.stages, (28, 14, 7), (2, 1, 0), strict=True):
        for b in stage.blocks:
            assert len(b.downsample.convs) == steps and side / 2 ** steps == 7 and b.downsample.grid == (7, 7)
    assert model.tokens.shape[1] == 49


@torch.inference_mode()
def test_steps_against_the_definition():
    down, x = StepwiseDownsample(8, 2, (7, 7)).double(), torch.randn(2, 28, 28, 8, dtype=torch.float64)
    expected = x.permute(0, 3, 1, 2)
    for conv in down.convs:
        expected = nn.functional.avg_pool2d(conv(expected), 2)
    assert expected.shape[2:] == (7, 7)
    torch.testing.assert_close(down(x), expected.flatten(2).transpose(1, 2))


@pytest.mark.parametrize('size', [(5, 6), (4, 7), (1, 1)])
@torch.inference_mode()
def test_an_odd_side_is_halved_too(size):
    y = halve(torch.ones(2, *size, 3))
    assert y.shape == (2, -(-size[0] // 2), -(-size[1] // 2), 3)
    torch.testing.assert_close(y, torch.ones_like(y))  # weights sum to 1


@torch.inference_mode()
def test_order_of_global_tokens_is_nothing():
    """Permuting the places of tokens, of what the map is gathered to, and of the MLP over places leaves the map as it is."""
    model, (x, tokens) = block(), inputs()
    order = torch.randperm(49)
    expected, updated = model(x, tokens)
    model.downsample.register_forward_hook(lambda module, args, out: out[:, order])
    for layer, dims in ((model.token_mlp.fc1, (1,)), (model.token_mlp.fc2, (0,))):
        for d in dims:
            layer.weight.data = layer.weight.data.index_select(d, order)
    model.token_mlp.fc2.bias.data = model.token_mlp.fc2.bias.data[order]
    found, permuted = model(x, tokens[:, order])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(permuted, updated[:, order])


def cost(**options):
    with torch.device('meta'):
        found = vitzoo.profile(timm.create_model(options.pop('name', 'dualtoken_vit_small'), **options).eval(), (3, 224, 224))
    return found.params, found.macs


@pytest.mark.parametrize('name, params, macs', [('dualtoken_vit_tiny', 5.8e6, 0.5e9), ('dualtoken_vit_small', 11.4e6, 1.0e9)])
def test_published_sizes(name, params, macs):
    """MACs are those of the abstract; the parameters are remembered from the paper's table, which nobody has checked."""
    assert cost(name=name) == pytest.approx((params, macs), rel=0.02)


def test_normal_mlp_costs_more():
    """'a little extra FLOPs and parameters' (section on MLPs)."""
    mix, normal = cost(), cost(token_mlp='normal')
    assert 1 < normal[0] / mix[0] < 1.1 and 1 < normal[1] / mix[1] < 1.1


def test_every_token_of_the_grid_learns():
    model = zoo.build('dualtoken_vit_micro').train()
    model(torch.randn(2, 3, 64, 96)).square().mean().backward()
    assert (model.tokens.grad.abs().sum(-1) > 0).all()


@pytest.mark.parametrize('options, message', [
    (dict(token_mlp='both'), 'token_mlp='), (dict(global_size=0), 'global_size='), (dict(conv_ratio=(4., 4.)), 'conv_ratio='),
    (dict(mlp_ratio=(4., 0., 4.)), 'mlp_ratio='), (dict(projection=0), 'projection='), (dict(num_heads=(2, 5, 6)), 'num_heads='),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('dualtoken_vit_micro', **options)
