"""Every argument of the public functions and classes, as signatures have them: it is taken, or a ValueError names it in one line."""
import dataclasses
import inspect

import numpy as np
import pytest
import timm
import torch
from torch import nn

import vitzoo
from vitzoo.arguments import show
from vitzoo.reduction import METHODS

VALUES = (
    True, -1, 0, 1.5, float('nan'), float('inf'), 10 ** 9, 2 ** 63, 10 ** 5000, 1j, np.float32('nan'), np.ones(3), torch.ones(3),
    '', 'no_such', 'a\nb', b'a', object(), nn.Linear, len, set(), {}, {1: 2}, (), [], [[1]], ('a', 'b'), (1.5, 2.5),
    (10 ** 30,) * 2, (-1, 0),
)
CONFIGS = ('loss', 'mixup', 'data_preprocessor', 'init_cfg')  # what a dict of these says is the business of mmengine and timm


class Refused(Exception):
    """Stands for all that comes after the checks."""


def complaints(function, argument, **others):
    """By value, what function raises that is not a ValueError of one line which names the argument; a value that passes is fine."""
    found = {}
    for value in VALUES:
        if isinstance(value, dict) and argument in CONFIGS:
            continue
        try:
            function(**others, **{argument: value})
        except ValueError as e:
            if '\n' in str(e) or len(str(e)) > 400 or argument not in str(e):
                found[show(value)] = f'ValueError: {e}'
        except Refused:
            pass
        except Exception as e:
            found[show(value)] = f'{type(e).__name__}: {e}'
    return found


def sweep(function, **others):
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD and p.name != 'self']
    found = {name: complaints(function, name, **{key: value for key, value in others.items() if key != name})
             for name in names}
    return {name: texts for name, texts in found.items() if texts}


def test_dense_backbone():
    assert sweep(vitzoo.DenseBackbone, model_name='svit_micro') == {}


def test_token_map():
    assert sweep(vitzoo.token_map, model=timm.create_model('svit_micro'), image=torch.zeros(3, 8, 8)) == {}


def test_profile():
    assert sweep(vitzoo.profile, model=nn.Conv2d(3, 4, 3), input_size=8, batch=1) == {}


def test_export_onnx(tmp_path, monkeypatch):
    pytest.importorskip('onnx')
    from vitzoo.export import exporter

    def steps(expected, show):
        raise Refused
    monkeypatch.setattr(exporter, 'progress_bar', steps)  # the work begins there
    monkeypatch.chdir(tmp_path)
    assert sweep(vitzoo.export_onnx, model=nn.Conv2d(3, 4, 3), path='m.onnx', input_size=8) == {}


PARTS = {
    'Backbone': dict(model_name='svit_micro'), 'Classifier': dict(model_name='svit_micro'), 'ClassDiceLoss': {},
    'ImageFolder': dict(root='.', input_size=8), 'RepeatAugSampler': dict(dataset=range(8)), 'FSDPStrategy': {},
}


@pytest.mark.parametrize('name', PARTS)
def test_parts_for_mmengine(name, tmp_path, monkeypatch):
    mm = pytest.importorskip('vitzoo.mm')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a' / 'b.png').touch()
    assert sweep(getattr(mm, name), **PARTS[name]) == {}


def test_layer_decay():
    mm = pytest.importorskip('vitzoo.mm')

    def build(layer_decay):
        mm.LayerDecayConstructor(dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=1)), dict(layer_decay=layer_decay))(
            timm.create_model('svit_micro'))
    assert complaints(build, 'layer_decay') == {}


def tiny_vit():
    return timm.create_model('vit_tiny_patch16_224', depth=2, embed_dim=16, num_heads=2, img_size=64, num_classes=3).eval()


def test_reduce_tokens():
    assert sweep(vitzoo.reduce_tokens, model=tiny_vit(), method='tome') == {}
    assert complaints(vitzoo.restore_tokens, 'model') == {}


# what fits a model of two blocks; an option that is not here fits it by default
FITTING = dict(locations=(0, 1), token_locations=(0, 1), location=0, clusters=(2, 2), keep=3, reduce_n_factor=2)
OPTIONS = [(method, field.name) for method, kind in METHODS.items() for field in dataclasses.fields(kind)]


@pytest.mark.parametrize('method, option', OPTIONS)
@torch.no_grad()
def test_options_of_reduction(method, option):
    """What is taken runs; what is not changes nothing."""
    names = [field.name for field in dataclasses.fields(METHODS[method])]
    others = {name: value for name, value in FITTING.items() if name in names and name != option}
    model, x = tiny_vit(), torch.zeros(1, 3, 64, 64)

    def reduce_and_run(**options):
        before = list(model.state_dict())
        try:
            vitzoo.reduce_tokens(model, method, **others, **options)
        except ValueError as e:
            assert len(str(e)) < 300 and list(model.state_dict()) == before and type(model) is type(tiny_vit()), e
            raise
        assert model.eval()(x).isfinite().all()
        vitzoo.restore_tokens(model)
    assert complaints(reduce_and_run, option) == {}


@pytest.mark.parametrize('method, option, values', [
    ('evit', 'keep_rate', (0, 0., -0.5, 1.01, (0.5,), (0.5, 0.), (0.5, 0.5, 0.5))),
    ('evit', 'locations', ((-1,), (2,), (1, 0), (1, 1), (0.5,), 1)),
    ('evit', 'position', ('rotated', None, 0)),
    ('tome', 'r', (-1, 0.5, True, [-1], [1, 1, 1], [1.5], (5, 1.5), (5, -2), (-5, 0.), (5,), (5, 0.5, 1), None, '13')),
    ('tome', 'position', ('none', None, 0)),
    ('tome', 'match', ('mean', None, 0)),
], ids=str)
def test_options_of_reduction_out_of_range(method, option, values):
    others = {'locations': (0, 1)} if method == 'evit' and option != 'locations' else {}
    for value in values:
        with pytest.raises(ValueError, match=option):
            vitzoo.reduce_tokens(tiny_vit(), method, **others, **{option: value})
    with pytest.raises(TypeError, match=f"no option 'no_such'; there are: .*{option}"):
        vitzoo.reduce_tokens(tiny_vit(), method, no_such=1)
