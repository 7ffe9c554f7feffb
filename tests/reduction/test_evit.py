"""EViT: what the published code computes, what it keeps, and the way back."""
import math

import pytest
import timm
import torch
from deit import check_logits, kept_patches, last_tokens, reduced
from golden import load_case

import vitzoo
from vitzoo.reduction.methods.evit import EViT

CASES = ['deit_small-keep0.5-fuse', 'deit_small-keep0.7-fuse', 'deit_small-keep0.7-prune', 'deit_tiny-keep0.9-fuse']


def options(name):
    kwargs = load_case(f'evit/{name}.npz')[0]['kwargs']
    return dict(keep_rate=kwargs['keep_rate'], locations=kwargs['drop_loc'], fuse=kwargs['fuse_token'])


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_published(name):
    model, image, published = reduced(f'evit/{name}.npz', 'evit', **options(name))
    check_logits(model, image, published)
    kept = kept_patches(last_tokens(model, image))
    assert len(kept) == 3
    for i, index in enumerate(kept):
        assert (index.numpy() == published[f'idx{i}']).all()


def test_schedule():
    # the published counts, with the class token: 140/100/72 with a fused token, 139/98/69 without
    assert [EViT().schedule(196, 12)[i] + 1 for i in (3, 6, 9)] == [140, 100, 72]
    assert [EViT(fuse=False).schedule(196, 12)[i] + 1 for i in (3, 6, 9)] == [139, 98, 69]
    assert EViT(keep_rate=(0.5, 1., 0.5), locations=(0, 1, 2)).schedule(8, 3) == (5, 5, 4)


def test_nothing_to_drop():
    # ceil(0.9 * 4) = 4: all stay, and no fused token comes in
    assert EViT(keep_rate=0.9, locations=(0,)).schedule(4, 1) == (4,)
    model = timm.create_model('deit_tiny_patch16_224', depth=2, img_size=32).eval()
    image = torch.randn(1, 3, 32, 32)
    plain = model(image)
    assert torch.equal(vitzoo.reduce_tokens(model, 'evit', keep_rate=0.9, locations=(0, 1))(image), plain)


@torch.no_grad()
def test_step_by_hand():
    """One step against loops: scores are the class token's attention, the fused token the weighted sum of what is dropped."""
    model = timm.create_model('deit_tiny_patch16_224', depth=1, img_size=64).eval()
    image = torch.randn(2, 3, 64, 64)
    block, x = model.blocks[0], model._pos_embed(model.patch_embed(image))
    q, k, v = block.attn.qkv(block.norm1(x)).view(2, 17, 3, 3, 64).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-2, -1) / 8).softmax(-1)
    x = x + block.attn.proj((attention @ v).transpose(1, 2).flatten(2))
    expected = []
    for b in range(2):
        score = attention[b, :, 0, 1:].mean(0)
        order = sorted(range(16), key=lambda j: -score[j].item())
        kept, dropped = order[:math.ceil(0.6 * 16)], order[math.ceil(0.6 * 16):]
        fused = sum(score[j] * x[b, 1 + j] for j in dropped)
        expected.append(torch.stack([x[b, 0], *(x[b, 1 + j] for j in kept), fused]))
    x = torch.stack(expected)
    x = model.norm(x + block.mlp(block.norm2(x)))
    vitzoo.reduce_tokens(model, 'evit', keep_rate=0.6, locations=(0,))
    torch.testing.assert_close(model.forward_features(image), x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_restored_grid():
    """What was kept is at its place with its present value; what was dropped is a mean of kept tokens."""
    model = timm.create_model('deit_tiny_patch16_224', depth=4, img_size=96).eval()
    image = torch.randn(2, 3, 96, 96)
    vitzoo.reduce_tokens(model, 'evit', keep_rate=0.5, locations=(0, 2))
    tokens = last_tokens(model, image)
    grid = model.forward_intermediates(image, indices=1, output_fmt='NLC', intermediates_only=True)[0]
    first, second = tokens.history
    assert grid.shape == (2, 36, 192) and tokens.num_patches == 11
    for b in range(2):
        place = first.order[b].tolist()  # after the first step: which patch each token is; the fused one is none
        for j, token in enumerate(second.order[b, :second.num_kept].tolist()):
            if token < first.num_kept:
                torch.testing.assert_close(grid[b, place[token]], tokens.patches[b, j])
    low, high = tokens.patches[:, :10].amin(1, keepdim=True), tokens.patches[:, :10].amax(1, keepdim=True)
    assert ((grid >= low - 1e-5) & (grid <= high + 1e-5)).all()


@pytest.mark.parametrize('kwargs, words', [
    (dict(keep_rate=0.), 'keep_rate=0.0'), (dict(keep_rate=1.5), 'keep_rate=1.5'), (dict(keep_rate=(0.5, 0.5)), '3 as there are'),
    (dict(keep_rate='much'), "keep_rate='much'"), (dict(locations=(3, 12)), 'from 0 to 11'), (dict(locations=(6, 3)), 'ascending'),
    (dict(position='best'), "position='best'")])
def test_bad_options(kwargs, words):
    model = timm.create_model('deit_tiny_patch16_224')
    with pytest.raises(ValueError, match=words):
        vitzoo.reduce_tokens(model, 'evit', **kwargs)
    assert type(model) is timm.models.VisionTransformer
