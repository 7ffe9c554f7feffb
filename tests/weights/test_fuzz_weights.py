"""Damaged state dicts and files, drawn by hypothesis: a file loads, or it is refused in one line and nothing has changed.

`make test` draws a few, `make test-all` the rest of what the project draws in this room.
"""
import functools
import pickle
import warnings

import memory
import pytest
import timm
import torch
import zoo

hypothesis = pytest.importorskip('hypothesis')
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from safetensors.torch import save  # noqa: E402

import vitzoo  # noqa: E402
from vitzoo.dense import DenseBackbone  # noqa: E402
from vitzoo_cli import main  # noqa: E402

QUICK = {'state dicts': 60, 'files': 50, 'convert': 6}
MANY = {'state dicts': 3_500, 'files': 3_500, 'convert': 250}  # ten minutes of one core
BOUND = 300 * 2 ** 20  # bytes above the model


def examples(what, number):
    return settings(max_examples=number[what], deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))


@functools.cache
def build(name):
    """A model, built once a process: a case that is refused leaves it as it is, one that loads gives it other weights."""
    if name == 'dense':
        return DenseBackbone('lookupvit_micro')
    return timm.create_model(name)


MODELS = [*zoo.FIRST.values(), 'dense', 'test_resnet']


@functools.cache
def source(name):
    return dict(build(name).state_dict())


@functools.cache
def copies(model):
    """What the model's entries were when they were last changed; kept up by `check`."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def check(model, content, **options):
    """Load it, or see it refused."""
    before = copies(model)
    with memory.measured() as used:
        try:
            report = vitzoo.load_checkpoint(model, content, **options)
        except (ValueError, TypeError) as e:
            assert str(e) and str(e).isprintable(), repr(e)
            report = None
    assert used.peak < BOUND
    after = model.state_dict()
    assert list(after) == list(before)
    if report is None:
        assert all(torch.equal(value.view(torch.uint8), before[key].view(torch.uint8)) for key, value in after.items() if value.ndim)
    else:
        assert set(report.loaded) | set(report.new) == set(before)
        copies.cache_clear()


# ---- state dicts

tensors = st.one_of(
    st.sampled_from([
        torch.tensor(1.), torch.tensor(float('nan')), torch.zeros(0), torch.zeros(3, 0, 2), torch.zeros(1).expand(60000, 60000),
        torch.zeros(1).expand(1, 10 ** 9, 128), torch.zeros(1, 17, 128), torch.zeros(1, 196, 128), torch.zeros(1, 0, 128),
        torch.zeros(1, 1, 128), torch.zeros(2, 2).to_sparse(), torch.zeros(4, device='meta'), torch.ones(3, dtype=torch.bool),
        torch.zeros(3, dtype=torch.complex64),
    ]),
    st.builds(lambda shape, dtype: torch.ones(shape).to(dtype), st.lists(st.integers(0, 7), max_size=6), st.sampled_from([
        torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.float8_e5m2, torch.uint8])))
changes_of_values = st.sampled_from([
    lambda x: x.to('meta'), lambda x: x.to_sparse(), lambda x: x.half(), lambda x: x.to(torch.bool), lambda x: x.double(),
    lambda x: x.to(torch.float8_e4m3fn), lambda x: x.to(torch.complex64), lambda x: x * float('nan'),
    lambda x: x.unsqueeze(0), lambda x: x.flatten(), lambda x: x.mT, lambda x: x[..., :1], lambda x: x.sum(),
    lambda x: x[None].expand(3, *x.shape), lambda x: torch.zeros((), dtype=x.dtype).expand(x.shape), lambda x: x.reshape(-1, 1, 1, 1),
    lambda x: x.repeat(2, *[1] * (x.ndim - 1)), lambda x: x.clone().as_subclass(type('Other', (torch.Tensor,), {})),
    lambda x: None, lambda x: x.tolist(), lambda x: x.numpy(), lambda x: {'a': x},
])
keys = st.one_of(
    st.text(max_size=20), st.integers(), st.none(), st.binary(max_size=4), st.tuples(st.text(max_size=3)), st.sampled_from([
        '', '.', 'module', 'module.', 'backbone.', 'backbone.module.', 'model', 'state_dict', 'meta', 'pos_embed', 'pos_compressed',
        'cls_token', 'n_averaged', 'dist_token', 'head.weight', 'head.fc.bias', 'norm0.weight', 'pyramid.x', 'blocks.0.attn.qkv.weight',
        'a.b' * 1000, 'layers.0.blocks.0.attn.stoken_refine.qkv.weight', 'layers.0.blocks.0.attn.fold.weights', 'rpn_head.a',
        'bbox_head.a', 'main_blocks.0.0.0.norm1.weight', 'blocks.0.0.spatial_block.window_attn.qkv.weight', 'head_lookup.weight',
        'recover.x', 'stages.0.blocks.0', '\x1b[1m\n']))
prefixes = st.sampled_from([
    'module.', '_orig_mod.', 'backbone.', 'model.', 'body.', 'body.model.', 'backbone.body.model.', 'x.', '.', 'module.module.'])
wrappings = st.sampled_from([
    lambda s: s, lambda s: {'model': s}, lambda s: {'state_dict': s, 'meta': 3}, lambda s: {'model': {'state_dict': s}}, lambda s: [s],
    lambda s: {'model_ema': s}, lambda s: {'state_dict': s, 'ema_state_dict': s}, lambda s: {'model': s, 'state_dict': {}},
    lambda s: {'a': s},
    lambda s: {'model': torch.zeros(1), **s}, lambda s: {None: s}])


@st.composite
def state_dicts(draw, name):
    """A model's own state dict after a few changes: entries missing, others, under other names, with other values."""
    state = dict(source(name))
    names = list(state)
    for _ in range(draw(st.integers(0, 4))):
        key, kind = draw(st.sampled_from(names)), draw(st.integers(0, 6))
        if kind == 0:
            state.pop(key, None)
        elif kind == 1:
            state[draw(keys)] = draw(tensors)
        elif kind == 2:
            state[key] = draw(tensors)
        elif kind == 3 and isinstance(state.get(key), torch.Tensor):
            try:
                state[key] = draw(changes_of_values)(state[key])
            except (RuntimeError, IndexError, TypeError, NotImplementedError):  # not every change suits every value
                pass
        elif kind == 4:
            prefix = draw(prefixes)
            state = {prefix + k if isinstance(k, str) else k: v for k, v in state.items()}
        elif kind == 5:
            state[draw(prefixes) + key] = state.get(key, torch.zeros(1))
        elif kind == 6:
            state = {k: v for k, v in state.items() if isinstance(k, str) and k.startswith(key.split('.')[0])}
    return draw(wrappings)(state)


options = st.fixed_dictionaries({}, optional={
    'strict': st.booleans(), 'reset_head': st.booleans(), 'use_ema': st.booleans(),
    'prefix': st.sampled_from(['module', 'backbone', '', '.', 'x.', 3, 'head'])})


def check_state_dicts(number):
    @examples('state dicts', number)
    @given(st.data(), st.sampled_from(MODELS), options)
    def run(data, name, options):
        check(build(name), data.draw(state_dicts(name)), **options)
    run()


# ---- files

@functools.cache
def whole_files(name):
    """A small part of a model's state dict, or all of it, in each form."""
    import io
    state, forms = {'model': source(name), 'epoch': 3, 'meta': {'CLASSES': ('a', 'b')}}, {}
    for new in True, False:
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=new)
        forms['new' if new else 'old', '.pth'] = file.getvalue()
    forms['safetensors', '.safetensors'] = save(source(name))
    forms['pickle', '.pth'] = pickle.dumps({'a': 1, 'b': [1, 2.5, 'c' * 30]}, 2)
    return forms


@st.composite
def damaged(draw, data):
    """Bytes of a file: some changed, some removed, some put in; often near its beginning or its end, where its structure is."""
    data, places = bytearray(data), st.one_of(
        st.integers(0, len(data) - 1), st.integers(0, min(2000, len(data) - 1)), st.integers(max(0, len(data) - 20000), len(data) - 1))
    for _ in range(draw(st.integers(1, 4))):
        place, kind = min(draw(places), len(data)), draw(st.integers(0, 3))
        if kind == 0:
            data[place:place + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            del data[place:place + draw(st.integers(1, 64))]
        else:
            data[place:place] = draw(st.one_of(st.binary(max_size=16), st.sampled_from([b'\xff' * 8, b'\x00' * 8, b'cos\nsystem\n', b'.'])))
    return bytes(data)


def check_files(number, folder):
    @examples('files', number)
    @given(st.data(), st.sampled_from(['svit_micro', 'lookupvit_micro']), st.sampled_from(list(whole_files('svit_micro'))))
    def run(data, name, form):
        file = folder / f'file{form[1]}'
        file.unlink(missing_ok=True)  # a former one may still be mapped
        file.write_bytes(data.draw(damaged(whole_files(name)[form])))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            check(build(name), file)
    run()


def check_convert(number, folder):
    @examples('convert', number)
    @given(st.data(), st.sampled_from(list(whole_files('svit_micro'))), st.booleans())
    def run(data, form, whole):
        file, out = folder / f'file{form[1]}', folder / 'out.safetensors'
        for former in folder.iterdir():
            former.unlink()
        if whole:
            torch.save(data.draw(state_dicts('svit_micro')), file)
        else:
            file.write_bytes(data.draw(damaged(whole_files('svit_micro')[form])))
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            rc = main(['convert', 'svit_micro', str(file), '--out', str(out)])
        left = {path for path in folder.iterdir()} - {file}
        assert rc in (0, 1, 2) and left == ({out} if rc == 0 else set())
        out.unlink(missing_ok=True)
    run()


@pytest.mark.filterwarnings('ignore')
def test_state_dicts():
    check_state_dicts(QUICK)


def test_files(tmp_path):
    check_files(QUICK, tmp_path)


@pytest.mark.filterwarnings('ignore')
def test_convert(tmp_path, capsys):
    check_convert(QUICK, tmp_path)
    assert 'Traceback' not in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('room', MANY)
def test_many(room, tmp_path, capsys):
    {'state dicts': check_state_dicts, 'files': lambda number: check_files(number, tmp_path),
     'convert': lambda number: check_convert(number, tmp_path)}[room](MANY)
