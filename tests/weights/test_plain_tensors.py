"""Only plain tensors that hold their values get into a model, and only into one that can take them; else nothing is changed."""
import time

import memory
import pytest
import timm
import torch
import zoo
from safetensors.torch import save_file
from torch import nn

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.weights.files import flaw_of

NAME, ENTRY = 'svit_micro', 'stages.2.blocks.0.mlp.fc1.weight'  # half of the entries come before it


class Subclass(torch.Tensor):
    pass


FLAWS = {
    'meta': (lambda x: x.to('meta'), 'is on the meta device'),
    'sparse': (lambda x: x.to_sparse(), 'is sparse'),
    'compressed rows': (lambda x: x.to_sparse_csr(), 'is sparse'),
    'quantised': (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), 'is quantised'),
    'nested': (lambda x: torch.nested.nested_tensor([x[0], x[1]]), 'is a nested tensor'),
    'subclass': (lambda x: x.as_subclass(Subclass), 'is of type Subclass'),
    'complex': (lambda x: x + 0j, 'is complex'),
    'expanded': (lambda x: torch.zeros(1).expand(x.shape), 'values, of which 1 are stored'),
    'bool': (lambda x: x > 0, 'torch.bool in the file, torch.float32 in the model'),
    'fp8': (lambda x: x.to(torch.float8_e4m3fn), 'torch.float8_e4m3fn in the file'),
    'integers': (lambda x: x.to(torch.int8), 'torch.int8 in the file'),
    'a scalar': (lambda x: torch.tensor(1.), r'\(\) in the file'),
    'empty': (lambda x: x[:0], r'\(0, \d+\) in the file'),
}


def doors():
    yield timm.create_model(NAME), ''
    yield DenseBackbone(NAME), 'body.model.'


@pytest.mark.filterwarnings('ignore:The PyTorch API of nested tensors', 'ignore:Sparse CSR', 'ignore:torch.quantize_per_tensor')
@pytest.mark.parametrize('flaw', FLAWS)
def test_values_that_are_none_change_nothing(flaw):
    change, message = FLAWS[flaw]
    source = timm.create_model(NAME).state_dict()
    for model, _ in doors():
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with pytest.raises(ValueError, match=message) as refusal:
            vitzoo.load_checkpoint(model, {**source, ENTRY: change(source[ENTRY])})
        assert ENTRY in str(refusal.value) and '\n' not in str(refusal.value)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert flaw_of(source[ENTRY]) is None


def test_numbers_of_other_precision_are_taken():
    source, model = timm.create_model(NAME).state_dict(), timm.create_model(NAME)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        vitzoo.load_checkpoint(model, {key: value.to(dtype) for key, value in source.items()})
        assert all(torch.equal(value, source[key].to(dtype).to(value.dtype)) for key, value in model.state_dict().items())


@pytest.mark.parametrize('change', [
    lambda: torch.device('meta'), lambda: None], ids=['whole', 'one buffer'])
def test_models_that_hold_nothing_are_refused(change):
    device, state = change(), timm.create_model(NAME).state_dict()
    if device is not None:
        with device:
            model = timm.create_model(NAME)
    else:
        model = timm.create_model(NAME)
        model.register_buffer('table', torch.zeros(2, device='meta'), persistent=False)
    with pytest.raises(ValueError, match='of the model is on the meta device: .* Build the model on the CPU or a GPU'):
        vitzoo.load_checkpoint(model, state)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_quantised_models_are_refused():
    state = timm.create_model(NAME).state_dict()
    model = timm.create_model(NAME).eval()
    model.head.fc = torch.ao.quantization.quantize_dynamic(nn.Sequential(model.head.fc), {nn.Linear}, torch.qint8)[0]
    with pytest.raises(ValueError, match=r'head\.fc\.\S+ of the model is .*load weights before it is quantised'):
        vitzoo.load_checkpoint(model, state)


def test_a_model_that_cannot_be_written_to_is_an_error_in_one_line():
    with torch.inference_mode():
        model = timm.create_model(NAME)
    with pytest.raises(ValueError, match=r'^SViT does not take its weights \(.*\)\.$'):
        vitzoo.load_checkpoint(model, timm.create_model(NAME).state_dict())


@pytest.mark.parametrize('model, message', [
    (NAME, r"^model='svit_micro': expected a module; build it first: timm\.create_model\(NAME\)\.$"),
    (None, '^model=None: expected a module')])
def test_what_is_no_model(model, message):
    with pytest.raises(TypeError, match=message):
        vitzoo.load_checkpoint(model, {})


@pytest.mark.parametrize('content, message', [
    ({3: torch.zeros(1)}, 'expected names of entries, found 3'), ({'': torch.zeros(1)}, "expected names of entries, found ''"),
    ({'module.': torch.zeros(1)}, 'missing'), (b'name', 'found bytes'), (nn.Linear(1, 1), 'found Linear'), (None, 'found NoneType'),
    ({'model': {'a': {'b': torch.zeros(1)}}}, 'found dict'), ({'x\n\x1b[1m': torch.zeros(1)}, r'x\\n\\x1b\[1m'),
], ids=str)
def test_what_is_no_state_dict(content, message):
    model = timm.create_model(NAME)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        vitzoo.load_checkpoint(model, content)
    assert len(str(refusal.value)) < 300 and str(refusal.value).isprintable()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('key', ['', 'a' * 5000, 'é' * 5000, 'layers.0.' + 'b.' * 5000])
def test_messages_about_keys_are_short(key):
    model, state = timm.create_model(NAME), timm.create_model(NAME).state_dict()
    for given in ({f'{name}.{key}': value for name, value in state.items()}, {f'{key}.{name}': value for name, value in state.items()}):
        for options in (dict(), dict(prefix=f'{key}x')):
            with pytest.raises(ValueError) as refusal:
                vitzoo.load_checkpoint(model, given, **options)
            assert len(str(refusal.value)) < 300


@pytest.mark.parametrize('num_classes', [7, 1000])
@pytest.mark.parametrize('name', [*zoo.MICRO, 'resnet10t'])
def test_half_a_classifier(name, num_classes):
    """One of its entries is missing, the others are of other classes."""
    model = timm.create_model(name)
    classifiers = model.pretrained_cfg['classifier']
    for classifier in [classifiers] if isinstance(classifiers, str) else classifiers:
        for part in 'weight', 'bias':
            state = timm.create_model(name, num_classes=num_classes).state_dict()
            del state[f'{classifier}.{part}']
            with pytest.raises(ValueError, match='reset_head=True' if num_classes == 7 else 'missing'):
                vitzoo.load_checkpoint(model, state)
            report = vitzoo.load_checkpoint(model, state, reset_head=True)
            assert f'{classifier}.{part}' in report.new


COSTLY = {
    'a constant': (NAME, lambda state: {**state, 'layers.0.blocks.0.attn.stoken_refine.qkv.weight': torch.zeros(1),
                                        'layers.0.blocks.0.attn.fold.weights': torch.zeros(1).expand(60000, 60000)}),
    'positions': ('lookupvit_micro', lambda state: {**state, 'pos_embed': torch.zeros(1).expand(1, 10 ** 8, 128)}),
    "a ViT's positions": ('lookupvit_micro', lambda state: {'blocks.0.attn.qkv.weight': torch.zeros(1).expand(3 * 10 ** 5, 10 ** 5),
                                                           'pos_embed': torch.zeros(1).expand(1, 10 ** 8, 128)}),
    'a first convolution': (NAME, lambda state: {**state, 'stem.0.weight': torch.zeros(1).expand(16, 10 ** 8, 3, 3)}),
    'a classifier': (NAME, lambda state: {**state, 'head.fc.weight': torch.zeros(1).expand(10 ** 8, 256)}),
    'a stored constant': (NAME, lambda state: {**state, 'layers.0.blocks.0.attn.stoken_refine.qkv.weight': torch.zeros(1),
                                               'layers.0.blocks.0.attn.fold.weights': torch.zeros(3000, 3000)}),
}


@pytest.mark.parametrize('case', COSTLY)
@pytest.mark.parametrize('by_file', [True, False], ids=['file', 'state dict'])
def test_small_files_cost_little(case, by_file, tmp_path):
    name, change = COSTLY[case]
    model = timm.create_model(name)
    content = change(model.state_dict())
    if by_file:
        torch.save(content, tmp_path / 'file.pth')
        content = tmp_path / 'file.pth'
    start = time.process_time()
    with memory.measured() as used, pytest.raises(ValueError):
        vitzoo.load_checkpoint(model, content)
    assert used.peak < 2 ** 27 and time.process_time() - start < 5


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_of_a_large_file_the_model_takes_its_part(suffix, tmp_path):
    """The state of an optimizer, and the other parts of a detector, stay in the file."""
    model = timm.create_model(NAME)
    state, rest, file = model.state_dict(), torch.zeros(2 ** 26), tmp_path / f'file{suffix}'
    if suffix == '.pth':
        torch.save({'state_dict': state, 'optimizer': rest}, file)
    else:
        save_file({**{f'backbone.{key}': value for key, value in state.items()}, 'neck.weight': rest}, file)
    del rest
    with memory.measured() as used:
        assert len(vitzoo.load_checkpoint(model, file).loaded) == len(state)
    assert used.peak < 2 ** 26
