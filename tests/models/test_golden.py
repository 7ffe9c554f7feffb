"""Every model gives what the published code gives, on weights in the published layout."""
from argparse import Namespace

import golden
import pytest
import timm
import torch

import vitzoo

CASES = sorted(str(path.relative_to(golden.DATA)) for path in golden.DATA.glob('*/*.npz'))
SMALL = 'svit/svit_small-balanced.npz'


@torch.inference_mode()
def outputs(model, image):
    """All that a case may store: logits, pre_logits, feat0..3, and attn0..3 of the last attention of each stage (NCHW)."""
    found = {}
    for i, stage in enumerate(model.stages):
        stage.blocks[-1].attn.register_forward_hook(lambda module, args, out, i=i: found.update({f'attn{i}': out.permute(0, 3, 1, 2)}))
    x, maps = model.forward_intermediates(image)
    found |= {f'feat{i}': m for i, m in enumerate(maps)}
    found['pre_logits'] = model.forward_head(x, pre_logits=True)[:, :, None, None]
    found['logits'] = model.forward_head(x)
    return found


def assert_published(model, facts, published):
    found = outputs(model.eval(), golden.make_input(facts['seed'], facts['shape']))
    assert set(published) <= set(found)
    errors = {name: golden.error(golden.take(found[name], facts['index'].get(name, ':')), value) for name, value in published.items()}
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize('case', CASES)
def test_golden_case(case):
    facts, published = golden.load_case(case)
    model = timm.create_model(facts['model'])
    report = vitzoo.load_checkpoint(model, golden.make_state_dict(facts['entries'], facts['rescale']))
    assert not report.dropped and all(name.endswith('num_batches_tracked') for name in set(model.state_dict()) - set(report.loaded))
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
