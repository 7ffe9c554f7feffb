"""Every model gives what the published code gives, on weights in the published layout."""
import copy
import re
from argparse import Namespace

import golden
import pytest
import timm
import torch
import zoo

import vitzoo
from vitzoo.dense import DenseBackbone

SLOW = re.compile(r'_(base|large)|davit_small|swin_small_dense-(224|256x320)|biformer_small\.|rmt_[bl]')
CASES = zoo.slow_if(SLOW.search, sorted(
    str(path.relative_to(golden.DATA)) for family in zoo.FAMILIES for path in golden.DATA.glob(f'{family}/*.npz')))
SMALL = 'svit/svit_small-balanced.npz'
OPTIONS = ('n_win', 'use_global', 'shortcut')  # published arguments that change the function, called the same here


def build(facts):
    """The model of a case: a classifier, or a dense backbone with the published output norms."""
    name = golden.our_name(facts)
    kwargs = {key: value for key, value in facts['kwargs'].items() if key in OPTIONS}
    heads = any(entry[0].startswith('head.') for entry in facts['entries'])
    return timm.create_model(name, **kwargs) if heads else DenseBackbone(name, **kwargs)


@torch.inference_mode()
def outputs(model, image, wanted):
    """What a case stores: logits, pre_logits, feat0..3 and their means, attn0..3 of the last attention of each stage."""
    if isinstance(model, DenseBackbone):
        maps = model(image)
        return {f'feat{i}': m for i, m in enumerate(maps)} | {f'feat{i}_mean': m.mean((2, 3)) for i, m in enumerate(maps)}
    found = {}
    for i, stage in enumerate(model.stages):
        if f'attn{i}' in wanted:
            stage.blocks[-1].attn.register_forward_hook(lambda module, args, out, i=i: found.update({f'attn{i}': out}))
    x, maps = model.forward_intermediates(image)
    found |= {f'feat{i}': m for i, m in enumerate(maps)}
    found['pre_logits'] = model.forward_head(x, pre_logits=True)[:, :, None, None]
    found['logits'] = model.forward_head(x)
    return found


def assert_published(model, facts, published):
    """Within the limit of what is stored. Both are float32, and on some CPUs their roundings add up to more in DaViT's last maps: then each
    must be within the limit of what the model gives in float64.
    """
    def errors(found, expected):
        return {name: golden.error(found[name], value) for name, value in expected.items()}

    image, limit = golden.make_input(facts['seed'], facts['shape']), golden.limit(facts)
    single = taken(model.eval(), image, facts, published)
    found = errors(single, published)
    if max(found.values()) >= limit and facts['family'] == 'davit':
        double = taken(copy.deepcopy(model).double(), image.double(), facts, published)
        found = {**{f'{name}, stored': error for name, error in errors(double, published).items()},
                 **{f'{name}, ours': error for name, error in errors(single, double).items()}}
    assert max(found.values()) < limit, found


def taken(model, image, facts, published):
    """The model's values where the case stores them."""
    found = outputs(model, image, published)
    if facts['family'] == 'svit' or facts['model'] == 'biformer_stl_nchw':  # whose attention answers channels first
        found = {name: x.permute(0, 3, 1, 2) if name.startswith('attn') else x for name, x in found.items()}
    assert set(published) <= set(found)
    return {name: golden.take(found[name], facts['index'].get(name, ':')) for name in published}


@pytest.mark.parametrize('case', CASES)
def test_golden_case(case):
    facts, published = golden.load_case(case)
    model = build(facts)
    report = vitzoo.load_checkpoint(model, golden.make_state_dict(facts['entries'], facts['rescale']))
    assert not report.dropped and not report.new
    assert_published(model, facts, published)


@pytest.mark.parametrize('case', [
    'biformer/biformer_tiny.npz', 'biformer/biformer_stl_nchw.npz', 'davit/davit_tiny.npz', 'davit/davit_tiny-timm.npz',
    'stvit/stvit_r_swin_tiny.npz',
])
def test_golden_case_as_a_local_file_of_timm(case, tmp_path):
    facts, published = golden.load_case(case)
    path = tmp_path / 'published.pth'
    torch.save({'model': golden.make_state_dict(facts['entries'], facts['rescale'])}, path)
    name = build(facts).pretrained_cfg['architecture']
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert_published(model, facts, published)


def test_golden_case_by_timm(tmp_path):
    """The file as the training script wrote it, given to timm."""
    facts, published = golden.load_case(SMALL)
    state = golden.make_state_dict(facts['entries'], facts['rescale'])
    blocks = {name.split('.attn.')[0] for name in state if '.attn.' in name}
    frozen = {f'{block}.attn.{kind}.weights': torch.eye(9).reshape(9, 1, 3, 3) for block in blocks for kind in ('fold', 'unfold')}
    path = tmp_path / 'stvit-small-224.pth'
    optimizer = {'state': {}, 'param_groups': [{'lr': 1e-3}]}
    torch.save({'model': state | frozen, 'optimizer': optimizer, 'epoch': 299, 'args': Namespace(lr=1e-3)}, path)
    model = timm.create_model('svit_small', pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    assert_published(model, facts, published)


def test_golden_case_shows_small_changes():
    """The tolerance is tight enough to catch the usual slips, such as another epsilon in a norm."""
    facts, published = golden.load_case(SMALL)
    model = timm.create_model(facts['model'])
    vitzoo.load_checkpoint(model, golden.make_state_dict(facts['entries'], facts['rescale']))
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    with pytest.raises(AssertionError, match='logits'):
        assert_published(model, facts, published)
