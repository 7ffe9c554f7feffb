"""Sparsifiner: the published figures, its masks, and what its tables are tied to."""
import golden
import numpy as np
import pytest
import timm
import torch

import vitzoo
from vitzoo.reduction.methods.sparsifiner import Sparsifiner, largest
from vitzoo.reduction.training import sparsifiner_loss


def small(img_size=32, **options):
    """16 patches and a class token, 3 blocks."""
    return timm.create_model('vit_tiny_patch16_224', img_size=img_size, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=4,
                             **options)


def reduced(**options):
    """With scores that tell keys apart, which those of new predictors hardly do."""
    model = vitzoo.reduce_tokens(small(), 'sparsifiner', **{'reduce_n_factor': 2, 'basis_coef_topk': 4, **options}).eval()
    for name, parameter in model.named_parameters():
        if 'predictor' in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def watched(model, monkeypatch):
    """(masks, kept tokens) that each block of the model is about to see, filled as it runs."""
    masks, kept, original = [], [], Sparsifiner.mask

    def mask(*args):
        result, tokens = original(*args)
        masks.append(result)
        kept.append(tokens.memory.active if tokens.memory else None)
        return result, tokens
    monkeypatch.setattr(Sparsifiner, 'mask', mask)
    return masks, kept


def unpacked(bits, like):
    return torch.from_numpy(np.unpackbits(bits)[:like.numel()].reshape(like.shape)).bool()


def published(case):
    """(model, image, published outputs, notes)"""
    facts, outputs = golden.load_case(f'sparsifiner/{case}.npz')
    given = facts['kwargs']
    size = {'img_size': given['img'], 'depth': given['depth']} if 'img' in given else {}
    model = timm.create_model(f'deit_{given.get("size", "tiny")}_patch16_224', **size).eval()
    vitzoo.reduce_tokens(
        model, 'sparsifiner', attn_keep=given['attn_keep'], reduce_n_factor=given['reduce_n_factor'],
        token_keep=given.get('token_base', 1.), token_locations=given.get('token_loc', ()))
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    report = vitzoo.load_checkpoint(model, golden.make_state_dict(facts['entries'], facts['rescale']))
    assert len(report.loaded) == len(facts['entries']) and not report.dropped and not report.new
    return model, golden.make_input(facts['seed'], facts['shape']), outputs, facts['notes']


@pytest.mark.parametrize('case', ['micro-96px-depth3-keep0.25', 'micro-96px-depth12-keep0.5-token'])
def test_published_micro(case, monkeypatch):
    model, image, outputs, _ = published(case)
    masks, kept = watched(model, monkeypatch)
    for _ in range(2):  # the published code remembers the image before
        masks.clear(), kept.clear()
        with torch.no_grad():
            logits = model(image)
        assert golden.error(logits.numpy(), outputs['logits']) < 1e-5
        masks_of_all = torch.stack(masks)
        assert torch.equal(masks_of_all, unpacked(outputs['masks'], masks_of_all))
        for name, bits in outputs.items():
            if name.startswith('token_mask'):
                active = kept[int(name.removeprefix('token_mask')) + 1]
                assert active[:, 0].all() and torch.equal(active[:, 1:], unpacked(bits, active[:, 1:]))


def test_published_scores():
    model, image, outputs, _ = published('micro-96px-depth3-keep0.25')
    attn = model.blocks[0].attn
    with torch.no_grad():
        x = model.blocks[0].norm1(model._pos_embed(model.patch_embed(image)))
        q, k, _ = attn.qkv(x).view(1, 37, 3, 3, 64).permute(2, 0, 3, 1, 4)
        scores = model.reduction.scores(attn.mask_predictor, q, k, num_prefix=1)
    assert golden.error(scores.numpy(), outputs['approx_attn0']) < 2e-5


def test_published_deit(monkeypatch):
    """Thousands of choices, some of them ties to rounding: the case's notes say how far the published code is from itself."""
    model, image, outputs, notes = published('deit_tiny-keep0.25')
    masks, _ = watched(model, monkeypatch)
    with torch.no_grad():
        logits = model(image).numpy()
    limit = notes['input_noise_2e6_rel_of_std']['logits'] * outputs['logits'].std()
    assert np.abs(logits - outputs['logits']).max() < limit
    assert (masks[0] == unpacked(outputs['mask0'], masks[0])).float().mean() > 0.9999
    np.testing.assert_allclose([mask.float().mean() for mask in masks], outputs['mask_density'], rtol=1e-6)


def test_all_keys_are_plain_attention():
    model, image, outputs, _ = published('deit_small-keep1.0')
    with torch.no_grad():
        logits = model(image)
        assert golden.error(logits.numpy(), outputs['logits']) < 1e-5
        assert torch.equal(logits, vitzoo.restore_tokens(model)(image))


def test_largest():
    x = torch.tensor([[3., 1, 2, 2], [0, 0, 0, 0]])
    assert largest(x, 2).sum(1).tolist() == [2, 2] and largest(x, 1)[0].tolist() == [True, False, False, False]
    assert largest(x, 4).all() and largest(x, 9).all()


def test_a_query_without_keys_gets_nothing():
    """By all ways of attention: fused, spelled out, exported."""
    model = reduced(attn_threshold=1e6)
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits = model(image)
        for block in model.blocks:
            block.attn.fused_attn = False
        torch.testing.assert_close(model(image), logits)
        for block in model.blocks:
            block.attn.fused_attn = True
        # the patches' rows are then their own MLPs and the bias of the projection
        tokens = model.forward_tokens(image)
        x = model._pos_embed(model.patch_embed(image))[:, 1:]
        for block in model.blocks:
            x = x + block.attn.proj.bias
            x = x + block.mlp(block.norm2(x))
    torch.testing.assert_close(tokens.patches, x)
    model.zero_grad()
    model(image).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(('options', 'opset'), [
    pytest.param({'attn_threshold': 1e6}, 20, marks=pytest.mark.slow), ({'token_keep': 0.7, 'token_locations': (0, 1)}, 17)])
def test_export(options, opset, tmp_path):
    pytest.importorskip('onnxruntime')
    report = vitzoo.export_onnx(reduced(**options), tmp_path / 'model.onnx', 32, opset=opset)
    assert all(max(check.errors.values()) < 1e-5 for check in report.checks)


def test_non_strict_export():
    model, image = reduced(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        program = torch.export.export(model, (image,), strict=False)
        torch.testing.assert_close(program.module()(image), model(image))


def test_tokens_given_up_change_nothing_and_stay():
    model = reduced(token_keep=0.5, token_locations=(1,))
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        _, before, after = model.forward_intermediates(image, output_fmt='NLC', intermediates_only=True)
        maps = model.forward_intermediates(image, output_fmt='NLC', intermediates_only=True, indices=[0, 1, 2])
        gone = ~model.forward_tokens(image).memory.active[:, 1:]
    assert gone.sum(1).tolist() == [8, 8]
    assert torch.equal(after[gone], before[gone]) and torch.equal(before[gone], maps[0][gone])
    assert not torch.isclose(after[~gone], before[~gone]).all()


def test_other_image_sizes_are_refused():
    model = vitzoo.reduce_tokens(small(dynamic_img_size=True), 'sparsifiner', reduce_n_factor=2, basis_coef_topk=4)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)
    with pytest.raises(ValueError, match='tables for 17 tokens.*this image has 21'):
        model(torch.randn(1, 3, 32, 40))


def test_files_of_another_size_and_of_no_predictors():
    model = reduced()
    other = vitzoo.reduce_tokens(small(img_size=40), 'sparsifiner', reduce_n_factor=2, basis_coef_topk=4)
    with pytest.raises(ValueError, match='proj_n'):
        vitzoo.load_checkpoint(model, other.state_dict())
    with pytest.raises(ValueError, match=r"reduce_tokens\(model, 'sparsifiner'"):
        vitzoo.load_checkpoint(small(), model.state_dict())


def test_other_options_keep_what_was_learned_where_they_can():
    model = reduced()
    table = model.blocks[1].attn.mask_predictor.proj_n
    vitzoo.reduce_tokens(model, 'sparsifiner', reduce_n_factor=2, basis_coef_topk=3, attn_keep=0.5)
    assert model.blocks[1].attn.mask_predictor.proj_n is table
    with pytest.raises(ValueError, match='restore_tokens'):
        vitzoo.reduce_tokens(model, 'sparsifiner', reduce_n_factor=3, basis_coef_topk=3)
    assert model.reduction.attn_keep == 0.5


@pytest.mark.parametrize(('options', 'message'), [
    ({}, 'basis of 2 rows for 17 tokens, expected 8'), ({'attn_keep': 0}, 'attn_keep=0'), ({'reduce_n_factor': 0}, 'reduce_n_factor=0'),
    ({'reduce_n_factor': 2, 'reduce_c_factor': 17}, 'at most 16'), ({'reduce_n_factor': 2, 'token_keep': 0.5}, 'from 0 to 2'),
    ({'basis_coef_threshold': -1}, 'basis_coef_threshold=-1')])
def test_refused_options(options, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        vitzoo.reduce_tokens(model, 'sparsifiner', **options)
    assert not any('predictor' in name for name in model.state_dict())


def test_scores_learn_attention():
    model = vitzoo.reduce_tokens(small(), 'sparsifiner', reduce_n_factor=2, basis_coef_topk=4).train()
    torch.nn.init.normal_(model.blocks[0].attn.qkv.weight, std=0.5)
    image = torch.randn(4, 3, 32, 32)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(15):
        loss = sparsifiner_loss(model, image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all((p.grad is not None) == ('predictor' in name) for name, p in model.named_parameters())
