"""Layer-wise decay of the learning rate over every kind of model that we train."""
import pytest
import timm
import torch
import zoo

pytest.importorskip('mmengine')
from vitzoo.mm import Backbone, Classifier, LayerDecayConstructor  # noqa: E402

NAMES = [*zoo.FIRST.values(), 'swin_tiny_patch4_window7_224', 'vit_tiny_patch16_224', 'resnet10t']
DECAY, WEIGHT_DECAY = 0.5, 0.1


class Detector(torch.nn.Module):
    def __init__(self, name, **kwargs):
        super().__init__()
        self.backbone = Backbone(name, out_norm='layer', **kwargs)
        self.head = torch.nn.Conv2d(self.backbone.out_channels[-1], 4, 1)


def groups_of(net, **paramwise):
    """The parameter group of each trained parameter, by name."""
    optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1.0, weight_decay=WEIGHT_DECAY))
    groups = LayerDecayConstructor(optim_wrapper, paramwise)(net).optimizer.param_groups
    by_id = {id(p): group for group in groups for p in group['params']}
    assert sum(len(group['params']) for group in groups) == len(by_id)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert by_id.keys() == {id(p) for p in trained.values()}
    return {name: by_id[id(p)] for name, p in trained.items()}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('kind', ['classifier', 'detector'])
def test_layer_decay(kind, name):
    with torch.device('meta'):
        net = Classifier(name) if kind == 'classifier' else Detector(name)
    model, prefix = (net.model, 'model.') if kind == 'classifier' else (net.backbone.model, 'backbone.body.model.')
    groups = groups_of(net, layer_decay=DECAY)

    untouched = model.no_weight_decay() if hasattr(model, 'no_weight_decay') else set()
    for parameter, group in groups.items():
        decays = net.get_parameter(parameter).ndim > 1 and parameter.removeprefix(prefix) not in untouched
        assert group['weight_decay'] == (WEIGHT_DECAY if decays else 0), parameter

    # along the model, whose modules are registered in the order of use, the rate grows from layer to layer by the same factor
    inside = [group['lr'] for parameter, group in groups.items() if parameter.startswith(prefix)]
    rates = sorted(set(inside))
    assert all(b == pytest.approx(a / DECAY) for a, b in zip(rates, rates[1:], strict=False)) and len(rates) >= 4
    blocks = [group['lr'] for parameter, group in groups.items() if '.blocks.' in parameter and parameter.endswith('mlp.fc1.weight')]
    assert blocks == sorted(blocks)
    assert inside[0] == rates[0] and rates[-1] == 1
    outside = {parameter: group['lr'] for parameter, group in groups.items() if not parameter.startswith(prefix)}
    assert set(outside.values()) <= {1.0}
    if kind == 'detector':
        assert {'head.weight', 'backbone.norm0.weight'} <= outside.keys()
        assert (net.backbone.pyramid is None) == (not any('.pyramid.' in parameter for parameter in outside))


def test_position_tables_do_not_decay():
    with_tables = set()
    for name in NAMES:
        with torch.device('meta'):
            groups = groups_of(Classifier(name), layer_decay=1.0)
        for parameter, group in groups.items():
            if parameter.endswith(('bias_table', 'pos_embed', 'pos_compressed')):
                with_tables.add(name)
                assert group['weight_decay'] == 0, f'{parameter} of {name}'
    assert {'stvit_micro', 'lookupvit_micro', 'swin_tiny_patch4_window7_224'} <= with_tables


def test_is_the_rule_of_timm():
    model = timm.create_model('vit_tiny_patch16_224')
    groups = timm.optim.param_groups_layer_decay(model, WEIGHT_DECAY, model.no_weight_decay(), layer_decay=DECAY)
    expected = {id(p): group for group in groups for p in group['params']}
    for name, group in groups_of(model, layer_decay=DECAY).items():
        wanted = expected[id(model.get_parameter(name))]
        assert (group['lr'], group['weight_decay']) == (wanted['lr_scale'], wanted['weight_decay'])


def test_frozen_parameters_are_left_out():
    net = Detector('svit_micro', frozen_stages=1)
    names = groups_of(net, layer_decay=DECAY)
    assert not any(name.startswith(('backbone.body.model.stem', 'backbone.body.model.stages.0')) for name in names)


def test_layer_decay_of_one_is_a_single_rate():
    assert {group['lr'] for group in groups_of(Detector('svit_micro'), layer_decay=1.0).values()} == {1.0}


@pytest.mark.parametrize('paramwise', [dict(layer_decay=0), dict(layer_decay=1.5), dict(decay_rate=0.9)])
def test_bad_layer_decay(paramwise):
    with pytest.raises(ValueError, match='layer_decay'):
        groups_of(Detector('svit_micro'), **paramwise)


def test_layer_decay_needs_a_timm_model():
    with pytest.raises(ValueError, match='group_matcher'):
        groups_of(torch.nn.Linear(2, 2), layer_decay=DECAY)
