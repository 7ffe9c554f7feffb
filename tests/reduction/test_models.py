"""What token reduction promises for models: every kind of timm transformer, with every method."""
import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from choices import Choices
from kinds import ANY_SIZE, DEPTH, KINDS, OFF, ONE_SIZE, PAIRS, Looks, build, image, options, reduced
from timm.models import group_parameters
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm.utils import ModelEmaV2, ModelEmaV3
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitzoo
from vitzoo.profiling import on_meta
from vitzoo.reduction import METHODS
from vitzoo.reduction.methods.tome import match, merge_rows
from vitzoo.reduction.runner import embed, run_block

FEW = ('class_token', 'dinov3')
every_kind = pytest.mark.parametrize('kind', KINDS)
every_method = pytest.mark.parametrize('method', METHODS)


def pairs(quick):
    """Kinds and methods; those that are not quick run in the long suite."""
    return pytest.mark.parametrize('kind, method', [
        pytest.param(*pair, id='-'.join(pair), marks=() if quick(*pair) else pytest.mark.slow) for pair in PAIRS])


def every_kind_and_method(kind, method):
    """All kinds with the method that merges, moves and weighs tokens, two kinds with all methods, and of the rest each kind one."""
    return method == 'tome' or kind in FEW or (list(KINDS).index(kind) + list(METHODS).index(method)) % len(METHODS) == 0


most_pairs = pairs(every_kind_and_method)
some_pairs = pairs(lambda kind, method: method == 'tome' or kind in FEW)
few_pairs = pairs(lambda kind, method: kind in FEW)


def assert_same(a, b, tolerance=1e-6):
    a, b = ([x] if isinstance(x, torch.Tensor) else x for x in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * max(y.abs().max().item(), 1e-12) if y.numel() else 0)


def gradients(model):
    """One vector: a bias in front of a softmax has gradient zero, and what is there instead is rounding."""
    return torch.cat([torch.zeros(p.numel(), dtype=p.dtype) if p.grad is None else p.grad.flatten() for p in model.parameters()])


# ---- off is off

@every_kind
@pytest.mark.parametrize('what', ['keys', 'map'])
@torch.no_grad()
def test_blocks_that_are_taken_apart_compute_the_same(kind, what):
    model, plain, x = reduced(kind, Looks(what)).double(), build(kind).double(), image().double()
    final, maps = plain.forward_intermediates(x, norm=True)
    assert_same(model.forward_features(x), final, 1e-12)
    assert_same(model(x), plain(x), 1e-12)
    assert_same(model.forward_intermediates(x, norm=True)[1], maps, 1e-12)


@every_kind
@pytest.mark.parametrize('what', ['keys', 'map'])
def test_blocks_that_are_taken_apart_have_the_same_gradients(kind, what):
    model, plain = reduced(kind, Looks(what)).double(), build(kind).double()
    for m in (model, plain):
        m(image().double()).square().mean().backward()
    assert_same(gradients(model), gradients(plain), 1e-12)


@every_kind
@torch.no_grad()
def test_what_a_method_sees(kind):
    """Maps have rows that sum to 1, and `rows` are rows of the map."""
    seen = []

    class Keeps(Looks):
        def mid(self, model, i, tokens, what):
            seen.append(what)
            return tokens
    for what in ('keys', 'map'):
        reduced(kind, Keeps(what)).double()(image().double())
    for keys, whole in zip(seen[:DEPTH], seen[DEPTH:], strict=True):
        assert whole.map.shape[1:] == (whole.q.shape[1], whole.q.shape[2], whole.k.shape[2])
        assert_same(whole.map.sum(-1), torch.ones(whole.map.shape[:-1]).double(), 1e-12)
        assert_same(keys.rows(slice(0, 2)), whole.map[:, :, :2], 1e-12)


@pytest.mark.parametrize('kind, method', [pair for pair in PAIRS if pair[1] in OFF])
@torch.no_grad()
def test_off_is_the_plain_model(kind, method):
    plain, model = build(kind), build(kind)
    vitzoo.reduce_tokens(model, method, **options(method, **OFF[method]))
    assert_same(model.eval()(image()), plain(image()))


@every_method
def test_every_method_says_how_it_is_off_or_cannot_be(method):
    assert method in OFF or method == 'select'


# ---- shapes

@most_pairs
@torch.no_grad()
def test_head_takes_what_features_are(kind, method):
    model, plain, x = reduced(kind, method), build(kind), image()
    y, features = model(x), model.forward_features(x)
    assert y.shape == (2, 5) and y.isfinite().all() and not torch.allclose(y, plain(x), atol=1e-5)
    assert_same(model.forward_head(features), y, 0)
    assert features.shape[2] == 32 and model.forward_head(features, pre_logits=True).shape == (2, 32)
    final, _ = model.forward_intermediates(x)
    assert_same(final, features, 0)


@most_pairs
@torch.no_grad()
def test_maps_have_the_full_grid(kind, method):
    model, x = reduced(kind, method), image()
    maps = model.forward_intermediates(x, intermediates_only=True)
    assert [m.shape for m in maps] == [(2, 32, 4, 6)] * DEPTH
    tokens = model.forward_intermediates(x, output_fmt='NLC', intermediates_only=True)
    assert_same([t.transpose(1, 2).unflatten(2, (4, 6)) for t in tokens], maps, 0)
    last, = model.forward_intermediates(x, indices=[-1], norm=True, intermediates_only=True)
    assert last.shape == maps[-1].shape
    if method == 'tome':  # the patches have what their token has
        assert_same(last.permute(0, 2, 3, 1), model.norm(maps[-1].permute(0, 2, 3, 1)), 1e-5)
    P = model.num_prefix_tokens
    with_prefix = model.forward_intermediates(x, [0, 2], return_prefix_tokens=True, intermediates_only=True)
    found = model.forward_intermediates(x, [0, 2], return_prefix_tokens=True, output_dict=True)
    assert_same(found['image_intermediates'], [maps[0], maps[2]], 0)
    assert_same(found['image_features'], model.forward_features(x), 0)
    assert ('image_intermediates_prefix' in found) == (P > 0)
    if P:
        assert [(m.shape, p.shape) for m, p in with_prefix] == [((2, 32, 4, 6), (2, P, 32))] * 2
        assert_same(found['image_intermediates_prefix'], [p for _, p in with_prefix], 0)
    early, = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert_same(early, maps[0], 0)


@few_pairs
@torch.no_grad()
def test_stopping_early_runs_no_further_block(kind, method):
    model = reduced(kind, method)
    model.blocks[2].norm1.register_forward_hook(lambda *args: pytest.fail('ran'))
    model.forward_intermediates(image(), [1], stop_early=True, intermediates_only=True)


@some_pairs
@torch.no_grad()
def test_other_ways_to_maps(kind, method):
    model, x = reduced(kind, method), image()
    expected = model.forward_intermediates(x, [1, 2], intermediates_only=True)
    if isinstance(model, VisionTransformer):
        assert_same(model.get_intermediate_layers(x, [1, 2], reshape=True), expected, 0)
        assert [y.shape for y in model.get_intermediate_layers(x, 2)] == [(2, 24, 32)] * 2
    features = reduced(kind, method, features_only=True, out_indices=(1, 2))
    features.load_state_dict({name: model.state_dict()[name.removeprefix('model.')] for name in features.state_dict()})
    assert_same(features(x), expected, 0)
    vitzoo.restore_tokens(features)
    assert not isinstance(features.model, vitzoo.reduction.Reduced)


@pytest.mark.parametrize('kind, method', [pair for pair in PAIRS if pair[0] in ANY_SIZE and pair[1] not in ONE_SIZE])
@torch.no_grad()
def test_any_size(kind, method):
    model = reduced(kind, method, dynamic_img_pad=True)
    for height, width in ((40, 24), (33, 61), (16, 24)):
        x = image(height, width, batch=1)
        grid = -(-height // 8), -(-width // 8)
        assert model(x).isfinite().all()
        assert [m.shape[2:] for m in model.forward_intermediates(x, intermediates_only=True)] == [grid] * DEPTH


@most_pairs
@torch.no_grad()
def test_batches(kind, method):
    """An image alone is what it is in a batch; no image is no work."""
    model, x = reduced(kind, method).double(), image(batch=3).double()
    y = model(x)
    assert_same(torch.cat([model(x[i:i + 1]) for i in range(3)]), y)
    nothing, maps = model.forward_intermediates(x[:0])
    assert model(x[:0]).shape == (0, 5) and len(nothing) == 0 and maps[-1].shape == (0, 32, 4, 6)


# ---- the way back, copies

@most_pairs
@torch.no_grad()
def test_restored_bit_for_bit(kind, method):
    plain, model, x = build(kind), build(kind), image()
    before = {name: value for name, value in vars(model).items() if not name.startswith('_')}
    modules = [name for name, _ in model.named_modules()]
    parameters = {name: id(p) for name, p in model.named_parameters()}
    assert vitzoo.reduce_tokens(model, method, **options(method)) is model
    assert set(model.state_dict()) >= set(plain.state_dict())
    assert {name: id(p) for name, p in model.named_parameters() if name in parameters} == parameters
    assert isinstance(model, type(plain))
    model.eval()(x)
    assert vitzoo.restore_tokens(model) is model
    assert type(model) is type(plain)
    assert {name: value for name, value in vars(model).items() if not name.startswith('_')} == before
    assert [name for name, _ in model.named_modules()] == modules
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert list(model.state_dict()) == list(plain.state_dict())
    assert_same(list(model.state_dict().values()), list(plain.state_dict().values()), 0)
    assert_same(model(x), plain(x), 0)


@pytest.mark.parametrize('first', METHODS)
@torch.no_grad()
def test_another_method_takes_the_place_of_the_first(first):
    x = image()
    for second in METHODS:
        model, alone = reduced('class_token', first), build('class_token')
        for m in (model, alone):
            torch.manual_seed(7)
            vitzoo.reduce_tokens(m, second, **options(second)).eval()
        if first != second:
            assert list(model.state_dict()) == list(alone.state_dict())
            assert_same(model(x), alone(x), 0)
        assert type(vitzoo.restore_tokens(model)) is VisionTransformer


@few_pairs
@torch.no_grad()
def test_copies(kind, method):
    model, x = reduced(kind, method), image()
    y = model(x)
    model.compile()  # in place, which is no part of a pickle
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ModelEmaV2(model).module, ModelEmaV3(model).module]
    model._compiled_call_impl = None
    for other in copies:
        other._compiled_call_impl = None
        assert type(other) is type(model) and other.reduction == model.reduction
        assert_same(other(x), y, 0)
        assert type(vitzoo.restore_tokens(other)) is type(build(kind))
    ema = ModelEmaV3(model, decay=0.5)
    ema.update(model)
    assert_same(ema.module(x), y, 0)


@few_pairs
@torch.no_grad()
def test_two_models_at_once(kind, method):
    """Reducing one leaves others alone, whatever their settings."""
    plain, x = build(kind), image()
    y = plain(x)
    first, second = reduced(kind, method), reduced(kind, 'tome')
    vitzoo.reduce_tokens(second, 'tome', r=2)
    a, b = first(x), second(x)
    assert_same(first(x), a, 0)
    vitzoo.restore_tokens(first)
    assert_same(first(x), y, 0)
    assert_same(second(x), b, 0)
    assert_same(plain(x), y, 0)
    assert not torch.equal(a, b)


@few_pairs
def test_threads_share_a_model(kind, method):
    model = reduced(kind, method)
    images = [image(batch=1 + i % 3) + i for i in range(6)]
    forward = torch.inference_mode()(lambda x: model(x))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(forward, images))
    assert_same(found, [forward(x) for x in images])


@few_pairs
def test_trains_after_inference(kind, method):
    model = reduced(kind, method)
    with torch.inference_mode():
        model(image())
    model(image()).square().mean().backward()


# ---- training

@some_pairs
def test_gradients_reach_every_parameter(kind, method):
    model, plain = reduced(kind, method), build(kind)
    for m in (model, plain):
        m(image()).square().mean().backward()
    reached = {name for name, p in plain.named_parameters() if p.grad is not None}
    found = dict(model.named_parameters())
    assert [name for name in reached if found[name].grad is None or not found[name].grad.isfinite().all()] == []


@some_pairs
def test_checkpointing_changes_nothing(kind, method):
    model = reduced(kind, method).double().train()
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    outputs = []
    for m in (model, other):
        torch.manual_seed(0)
        final, maps = m.forward_intermediates(image().double())
        outputs.append([final, *maps])
        sum(t.square().mean() for t in (m.forward_head(final), *maps)).backward()
    assert_same(*outputs, 1e-12)
    assert [p.grad is None for p in other.parameters()] == [p.grad is None for p in model.parameters()]
    assert_same(gradients(other), gradients(model), 1e-12)


@few_pairs
def test_checkpointing_runs_blocks_twice(kind, method):
    model, count = reduced(kind, method).train(), []
    model.set_grad_checkpointing()
    model.blocks[2].norm1.register_forward_hook(lambda *args: count.append(1))
    model(image()).sum().backward()
    assert len(count) == 2


@pytest.mark.parametrize('kind', ['class_token', 'distilled', 'dinov3', 'pe'])
def test_tools_of_timm_for_training(kind):
    model, plain = reduced(kind, 'tome'), build(kind)
    for coarse in (False, True):
        assert group_parameters(model, model.group_matcher(coarse)) == group_parameters(plain, plain.group_matcher(coarse))
    scales, expected = ([(g['lr_scale'], g['weight_decay'], len(g['params'])) for g in param_groups_layer_decay(m, layer_decay=0.8)]
                        for m in (model, plain))
    assert scales == expected
    optimizer = create_optimizer_v2(model, 'adamw', lr=1e-2, weight_decay=0.1, layer_decay=0.8)
    before = copy.deepcopy(model.state_dict())
    model.train()(image()).square().mean().backward() if kind != 'distilled' else model(image()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(before['blocks.0.attn.proj.weight'], model.state_dict()['blocks.0.attn.proj.weight'])


# ---- precision, compilers, devices

@some_pairs
@torch.no_grad()
def test_precisions(kind, method):
    model, x = reduced(kind, method), image()
    assert copy.deepcopy(model).double()(x.double()).dtype == torch.double
    half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    with torch.autocast('cpu', torch.bfloat16):
        final, maps = model.forward_intermediates(x)
        mixed = model.forward_head(final)
        assert_same(model.eval()(x), mixed, 0)
    assert mixed.isfinite().all() and all(m.isfinite().all() and m.dtype == maps[0].dtype for m in maps)
    with pytest.raises(ValueError, match='autocast'):
        model(x.double())


@some_pairs
@torch.no_grad()
def test_half_precision_is_about_the_same(kind, method):
    """Where the same tokens are chosen: of two that are nearly equal rounding takes either."""
    model, x = reduced(kind, method), image()
    with Choices() as choices:
        y = model(x)
    with Choices(choices.notes):
        half = copy.deepcopy(model).bfloat16()(x.bfloat16())
    with torch.autocast('cpu', torch.bfloat16), Choices(choices.notes):
        mixed = model(x)
    for other in (half, mixed):
        assert torch.nn.functional.cosine_similarity(other.float(), y).min() > 0.998


@torch.no_grad()
def test_half_precision_counts_exactly():
    """In bfloat16 the number after 256 is 258."""
    model = build('any_size').bfloat16()
    vitzoo.reduce_tokens(model, 'tome', r=1000)
    tokens = embed(model, torch.randn(1, 3, 160, 240).bfloat16())
    for i in range(DEPTH):
        tokens = run_block(model, model.reduction, i, tokens)
        assert tokens.size.double()[:, 1:].sum() == 600


@torch.no_grad()
def test_autocast_keeps_the_residual_stream():
    """Tokens that nothing is merged into leave a block in the precision in which they came."""
    x = torch.randn(1, 8, 4)
    merge = match(x, 2)
    plain, *_ = merge_rows(x, None, merge)
    with torch.autocast('cpu', torch.bfloat16):
        found, *_ = merge_rows(x, None, merge)
    alone = (plain[0, :, None] == x[0]).all(-1).any(1)
    assert alone.sum() >= 4 and torch.equal(found[0, alone], plain[0, alone])


@pairs(lambda kind, method: kind == 'dinov3' or kind == 'mixed' and method == 'tome')
def test_autocast_trains(kind, method):
    model = reduced(kind, method).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(image()).square().mean()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


compiled_pairs = pairs(lambda kind, method: (kind, method) in (('class_token', 'tome'), ('class_token', 'evit'), ('dinov3', 'evit')))


@compiled_pairs
def test_compiles_without_graph_breaks(kind, method):
    """At two sizes and batches where the model takes them; it trains then."""
    model = reduced(kind, method, depth=2)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend='eager')
    for x in (image(), image(40, 56, batch=3)) if kind in ANY_SIZE and method not in ONE_SIZE else (image(),):
        y, z = model(x), compiled(x)
        assert_same(z, y, 1e-5)
    for out in (y, z):
        out.square().mean().backward()
    assert_same(gradients(compiled), gradients(model), 1e-4)


@pairs(lambda kind, method: kind == 'class_token' and method in ('tome', 'expedite'))
@torch.no_grad()
def test_exports_with_any_batch(kind, method):
    model = reduced(kind, method, depth=2)
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(model, (image(),), strict=False, dynamic_shapes=({0: batch},))
    assert_same(program.module()(image(batch=5)), model(image(batch=5)), 1e-5)
    assert_same(model(image()), reduced(kind, method, depth=2)(image()), 0)


@some_pairs
@torch.no_grad()
def test_vmap(kind, method):
    model, x = reduced(kind, method).double(), image(batch=3).double()
    assert_same(torch.func.vmap(model)(x[:, None])[:, 0], model(x))


class Elsewhere(TorchDispatchMode):
    """Names of the operators that read or write a tensor of some elements which is not on the meta device."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if any(isinstance(t, torch.Tensor) and not t.is_meta and t.numel() for t in tree_leaves((args, kwargs, result))):
            self.names.append(str(function))
        return result


@few_pairs
@torch.no_grad()
def test_a_second_forward_moves_nothing_to_the_device(kind, method):
    model, x = on_meta(reduced(kind, method)), image().to('meta')
    model.forward_intermediates(x)
    with Elsewhere() as elsewhere:
        model(x)
        model.forward_intermediates(x)
    plain = on_meta(build(kind))
    with Elsewhere() as of_timm:
        plain(x)
        plain.forward_intermediates(x)
    assert elsewhere.names == of_timm.names
    assert_same(reduced(kind, method)(image()), reduced(kind, method)(image()), 0)  # and leaves nothing behind


# ---- heads

def merged(kind):
    """A model, its normalised tokens (B, P + N, C) and their sizes, before they are copied for the head."""
    model = reduced(kind, 'tome')
    tokens = embed(model, image())
    for i in range(DEPTH):
        tokens = run_block(model, model.reduction, i, tokens)
    return model, model.norm(tokens.x), tokens.size


@pytest.mark.parametrize('kind', ['average', 'gap', 'dinov3', 'eva02'])
@torch.no_grad()
def test_average_pooling_weighs_by_size(kind):
    model, tokens, size = merged(kind)
    P = model.num_prefix_tokens
    size = size[:, P:, None]
    assert size.max() > 1 and (size.sum(1) == 24).all()
    mean = (tokens[:, P:] * size).sum(1) / size.sum(1)
    assert_same(model.forward_head(model.forward_features(image())), model.head(model.fc_norm(mean)), 1e-5)


@torch.no_grad()
def test_average_pooling_with_prefix_weighs_by_size():
    model, tokens, size = merged('average_of_all')
    mean = (tokens * size[..., None]).sum(1) / size.sum(1, keepdim=True)
    assert_same(model(image()), model.head(model.fc_norm(mean)), 1e-5)


@pytest.mark.parametrize('kind', ['map', 'pe'])
@torch.no_grad()
def test_attention_pooling_weighs_by_size(kind):
    """Copies for each patch are what a bias of log(size) on the keys is."""
    model, tokens, size = merged(kind)
    if kind == 'map':
        assert model.num_prefix_tokens == 0
    pooled = model.attn_pool(tokens, attn_mask=size.log()[:, None, None])
    assert_same(model(image()), model.head(model.fc_norm(pooled)), 1e-5)


@some_pairs
@torch.no_grad()
def test_head_is_replaced(kind, method):
    model = reduced(kind, method)
    model.reset_classifier(7)
    assert model(image()).shape == (2, 7)
    model.reset_classifier(0)
    assert_same(model(image()), model.forward_head(model.forward_features(image()), pre_logits=True), 0)
    if model.attn_pool is None and kind != 'distilled':
        model.reset_classifier(7, 'avg')
        assert model(image()).shape == (2, 7)
        model.reset_classifier(0, '')
        assert model(image()).ndim == 3


@some_pairs
@torch.no_grad()
def test_input_size_is_set(kind, method):
    model, plain = reduced(kind, method), build(kind)
    for m in (model, plain):
        m.set_input_size((24, 72))
    assert_same(list(model.state_dict()[name] for name in plain.state_dict()), list(plain.state_dict().values()), 0)
    if method not in ONE_SIZE:
        assert model(image(24, 72)).isfinite().all()
        assert model.forward_intermediates(image(24, 72), 1, intermediates_only=True)[0].shape == (2, 32, 3, 9)
    vitzoo.restore_tokens(model)
    assert_same(model(image(24, 72)), plain(image(24, 72)), 0)
