"""ToMe: what the published code computes, single matchings, labels, and pooling by size."""
import pytest
import timm
import torch
from deit import check_logits, last_tokens, reduced
from golden import error, fill, load_case

import vitzoo
from vitzoo.reduction.method import take_rows
from vitzoo.reduction.methods.tome import ToMe, labels, match, match_kth, merge_rows, new_rows

CASES = ['deit_small-r8', 'deit_small-r8-decreasing', 'deit_small-r13', 'deit_small-r13-noprop', 'deit_tiny-r16']


def options(name):
    kwargs = load_case(f'tome/{name}.npz')[0]['kwargs']
    r = kwargs['r']
    return dict(r=tuple(r) if isinstance(r, list) else r, prop_attn=kwargs['prop_attn'])


@pytest.mark.parametrize('name', CASES)
@torch.no_grad()
def test_published(name):
    model, image, published = reduced(f'tome/{name}.npz', 'tome', **options(name))
    check_logits(model, image, published)
    tokens = last_tokens(model, image)
    assert (labels(tokens).numpy() == published['source']).all()
    assert (tokens.size.numpy() == published['size']).all()


OPERATIONS = load_case('tome/ops-matching.npz')


@pytest.mark.parametrize('row', OPERATIONS[0]['notes']['rows'], ids=lambda row: f'case{row["case"]}')
def test_published_matching(row):
    facts, published = OPERATIONS
    shapes, i, N = {name: tuple(shape) for name, shape, _ in facts['entries']}, row['case'], row['tokens']
    metric, x = (torch.from_numpy(fill(name, shapes[name])) for name in (f'metric{i}', f'x{i}'))
    if 'kth' in row:
        merge, size = match_kth(metric, row['kth']), None
    else:
        num_prefix = row['class_token'] + row['distill_token']
        merge = match(metric, min(row['r'], (N - num_prefix) // 2), num_prefix)
        size = (1 + 10 * torch.from_numpy(fill(f'size{i}', shapes[f'size{i}'])).abs()).round().flatten(1)
    merged, sizes, _ = merge_rows(x, size, merge)
    assert error(merged.numpy(), published[f'merged{i}']) < 1e-6
    assert (sizes.numpy() == published[f'size_out{i}'][..., 0]).all()
    if f'unmerged{i}' in published:
        assert error(take_rows(merged, new_rows(merge, N)).numpy(), published[f'unmerged{i}']) < 1e-6


def test_schedule():
    # the published schedule of (8, -1) on 12 blocks, and the counts of tokens, class token included, after the last one
    assert ToMe(r=(8, -1)).numbers(12) == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    for r, left in ((8, 101), ((8, -1), 106), (13, 41), (16, 11), (20, 4), (25, 2)):
        assert ToMe(r=r).schedule(196, 12)[-1] + 1 == left
    assert ToMe(r=[5, 3]).numbers(4) == [5, 3, 0, 0]


@pytest.mark.parametrize('num_prefix', [0, 1, 2, 3, 5])
@torch.no_grad()
def test_sizes_and_labels(num_prefix):
    """Each input patch has one label, sizes count them, and prefix tokens are on their own whatever their number."""
    kwargs = dict(class_token=num_prefix > 0, reg_tokens=max(num_prefix - 1, 0), global_pool='token' if num_prefix else 'avg')
    model = timm.create_model('vit_tiny_patch16_224', depth=3, dynamic_img_size=True, **kwargs).eval()
    vitzoo.reduce_tokens(model, 'tome', r=7)
    tokens = last_tokens(model, torch.randn(2, 3, 80, 112))
    assert tokens.num_patches == 35 - 2 * 7 - 7 == model.reduction.schedule(35, 3)[-1]
    where = labels(tokens)
    counts = torch.stack([row.bincount(minlength=num_prefix + 14) for row in where])
    assert torch.equal(counts.float(), tokens.size)
    assert (counts[:, :num_prefix] == 1).all() and (where[:, :num_prefix] == torch.arange(num_prefix)).all()


@torch.no_grad()
def test_average_pooling_counts_patches():
    model = timm.create_model('vit_tiny_patch16_224', depth=3, img_size=96, class_token=False, global_pool='avg').eval()
    image = torch.randn(2, 3, 96, 96)
    vitzoo.reduce_tokens(model, 'tome', r=8)
    tokens = last_tokens(model, image)
    mean = (tokens.size[..., None] * model.norm(tokens.x)).sum(1) / 36
    torch.testing.assert_close(model(image), model.head(model.fc_norm(mean)), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_equal_patches_merge_without_loss():
    """With no positions an image of nine different patches, each nine times, is the same to the model after merging."""
    model = timm.create_model('vit_tiny_patch16_224', depth=3, img_size=144, pos_embed='none').eval()
    image = torch.randn(1, 3, 48, 48).repeat(1, 1, 3, 3)
    plain = model(image)
    torch.testing.assert_close(vitzoo.reduce_tokens(model, 'tome', r=16)(image), plain, rtol=1e-4, atol=1e-5)
    assert (vitzoo.reduce_tokens(model, 'tome', r=16, prop_attn=False)(image) - plain).abs().max() > 1e-4


@pytest.mark.parametrize('kwargs, words', [
    (dict(r=-1), 'r=-1'), (dict(r=1.5), 'r=1.5'), (dict(r='all'), "r='all'"), (dict(r=(8, 2.)), 'inflection'),
    (dict(r=[1] * 13), 'at most 12'), (dict(r=[4, -4]), r'\[4, -4\]'),
    (dict(prop_attn='yes'), "prop_attn='yes'"), (dict(match='nearest'), "match='nearest'")])
def test_bad_options(kwargs, words):
    model = timm.create_model('deit_tiny_patch16_224')
    with pytest.raises(ValueError, match=words):
        vitzoo.reduce_tokens(model, 'tome', **kwargs)
