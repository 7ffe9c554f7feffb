"""Names that wrappers add count in neither files nor models."""
import pytest
import timm
import torch
import zoo
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.weights.names import unwrapped


def compile_inside(model):
    """One part alone, as is done for speed of compilation."""
    name, part = list(model.named_children())[-1]
    setattr(model, name, torch.compile(part))
    return model


WRAPPERS = {
    'torch.compile': torch.compile, 'a compiled part': compile_inside, 'DataParallel': nn.DataParallel, 'AveragedModel': AveragedModel,
    "timm's average": ModelEmaV3, 'both': lambda model: nn.DataParallel(torch.compile(model)),
    'the other way round': lambda model: torch.compile(AveragedModel(model)),
}


def values(model):
    return [value for name, value in model.state_dict().items() if not name.endswith('n_averaged')]


@pytest.mark.parametrize('wrap', WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize('name', zoo.first_quick(zoo.MICRO))
def test_wrapped_models_and_their_files(name, wrap):
    source, model, wrapped = timm.create_model(name), timm.create_model(name), wrap(timm.create_model(name))
    counts = [key for key in wrapped.state_dict() if key.endswith('n_averaged')]

    report = vitzoo.load_checkpoint(wrapped, source.state_dict())
    assert set(report.loaded) == wrapped.state_dict().keys() - set(counts) and report.new == counts and not report.dropped
    assert all(torch.equal(a, b) for a, b in zip(values(wrapped), source.state_dict().values(), strict=True))

    report = vitzoo.load_checkpoint(model, wrapped.state_dict())
    assert set(report.loaded) == set(model.state_dict()) and report.dropped == counts and not report.new
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), source.state_dict().values(), strict=True))

    report = vitzoo.load_checkpoint(wrapped, {'model_state_dict': wrapped.state_dict()})
    assert report.loaded.sort() == list(wrapped.state_dict()).sort() and not report.new and not report.dropped


def test_names_in_the_middle_of_a_file():
    """Of a detector whose backbone was compiled, and whose file is for the backbone alone."""
    source, backbone = DenseBackbone('svit_micro'), DenseBackbone('svit_micro')
    compiled = compile_inside(DenseBackbone('svit_micro'))
    vitzoo.load_checkpoint(compiled, source.state_dict())
    report = vitzoo.load_checkpoint(backbone, {f'module.backbone.{key}': value for key, value in compiled.state_dict().items()})
    assert set(report.loaded) == set(source.state_dict()) and not (report.new or report.dropped)
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in backbone.state_dict().items())


def test_dense_backbone_with_a_compiled_body():
    source, backbone = timm.create_model('svit_micro'), DenseBackbone('svit_micro')
    backbone.body = torch.compile(backbone.body)
    report = vitzoo.load_checkpoint(backbone, source.state_dict())
    assert set(report.loaded) == set(backbone.state_dict()) and 'body._orig_mod.model.stem.0.weight' in report.loaded
    assert torch.equal(backbone.model.stem[0].weight, source.stem[0].weight)


def test_a_model_may_have_a_part_of_such_a_name():
    with torch.device('meta'):
        model = timm.create_model('iformer_t').to_empty(device='cpu')
    assert any('.module.' in key for key in model.state_dict())
    report = vitzoo.load_checkpoint(torch.compile(model), model.state_dict())
    assert len(report.loaded) == len(model.state_dict()) and not (report.new or report.dropped)
    assert unwrapped(torch.compile(model)) is model


def test_two_names_for_one_entry_are_refused():
    model = timm.create_model('svit_micro')
    before, name = {key: value.clone() for key, value in model.state_dict().items()}, 'stages.1.blocks.0.norm1.weight'
    message = r'two names for one entry, stages\.1\.blocks\.0\.norm1\.weight and _orig_mod\.stages\.1\.blocks\.0\.norm1\.weight: leave one'
    with pytest.raises(ValueError, match=message):
        vitzoo.load_checkpoint(model, {**model.state_dict(), f'_orig_mod.{name}': torch.zeros_like(before[name])})
    flat = timm.create_model('resnet10t', features_only=True)
    both = {**flat.state_dict(), 'layer1.0.conv1.weight': flat.state_dict()['layer1.0.conv1.weight'], 'module.layer1.0.conv1.weight':
            torch.zeros(1)}
    with pytest.raises(ValueError, match='two names for one entry'):
        vitzoo.load_checkpoint(flat, both)
    published = {'patch_embed.proj.0.weight': before['stem.0.weight'], 'stem.0.weight': before['stem.0.weight'],
                 'layers.0.blocks.0.attn.stoken_refine.qkv.weight': torch.zeros(1)}
    with pytest.raises(ValueError, match=r'patch_embed\.proj\.0\.weight and stem\.0\.weight are both stem\.0\.weight of the model'):
        vitzoo.load_checkpoint(model, published)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
