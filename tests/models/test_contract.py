"""What every model promises, whatever its family. The micro models are quick; the others run in the long suite."""
import copy
import io
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
import zoo
from timm.layers import DropPath
from timm.models import VisionTransformer, get_notrace_functions, get_notrace_modules, group_parameters, list_modules
from timm.optim import param_groups_layer_decay
from timm.utils import reparameterize_model
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend
from zoo import build

from vitzoo.profiling import count_traffic, on_meta

# what the numbers of a variant could break is asked of every model, what is the code's alone of the micro ones
every_model = pytest.mark.parametrize('name', zoo.slow_if(lambda name: name not in zoo.MICRO, zoo.NAMES))
micro_model = pytest.mark.parametrize('name', zoo.MICRO)
SIZES = [(224, 224), (288, 288), (64, 96), (33, 47), (160, 8)]


def build_features(name, **kwargs):
    """The features of `build` with the same weights, and that model. A class may name the options that it sets for features."""
    features = build(name, features_only=True, **kwargs)
    model = build(name, **getattr(type(features.model), 'features_options', {}))
    state = model.state_dict()
    features.load_state_dict({key: state[key.removeprefix('model.')] for key in features.state_dict()})
    return features, model


def image(*size, batch=2, in_chans=3):
    return torch.randn(batch, in_chans, *size)


def minimum(model):
    """The smallest image (H, W) that the model's configuration names."""
    return tuple(model.pretrained_cfg.get('min_input_size', (3, 1, 1))[1:])


def fit(model, height=64, width=64):
    """This size, or the smallest that the model takes."""
    return tuple(max(n, m) for n, m in zip((height, width), minimum(model), strict=True))


def sizes(model):
    return [fit(model, *size) for size in SIZES] + [minimum(model)]


def blocks_of(model):
    """The modules that drop paths, outermost ones."""
    paths = [path for path, m in model.named_modules() if hasattr(m, 'drop_path') or hasattr(m, 'drop_path1')]
    return [model.get_submodule(path) for path in paths if path.rpartition('.')[0] not in paths]


def is_columnar(model):
    """Tokens (B, N, C) at one stride from the first block to the last, and not a pyramid of maps."""
    return not hasattr(model, 'stages')


def ceil_div(size, stride):
    return tuple(-(-n // stride) for n in size)


def assert_same(a, b, tolerance=1e-5):
    """Equal shapes, and no difference beyond a share of the largest value."""
    if isinstance(a, torch.Tensor):
        a, b = [a], [b]
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=tolerance * y.abs().max().item())


# ---- shapes and sizes

@every_model
def test_any_size(name):
    """Logits, features and intermediates at the native size, larger, non-square, odd, flat and minimal."""
    model, features = build(name), build(name, features_only=True)
    levels = features.feature_info.out_indices
    assert features.feature_info.reduction() == [model.feature_info[i]['reduction'] for i in levels]
    for size in sizes(model):
        x = image(*size, batch=1)
        with torch.no_grad():
            assert model(x).shape == (1, model.num_classes)
            expected = [(1, info['num_chs'], *ceil_div(size, info['reduction'])) for info in model.feature_info]
            assert [m.shape for m in features(x)] == [expected[i] for i in levels]
            assert [m.shape for m in model.forward_intermediates(x, intermediates_only=True)] == expected


@every_model
def test_trains_at_any_size(name):
    model = build(name, num_classes=5).train()
    for size in sizes(model):
        model.zero_grad()
        model(image(*size)).square().mean().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == [], size


@every_model
def test_features_train(name):
    model = build(name, features_only=True).train()
    sum(m.square().mean() for m in model(image(*fit(model.model, 64, 96)))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@micro_model
def test_too_small_an_image_is_refused(name):
    model, features = build(name), build(name, features_only=True)
    h, w = minimum(model)
    for size in [(h - 1, w), (h, w - 1)]:
        for forward in (model, model.forward_intermediates, features):
            with pytest.raises(ValueError, match=f'minimum is {h}x{w}'):
                forward(image(*size))


@micro_model
@pytest.mark.parametrize('x, message', [
    (torch.randn(3, 64, 64), r'3 dimensions'),
    (torch.randn(1, 64, 64, 3), r'Expected 3 channels, got 64'),
    (torch.randn(1, 4, 64, 64), r'in_chans=4'),
    (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), r'torch\.uint8'),
], ids=['rank', 'layout', 'channels', 'dtype'])
def test_bad_image_is_refused(name, x, message):
    model = build(name)
    for forward in (model, model.forward_intermediates):
        with pytest.raises(ValueError, match=message):
            forward(x)


@micro_model
def test_nan_stays_nan_in_its_image(name):
    model = build(name)
    x = image(*fit(model))
    x[1, 0, 5, 7] = torch.nan
    with torch.no_grad():
        y = model(x)
    assert y[0].isfinite().all() and y[1].isnan().all()


@micro_model
@pytest.mark.parametrize('in_chans', [1, 4])
def test_input_channels(name, in_chans):
    model = build(name, in_chans=in_chans)
    assert model.in_chans == in_chans
    with torch.no_grad():
        assert model(image(*fit(model), in_chans=in_chans)).shape == (2, model.num_classes)


# ---- head

@micro_model
def test_head_is_replaced(name):
    model = build(name)
    x = image(*fit(model))
    with torch.no_grad():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert_same(model.forward_head(features), model(x), 0)
        model.reset_classifier(7)
        assert model.num_classes == 7 and model(x).shape == (2, 7)
        model.reset_classifier(0)
        assert_same(model(x), pre_logits)
        if is_columnar(model):
            return
        assert features.ndim == 4 and features.shape[1] == model.num_features
        assert pre_logits.shape == (2, model.head_hidden_size)
        assert isinstance(model.get_classifier(), nn.Identity)
        model.reset_classifier(0, '')
        assert_same(model(x), features)
        model.reset_classifier(3, 'max')
        assert model(x).shape == (2, 3)


@micro_model
def test_classifier_acts_on_pre_logits(name):
    model = build(name)
    if isinstance(model.get_classifier(), tuple):
        pytest.skip('has a classifier for each of its token sets')
    x = image(*fit(model))
    with torch.no_grad():
        pre_logits = model.forward_head(model.forward_features(x), pre_logits=True)
        assert_same(model.get_classifier()(pre_logits), model(x))


@micro_model
@pytest.mark.parametrize('global_pool, width', [('avg', 1), ('max', 1), ('avgmax', 1), ('catavgmax', 2), ('fast', 1)])
def test_pooling(name, global_pool, width):
    if is_columnar(build(name)):
        pytest.skip('pools tokens, not maps')
    model = build(name, num_classes=3, global_pool=global_pool)
    x = image(*fit(model))
    with torch.no_grad():
        assert model(x).shape == (2, 3)
        assert model.head_hidden_size == width * model.num_features
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.head_hidden_size)


@micro_model
def test_no_classifier(name):
    with torch.no_grad():
        model = build(name, num_classes=0)
        x = image(*fit(model))
        assert model(x).shape == (2, model.head_hidden_size)
        if is_columnar(model):
            return
        model = build(name, num_classes=0, global_pool='')
        assert model(x).shape == model.forward_features(x).shape


# ---- features

@every_model
@pytest.mark.parametrize('size', [(64, 96), (65, 31)])
def test_intermediates_agree(name, size):
    features, model = build_features(name)
    x = image(*fit(model, *size))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        assert_same(final, model.forward_features(x), 0)
        assert_same(features(x), [maps[i] for i in features.feature_info.out_indices], 0)
        if not is_columnar(model):
            channels_last = model.forward_intermediates(x, output_fmt='NHWC', intermediates_only=True)
            assert_same([m.permute(0, 3, 1, 2) for m in channels_last], maps, 0)
        for stop_early in (False, True):
            some = model.forward_intermediates(x, indices=[0, 2], stop_early=stop_early, intermediates_only=True)
            assert_same(some, [maps[0], maps[2]], 0)
        assert_same(model.forward_intermediates(x, indices=2, intermediates_only=True), maps[-2:], 0)
        assert_same(model.forward_intermediates(x, indices=[-1], stop_early=True)[0], final, 0)
        assert [m.shape for m in model.forward_intermediates(x, norm=True, intermediates_only=True)] == [m.shape for m in maps]


@every_model
def test_features_of_some_levels(name):
    info = build(name).feature_info
    levels = (1, min(3, len(info) - 1))
    features = build(name, features_only=True, out_indices=levels)
    with torch.no_grad():
        maps = features(image(*fit(features.model)))
        assert [m.shape[1] for m in maps] == [info[i]['num_chs'] for i in levels] == features.feature_info.channels()
    first = build(name, features_only=True, out_indices=(0,))
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in features.parameters())


@every_model
@pytest.mark.parametrize('index', [0, 1, 2, 3])
def test_pruned_model_keeps_its_features(name, index):
    model = build(name)
    index = min(index, len(model.feature_info) - 1)
    x = image(*fit(model, 64, 96))
    with torch.no_grad():
        wanted = model.forward_intermediates(x, indices=[index], intermediates_only=True)
        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index]) == [index]
        assert_same(pruned.forward_intermediates(x, indices=[index], intermediates_only=True), wanted, 0)
        pruned.reset_classifier(4, 'avg')
        assert pruned(x).shape == (2, 4)
        whole = copy.deepcopy(model)
        whole.prune_intermediate_layers([len(model.feature_info) - 1], prune_head=False)
        assert_same(whole(x), model(x), 0)
    assert len(pruned.state_dict()) < len(model.state_dict()) or index == len(model.feature_info) - 1


@micro_model
def test_unknown_level_or_layout_is_refused(name):
    model = build(name)
    x = image(*fit(model))
    with pytest.raises(ValueError, match='NCHW'):
        model.forward_intermediates(x, output_fmt='HWC')
    for call in (lambda: model.forward_intermediates(x, indices=[99]), lambda: model.prune_intermediate_layers([99])):
        with pytest.raises(ValueError, match=r'indices=\[99\]: expected'):
            call()


# ---- same input, same answer

@micro_model
def test_two_runs_agree(name):
    model = build(name)
    x = image(*fit(model))
    with torch.no_grad():
        assert_same(model(x), model(x), 0)


@every_model
def test_one_image_alone_and_in_a_batch_agree(name):
    model = build(name)
    for size in [(64, 96), (65, 31)]:
        x = image(*fit(model, *size), batch=3)
        with torch.no_grad():
            together, maps = model(x), model.forward_intermediates(x, intermediates_only=True)
            for i in range(3):
                assert_same(model(x[i:i + 1]), together[i:i + 1])
                assert_same(model.forward_intermediates(x[i:i + 1], intermediates_only=True), [m[i:i + 1] for m in maps])


@micro_model
def test_memory_layout_of_the_image_does_not_matter(name):
    model = build(name)
    x = image(*fit(model, 64, 96))
    with torch.no_grad():
        y = model(x)
        assert_same(model(x.contiguous(memory_format=torch.channels_last)), y)
        assert_same(model(x.transpose(2, 3).contiguous().transpose(2, 3)), y)
        assert_same(copy.deepcopy(model).to(memory_format=torch.channels_last)(x), y)


@micro_model
def test_drops_follow_the_seed_and_stop_in_eval(name):
    model = build(name, drop_rate=0.3, drop_path_rate=0.5)
    plain = build(name)
    plain.load_state_dict(model.state_dict())
    x = image(*fit(model), batch=4)
    with torch.no_grad():
        assert_same(model(x), plain(x), 0)
        model.train()
        runs = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            runs.append(model(x))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)
    assert not torch.allclose(runs[0], runs[2])


@every_model
def test_drop_path_grows_block_by_block(name):
    model = timm.create_model(name, drop_path_rate=0.4)
    rates = [[m.drop_prob for m in block.modules() if isinstance(m, DropPath)] or [0.] for block in blocks_of(model)]
    assert all(rate == of_block[0] for of_block in rates for rate in of_block)
    assert len(rates) > 2 and [of_block[0] for of_block in rates] == pytest.approx([0.4 * i / (len(rates) - 1) for i in range(len(rates))])


@every_model
def test_maps_stay_channels_last(name):
    """No block may leave a map in another memory order, which the next one would copy."""
    model, seen = build(name), []
    if is_columnar(model):
        pytest.skip('has tokens, not maps')
    for block in blocks_of(model):
        block.register_forward_hook(lambda module, args, out: seen.extend(x for x in (*args, out) if isinstance(x, torch.Tensor)))
    with torch.no_grad():
        model(image(*fit(model, 128, 100)))
    assert seen and all(x.is_contiguous() for x in seen)


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    model = build(name).train()
    again = copy.deepcopy(model)
    again.set_grad_checkpointing(True)
    x = image(*fit(model, 64, 96))
    y, z = model(x), again(x)
    assert_same(z, y)
    for out in (y, z):
        out.square().mean().backward()
    assert_same([p.grad for p in again.parameters()], [p.grad for p in model.parameters()])


@micro_model
def test_learns(name):
    """Tells eight images of noise apart within a few steps."""
    model = timm.create_model(name, num_classes=4, drop_path_rate=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    x, labels = image(*fit(model), batch=8), torch.arange(8) % 4
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


# ---- state

@micro_model
def test_save_and_load(name, tmp_path):
    from safetensors.torch import load_file, save_file
    model = build(name)
    x = image(*fit(model))
    with torch.no_grad():
        y = model(x)
        buffer = io.BytesIO()
        torch.save(model.state_dict(), buffer)
        buffer.seek(0)
        loaded = timm.create_model(name).eval()
        loaded.load_state_dict(torch.load(buffer, weights_only=True))
        assert_same(loaded(x), y, 0)
        save_file(model.state_dict(), tmp_path / 'model.safetensors')
        loaded = timm.create_model(name).eval()
        loaded.load_state_dict(load_file(tmp_path / 'model.safetensors'))
        assert_same(loaded(x), y, 0)
        loaded = timm.create_model(name, checkpoint_path=str(tmp_path / 'model.safetensors')).eval()
        assert_same(loaded(x), y, 0)
        assert_same(pickle.loads(pickle.dumps(model))(x), y, 0)
        assert_same(copy.deepcopy(model)(x), y, 0)


@every_model
def test_checkpoint_holds_weights_and_statistics_alone(name):
    """Nothing in a checkpoint depends on the image size."""
    model = build(name)
    statistics = {f'{path}.{b}' for path, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) for b, _ in m.named_buffers()}
    assert set(model.state_dict()) == {n for n, _ in model.named_parameters()} | statistics
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        for size in sizes(model):
            model(image(*size, batch=1))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


@every_model
def test_built_without_memory_and_filled(name):
    """The way of large models: build on meta, allocate, load; what no checkpoint holds is refilled by timm's hook."""
    model = build(name)
    x = image(*fit(model))
    with torch.device('meta'):
        empty = timm.create_model(name).eval()
    assert empty(x.to('meta')).shape == (2, model.num_classes)
    empty.to_empty(device='cpu')
    empty.load_state_dict(model.state_dict())
    for module in empty.modules():
        if hasattr(module, 'init_non_persistent_buffers'):
            module.init_non_persistent_buffers()
    with torch.no_grad():
        assert_same(empty(x), model(x), 0)


@micro_model
@pytest.mark.parametrize('kwargs', [dict(device='meta'), dict(dtype=torch.float64)])
def test_device_and_dtype_of_construction(name, kwargs):
    model = timm.create_model(name, **kwargs).eval()
    for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
        assert tensor.device.type == kwargs.get('device', 'cpu') and tensor.dtype == kwargs.get('dtype', torch.float32)
    x = image(*fit(model)).to(**kwargs)
    y = model(x)
    assert y.dtype == x.dtype and y.device == x.device


@micro_model
def test_counted_without_memory_then_run(name):
    """A forward on meta leaves nothing behind that a forward on the CPU would stumble over."""
    model = build(name)
    x = image(*fit(model, 64, 96))
    on_meta(model)(x.to('meta'))
    with torch.no_grad():
        y = model(x)
        moved = copy.deepcopy(model)
        moved(x)
        moved.to('meta')(x.to('meta'))
    assert y.isfinite().all()


@micro_model
def test_dtype_may_change_after_a_forward(name):
    model = build(name)
    x = image(*fit(model, 64, 96))
    with torch.no_grad():
        y = model(x)
        assert_same(model.double()(x.double()).float(), y)
        assert_same(model.float()(x), y)


@micro_model
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_half_precision(name, dtype, tolerance):
    model = build(name)
    x = image(*fit(model))
    with torch.no_grad():
        final, maps = model.forward_intermediates(x)
        logits = model.forward_head(final)
        half, half_maps = copy.deepcopy(model).to(dtype).forward_intermediates(x.to(dtype))
        assert half.dtype == dtype
        tolerance *= 10 if getattr(model, 'selects', False) else 1  # rounding decides near ties
        assert_same([half.float(), *(m.float() for m in half_maps)], [final, *maps], tolerance)
        with torch.autocast('cpu', dtype):
            assert_same(model(x).float(), logits, tolerance)


@micro_model
def test_half_precision_trains(name):
    model = build(name).train()
    with torch.autocast('cpu', torch.bfloat16):
        loss = model(image(*fit(model))).square().mean()
    loss.backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@micro_model
def test_threads_share_a_model(name):
    model = build(name)
    images = [image(*fit(model, 32 * (i % 4 + 1), 32 * (i % 3 + 1) + i), batch=1) for i in range(6)]
    forward = torch.inference_mode()(lambda x: model(x))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(forward, images))
    assert_same(found, [forward(x) for x in images])


@every_model
def test_fused_attention_is_fused(name, monkeypatch):
    """PyTorch spells attention out without a word where its fused kernel does not take the arguments; on CPUs, masks of three axes."""
    model, fused, chosen = build(name), F.scaled_dot_product_attention, []

    def attention(*args, **kwargs):
        chosen.append(SDPBackend(torch._fused_sdp_choice(*args, **kwargs)))
        return fused(*args, **kwargs)

    monkeypatch.setattr(F, 'scaled_dot_product_attention', attention)
    with torch.no_grad():
        model(image(*fit(model, 224, 256)))
    assert SDPBackend.MATH not in chosen


# ---- options

@micro_model
def test_unknown_option_is_a_type_error(name):
    with pytest.raises(TypeError, match='no_such_option'):
        timm.create_model(name, no_such_option=1)


@micro_model
@pytest.mark.parametrize('kwargs', [
    dict(in_chans=0), dict(num_classes=-1), dict(global_pool='no_such_pool'), dict(drop_rate=1.5), dict(drop_path_rate=-0.1),
], ids=str)
def test_bad_value_is_a_value_error(name, kwargs):
    (option, value), = kwargs.items()
    with pytest.raises(ValueError, match=f'{option}={value!r}: expected'):
        timm.create_model(name, **kwargs)
    if option in ('num_classes', 'global_pool'):
        with pytest.raises(ValueError, match=f'{option}={value!r}: expected'):
            timm.create_model(name).reset_classifier(**{'num_classes': 2, **kwargs})


@micro_model
def test_classes_need_pooling(name):
    model = build(name)
    if isinstance(model, VisionTransformer):
        pytest.skip('classifies every token then, as a ViT of timm does')
    for call in (lambda: timm.create_model(name, global_pool=''), lambda: model.reset_classifier(5, '')):
        with pytest.raises(ValueError, match="global_pool=''"):
            call()
    assert model.num_classes == 1000 and model.global_pool == 'avg'
    if not is_columnar(model):
        model.reset_classifier(0, '')
        model.reset_classifier(5)
        assert model.global_pool == 'avg' and model(image(*fit(model))).shape == (2, 5)


def test_unknown_name_is_an_error():
    with pytest.raises(RuntimeError, match='svit_enormous'):
        timm.create_model('svit_enormous')


@every_model
def test_registered_as_timm_s_own_are(name):
    cfg = timm.get_pretrained_cfg(name)
    assert name in timm.list_models(module=timm.model_entrypoint(name).__module__.split('.')[-1])
    assert timm.model_entrypoint(name).__module__.split('.')[-1] in list_modules()
    model = build(name)
    classifiers = (cfg.classifier,) if isinstance(cfg.classifier, str) else cfg.classifier
    weights = {f'{module}.weight' for module in (cfg.first_conv, *classifiers)}
    assert weights <= set(model.state_dict())
    assert model.pretrained_cfg['architecture'] == name
    data = timm.data.resolve_data_config(model=model)
    assert data['input_size'] == cfg.input_size and data['mean'] == cfg.mean


@every_model
def test_layer_decay(name):
    model = build(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(groups) == {n for n, _ in model.named_parameters()}
        order = list(dict.fromkeys(groups.values()))
        assert order == sorted(order) and len(order) > 2, 'depth must grow from the stem to the head'
    scales = {id(p): g['lr_scale'] for g in param_groups_layer_decay(model, layer_decay=0.8) for p in g['params']}
    assert len(scales) == len(list(model.parameters()))
    classifier = model.get_classifier()
    classifier = classifier[0] if isinstance(classifier, tuple) else classifier
    assert scales[id(model.get_parameter(f'{model.pretrained_cfg["first_conv"]}.weight'))] < scales[id(classifier.weight)] == 1


# ---- compilers

@every_model
def test_folded_model_is_the_same_and_does_less(name):
    model = build(name)
    if not any(hasattr(module, 'fuse') for module in model.modules()):
        pytest.skip('has nothing to fold')
    folded = reparameterize_model(model)
    with torch.no_grad():
        for size in [(64, 96), (65, 31)]:
            x = image(*fit(model, *size))
            y, maps = model.forward_intermediates(x)
            z, folded_maps = folded.forward_intermediates(x)
            assert_same([z, *folded_maps], [y, *maps])
            assert_same(folded(x), model(x))
        assert_same(reparameterize_model(folded)(x), folded(x), 0)  # folding twice is folding once
    meta = torch.empty(1, 3, *fit(model, 64, 96), device='meta')
    before, after = (count_traffic(on_meta(m), meta) for m in (model, folded))
    assert after.operators <= before.operators and after.bytes < before.bytes


@micro_model
def test_folded_features(name):
    features = build(name, features_only=True)
    x = image(*fit(features.model, 64, 96))
    if getattr(features.model, 'selects', False):  # rounding decides near ties
        features, x = features.double(), x.double()
    with torch.no_grad():
        assert_same(reparameterize_model(features)(x), features(x))


@pytest.mark.parametrize('name', zoo.slow_if(lambda name: name != 'stvit_deit_micro', zoo.MICRO))
@pytest.mark.parametrize('train', [pytest.param(False, marks=pytest.mark.slow), True], ids=['eval', 'train'])
def test_compiles_without_graph_breaks(name, train):
    model = build(name).train(train)
    x = image(*fit(model, 72, 104))
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend='aot_eager')
    y, z = model(x), compiled(x)
    assert_same(z, y)
    if train:
        for out in (y, z):
            out.square().mean().backward()
        # a bias in front of batch norm has gradient zero, and what is there instead is rounding: one scale for all of them
        assert_same(*(torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (compiled, model)))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++') and not shutil.which('clang++'), reason='no C++ compiler, which inductor needs on a CPU')
@micro_model
def test_compiles_with_inductor(name):
    model = build(name)
    x = image(*fit(model, 72, 104))
    torch._dynamo.reset()
    with torch.no_grad():
        assert_same(torch.compile(copy.deepcopy(model), fullgraph=True)(x), model(x))


@pytest.mark.parametrize('name', zoo.first_quick(zoo.MICRO))
@pytest.mark.parametrize('strict, size', [
    (False, (72, 136)), pytest.param(True, (72, 168), marks=pytest.mark.slow)], ids=['non_strict', 'strict'])
def test_exports_then_runs_eagerly(name, strict, size):
    """Batch stays free, and nothing made while tracing is left in the model (the sizes occur nowhere else)."""
    model = build(name)
    size = fit(model, *size)
    batch = torch.export.Dim('batch', min=1, max=64)
    program = torch.export.export(model, (image(*size),), strict=strict, dynamic_shapes=({0: batch},))
    x = image(*size, batch=3)
    with torch.no_grad():
        assert_same(program.module()(x), model(x))


@micro_model
def test_scripting_is_refused(name):
    """In one sentence, wherever the model is; what traces still does."""
    model = build(name)
    for scripted in (model, build(name, features_only=True), nn.Sequential(nn.Identity(), model)):
        with pytest.raises(ValueError, match=f'{type(model).__name__} cannot be scripted: .* use torch.compile'):
            torch.jit.script(scripted)
    x = image(*fit(model))
    with torch.no_grad():
        assert_same(torch.jit.trace(model, x, check_trace=False)(x), model(x))


@micro_model
def test_traced_by_fx(name):
    """As timm does it: what has control flow in it stays a leaf."""
    feature_extraction = pytest.importorskip('torchvision.models.feature_extraction')
    model = build(name)
    options = dict(leaf_modules=list(get_notrace_modules()), autowrap_functions=list(get_notrace_functions()))
    nodes = feature_extraction.get_graph_node_names(model, tracer_kwargs=options)[1]
    traced = feature_extraction.create_feature_extractor(model, nodes[-1:], tracer_kwargs=options)
    with torch.no_grad():
        for size in [(64, 96), (65, 31)]:
            x = image(*fit(model, *size))
            assert_same(*traced(x).values(), model(x))
