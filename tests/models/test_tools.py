"""What users' tools do to a model: norms replaced, adapters, hooks, masks, quantised weights put in, layers kept elsewhere, graphs made."""
import copy
import functools

import pytest
import timm
import timm.layers
import timm.utils
import torch
import torch.nn.utils.prune
import zoo
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vitzoo.dense import DenseBackbone

SIZE = (128, 112)
# a model of each family in every run, other generations in the slow one
EACH_FAMILY = zoo.slow_if(lambda name: name not in zoo.FIRST.values(), zoo.MICRO)
every_micro = pytest.mark.parametrize('name', EACH_FAMILY)


@pytest.fixture
def image():
    return torch.randn(2, 3, *SIZE)


def build(name, **kwargs):
    """A model whose norms do something, so that one that is left out or doubled is noticed."""
    model = zoo.build(name, num_classes=10, **kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def layers(model, *kinds):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, kinds)]


def replace(model, name, module):
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---- norms

def freeze(model):
    timm.utils.freeze(model)
    return model


def mmengine_s(model, revert=False):
    pytest.importorskip('mmengine')
    from mmengine.model import convert_sync_batchnorm, revert_sync_batchnorm
    model = convert_sync_batchnorm(model)
    return revert_sync_batchnorm(model) if revert else model


CONVERTERS = {
    'torch': nn.SyncBatchNorm.convert_sync_batchnorm,
    'timm': timm.layers.convert_sync_batchnorm,
    'mmengine': mmengine_s,
    'mmengine, reverted': functools.partial(mmengine_s, revert=True),
    'frozen': freeze,
}


@pytest.mark.parametrize('fuse', [False, True], ids=['plain', 'fused'])
@pytest.mark.parametrize('converter', CONVERTERS)
@every_micro
def test_norms_may_be_replaced(name, converter, fuse, image):
    model = build(name)
    expected = model(image)
    converted = CONVERTERS[converter](copy.deepcopy(model)).eval()
    close((timm.utils.reparameterize_model(converted) if fuse else converted)(image), expected)


@every_micro
def test_norms_are_the_standard_classes(name):
    norms = {type(module) for _, module in layers(timm.create_model(name), nn.modules.batchnorm._BatchNorm)}
    assert norms <= {nn.BatchNorm2d}


@every_micro
def test_part_of_a_model_may_be_frozen(name):
    """Where height equals channels, a norm of the wrong layout would still run."""
    model = build(name)
    image = torch.randn(1, 3, 256, 256)
    expected = model(image)
    timm.utils.freeze(model, [child for child, _ in model.named_children() if child in ('stem', 'stages', 'patch_embed', 'blocks')])
    close(model(image), expected)


@every_micro
def test_folds_in_training_mode_too(name, image):
    model = build(name)
    expected = model(image)
    close(timm.utils.reparameterize_model(model.train()).eval()(image), expected)


# ---- layers

class Adapter(nn.Module):
    """A low-rank adapter around a linear layer, in the manner of LoRA."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)
        self.calls = 0

    @property
    def weight(self):
        return self.base.weight

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        self.calls += 1
        return self.base(x) + self.up(self.down(x))


def adapt(model):
    for name, linear in layers(model, nn.Linear):
        replace(model, name, Adapter(linear).train(model.training))
    return layers(model, Adapter)


@every_micro
def test_adapters_are_called_and_merge(name, image):
    model = build(name)
    adapters = adapt(model)
    adapted = model(image)
    adapted.sum().backward()
    assert [path for path, adapter in adapters if adapter.calls != 1 or adapter.down.weight.grad is None] == []
    with torch.no_grad():
        for path, adapter in adapters:
            adapter.base.weight += adapter.up.weight @ adapter.down.weight
            replace(model, path, adapter.base)
        close(model(image), adapted)


@every_micro
def test_hooks_are_called(name, image):
    model, called = build(name), set()
    hooked = [path for path, module in model.named_modules() if module._parameters and not [*module.children()]]
    for path in hooked:
        model.get_submodule(path).register_forward_hook(lambda module, args, output, path=path: called.add(path))
    model(image)
    assert set(hooked) - called == set()


@every_micro
def test_masked_weights_train_and_reload(name, image):
    def mask(model):
        for _, layer in layers(model, nn.Linear, nn.Conv2d):
            nn.utils.prune.l1_unstructured(layer, 'weight', 0.3)
        return model

    model = mask(build(name).train())
    for _ in range(2):
        model(image).sum().backward()
    assert [path for path, p in model.named_parameters() if p.grad is None] == []
    reloaded = mask(build(name))
    reloaded.load_state_dict(model.state_dict())
    expected = model.eval()(image)
    close(reloaded(image), expected)
    for _, layer in layers(reloaded, nn.Linear, nn.Conv2d):
        nn.utils.prune.remove(layer, 'weight')
    close(reloaded(image), expected)


@pytest.mark.parametrize('norm', [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm], ids=['hook', 'parametrisation'])
@every_micro
def test_normalised_weights_get_gradients(name, norm, image):
    model = build(name).train()
    for _, layer in layers(model, nn.Linear):
        norm(layer)
    model(image).sum().backward()
    assert [path for path, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@every_micro
def test_quantised_layers_serve(name, image):
    model = build(name)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    assert quantised(image).shape == (2, 10) and layers(quantised, nn.Linear) == []


class OnlyLinear(torch.Tensor):
    """A weight that is stored otherwise and knows one operation, as those of quantisation libraries."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ['inner'], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner['inner'])

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is nn.functional.linear:
            x, weight, *bias = args
            return func(x, weight.inner, *bias)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(f'{func} of a quantised weight')


@every_micro
def test_weights_of_another_kind_serve(name, image):
    model = build(name)
    expected = model(image)
    for _, layer in layers(model, nn.Linear):
        layer.weight = nn.Parameter(OnlyLinear(layer.weight.detach()), requires_grad=False)
    close(model(image), expected)


@every_micro
def test_parameters_may_wait_elsewhere(name, image):
    """A module's own parameters are there while its `forward` runs, and then alone, as where they are offloaded."""
    model = build(name)
    expected = model(image)

    def offload(module):
        kept = {key: p.detach() for key, p in module._parameters.items() if p is not None}
        forward = module.forward

        def offloaded(*args, **kwargs):
            module._parameters.update({key: nn.Parameter(value, requires_grad=False) for key, value in kept.items()})
            try:
                return forward(*args, **kwargs)
            finally:
                away()

        def away():
            module._parameters.update({key: nn.Parameter(value.to('meta'), requires_grad=False) for key, value in kept.items()})

        if kept:
            module.forward = offloaded
            away()

    for module in list(model.modules()):
        offload(module)
    with torch.no_grad():
        close(model(image), expected)


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in zoo.MICRO, zoo.NAMES))
def test_nothing_but_weights_and_statistics_is_kept(name):
    """A buffer that no file holds stays uninitialised where a library fills models from files."""
    with torch.device('meta'):
        model = timm.create_model(name)
    assert [path for path, module in model.named_modules() if module._non_persistent_buffers_set] == []


# ---- folding what is more than its weight

def add_hook(model):
    for _, layer in layers(model, nn.Linear, nn.Conv2d):
        layer.register_forward_hook(lambda module, args, output: 2 * output)


def add_parametrisation(model):
    for _, layer in layers(model, nn.Linear, nn.Conv2d):
        nn.utils.parametrize.register_parametrization(layer, 'weight', nn.Tanh())


def add_mask(model):
    for _, layer in layers(model, nn.Linear, nn.Conv2d):
        nn.utils.prune.l1_unstructured(layer, 'weight', 0.5)


@pytest.mark.parametrize('add', [adapt, add_hook, add_parametrisation, add_mask])
@every_micro
def test_folds_rightly_or_not_at_all(name, add, image):
    model = build(name)
    add(model)
    with torch.no_grad():  # a mask's product is kept, and with its graph could not be copied
        expected = model(image)
    try:
        fused = timm.utils.reparameterize_model(model)
    except ValueError as e:
        assert 'merge_and_unload' in str(e) and '\n' not in str(e)
    else:
        close(fused(image), expected)
    close(model(image), expected)


@every_micro
def test_adapters_may_come_after_folding(name, image):
    model = timm.utils.reparameterize_model(build(name))
    adapters = adapt(model)
    adapted = model(image)
    adapted.sum().backward()
    assert [path for path, adapter in adapters if adapter.calls != 1 or adapter.down.weight.grad is None] == []


# ---- batches and function transforms

@every_micro
def test_empty_batch(name):
    model, image = build(name), torch.empty(0, 3, *SIZE)
    assert model(image).shape == (0, 10) and model.train()(image).shape == (0, 10)
    maps = timm.create_model(name, features_only=True).eval()(image)
    assert all(m.shape[0] == 0 and 0 not in m.shape[1:] for m in maps)
    assert [tuple(m.shape[2:]) for m in DenseBackbone(name).eval()(image)] == [(32, 28), (16, 14), (8, 7), (4, 4)]


@pytest.mark.filterwarnings('ignore:There is a performance drop')
@every_micro
def test_vmap(name, image):
    model = build(name)
    close(torch.func.vmap(model)(image[:, None]).squeeze(1), model(image))


# ---- graphs

@every_micro
def test_torch_fx_takes_the_tracer_of_timm(name):
    model, image = build(name), torch.randn(2, 3, *SIZE)
    with pytest.raises(ValueError, match='timm.layers.create_feature_extractor'):
        torch.fx.symbolic_trace(model)
    _, nodes = timm.layers.get_graph_node_names(model)
    with torch.no_grad():
        logits, = timm.layers.create_feature_extractor(model, nodes[-1:])(image).values()
        close(logits, model(image))


@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [None, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'svit_micro', zoo.MICRO))
def test_compiles_at_changing_sizes(name, dynamic):
    model = build(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager', fullgraph=True, dynamic=dynamic)
    with torch.no_grad():
        for size in (128, 112), (144, 176), (128, 112):
            image = torch.randn(2, 3, *size)
            close(compiled(image), model(image))


@pytest.mark.slow
@every_micro
def test_compiled_dense_backbone_trains_at_changing_sizes(name):
    model = DenseBackbone(name)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend='aot_eager')
    for size in (128, 112), (144, 176):
        sum(m.sum() for m in compiled(torch.randn(2, 3, *size))).backward()
        assert [path for path, p in model.named_parameters() if p.requires_grad and p.grad is None and '.head.' not in path] == []


# ---- devices

class _Moves(TorchDispatchMode):
    """Notes the operators that read on one device and write on another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if len({t.device for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}) > 1:
            self.found.append(str(func))
        return out


@pytest.mark.parametrize('train', [False, pytest.param(True, marks=pytest.mark.slow)], ids=['eval', 'train'])
@pytest.mark.parametrize('wrapper', [timm.create_model, DenseBackbone])
@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in zoo.MICRO, zoo.NAMES))
def test_second_forward_moves_nothing_between_devices(name, wrapper, train):
    with torch.device('meta'):
        model = wrapper(name).train(train)
    for size in (224, 224), (200, 312):
        image = torch.empty(2, 3, *size, device='meta')
        model(image)
        with _Moves() as moves:
            model(image)
        assert moves.found == []
