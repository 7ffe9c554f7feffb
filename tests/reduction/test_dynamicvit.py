"""DynamicViT: the published figures, the learned parts, and the decisions of its training."""
import golden
import pytest
import timm
import torch

import vitzoo
from vitzoo.reduction.methods.dynamicvit import ScorePredictor, draw, masked_softmax
from vitzoo.reduction.training import forward_with_policy


def small(img_size=32, **options):
    """16 patches and a class token, 3 blocks."""
    return timm.create_model('vit_tiny_patch16_224', img_size=img_size, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=4,
                             **options)


def reduced(**options):
    return vitzoo.reduce_tokens(small(), 'dynamicvit', **{'locations': (1, 2), **options})


@pytest.mark.parametrize('case', ['deit_tiny-0.5', 'deit_small-0.7'])
def test_published_logits(case):
    facts, outputs = golden.load_case(f'dynamicvit/{case}.npz')
    model = timm.create_model(f'deit_{facts["kwargs"]["size"]}_patch16_224').eval()
    vitzoo.reduce_tokens(model, 'dynamicvit', keep_rate=facts['kwargs']['token_ratio'][0], locations=facts['kwargs']['pruning_loc'])
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    report = vitzoo.load_checkpoint(model, golden.make_state_dict(facts['entries'], facts['rescale']))
    assert len(report.loaded) == len(facts['entries']) and not report.dropped and not report.new
    with torch.no_grad():
        logits = model(golden.make_input(facts['seed'], facts['shape']))
    assert golden.error(logits.numpy(), outputs['logits']) < 1e-5


def test_ratios_are_of_the_first_count():
    model = vitzoo.reduce_tokens(timm.create_model('deit_tiny_patch16_224'), 'dynamicvit')
    assert model.reduction.schedule(196, 12) == (196,) * 3 + (137,) * 3 + (96,) * 3 + (67,) * 3
    assert vitzoo.reduce_tokens(small(), 'dynamicvit', keep_rate=0.01, locations=(0, 1)).reduction.schedule(16, 3) == (1, 1, 1)


@pytest.mark.parametrize('opset', [17, pytest.param(20, marks=pytest.mark.slow)])
def test_export(opset, tmp_path):
    pytest.importorskip('onnxruntime')
    report = vitzoo.export_onnx(reduced(), tmp_path / 'model.onnx', 32, opset=opset)
    assert all(max(check.errors.values()) < 1e-5 for check in report.checks)


def test_predictor_against_its_formula():
    predictor = ScorePredictor(8).double()
    x, kept = torch.randn(2, 5, 8, dtype=torch.double), torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]])
    y = predictor.in_conv(x)
    for b in range(2):
        mean = y[b, kept[b] == 1, 4:].mean(0)
        for n in range(5):
            scores = predictor.out_conv(torch.cat([y[b, n, :4], mean]))
            torch.testing.assert_close(predictor(x, kept)[b, n], scores.log_softmax(0))
    torch.testing.assert_close(predictor(x), predictor(x, torch.ones(2, 5)))
    assert predictor(x, torch.zeros(2, 5)).isfinite().all()


def test_masked_softmax_against_removal():
    logits, kept = torch.randn(1, 2, 6, 6), torch.tensor([[1., 1, 0, 1, 0, 1]])
    attention = masked_softmax(logits, kept)
    rows = kept[0] == 1
    expected = logits[:, :, rows][..., rows].softmax(-1)
    torch.testing.assert_close(attention[:, :, rows][..., rows], expected, atol=1e-5, rtol=0)
    assert attention[:, :, rows][..., ~rows].max() < 1e-6
    dropped = attention[0, :, 2]  # sees itself and those that are kept
    torch.testing.assert_close(dropped[:, [0, 1, 2, 3, 5]], logits[0, :, 2, [0, 1, 2, 3, 5]].softmax(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(masked_softmax(1e4 * logits, kept).sum(-1), torch.ones(1, 2, 6))


def test_decisions_are_drawn_by_their_probability():
    scores = torch.tensor([0.8, 0.2]).log().expand(1, 4000, 2).clone().requires_grad_()
    decisions = draw(scores)
    assert set(decisions.detach().round(decimals=5).unique().tolist()) == {0., 1.}
    assert abs(decisions.mean().item() - 0.8) < 0.03
    decisions.sum().backward()
    assert scores.grad[..., 0].min() > 0 > scores.grad[..., 1].max() - 1e-6


def test_training_hides_what_evaluation_drops(monkeypatch):
    """With the decisions that evaluation takes, training answers the same logits, from all tokens."""
    model = reduced().eval()
    image = torch.randn(2, 3, 32, 32)
    tokens = model.forward_tokens(image)
    counts = iter(model.reduction.num_kept(i, 16) for i in (1, 2))
    gone = torch.zeros(2, 16, dtype=torch.bool)

    def best(scores):
        scores = scores[..., 0].masked_fill(gone, -torch.inf)
        kept = torch.zeros(2, 16).scatter(1, scores.topk(next(counts), dim=1).indices, 1.)
        gone.copy_(kept == 0)
        return kept
    monkeypatch.setattr('vitzoo.reduction.methods.dynamicvit.draw', best)
    output = forward_with_policy(model.train(), image)
    assert tokens.num_patches == 7 and output.tokens.shape == (2, 16, 48)
    torch.testing.assert_close(output.logits, model.eval()(image), atol=1e-5, rtol=0)
    assert output.decisions.sum(2).tolist() == [[11., 7.], [11., 7.]]


def test_a_mean_over_patches_is_over_those_that_are_kept():
    model = vitzoo.reduce_tokens(small(global_pool='avg', class_token=False), 'dynamicvit', locations=(1,)).train()
    tokens = model.forward_tokens(torch.randn(2, 3, 32, 32))
    kept, x = tokens.memory[-1].detach(), model.norm(tokens.x)
    expected = torch.stack([x[b, kept[b] > 0.5].mean(0) for b in range(2)])
    torch.testing.assert_close(model.to_head(tokens).mean(1), expected)


def test_decisions_are_cumulative_and_drawn_anew():
    model = reduced().train()
    image = torch.randn(4, 3, 32, 32)
    first, second = (forward_with_policy(model, image).decisions for _ in range(2))
    assert first.shape == (4, 2, 16) and (first[:, 1] <= first[:, 0] + 1e-5).all()
    assert not torch.equal(first, second)


def test_other_options_keep_what_was_learned_where_they_can():
    model = reduced()
    weight = model.score_predictor[0].in_conv[1].weight
    vitzoo.reduce_tokens(model, 'dynamicvit', keep_rate=0.5, locations=(0, 1))
    assert model.score_predictor[0].in_conv[1].weight is weight and model.reduction.keep_rate == 0.5
    with pytest.raises(ValueError, match='learned parts for 2 locations'):
        vitzoo.reduce_tokens(model, 'dynamicvit', locations=(1,))
    assert model.reduction.keep_rate == 0.5
    vitzoo.reduce_tokens(model, 'tome', r=1)
    assert not any('score_predictor' in name for name in model.state_dict())


def test_learned_parts_are_as_the_model():
    model = vitzoo.reduce_tokens(small().double().eval(), 'dynamicvit', locations=(1,))
    part = model.score_predictor
    assert not part.training and all(p.dtype == torch.double and p.requires_grad for p in part.parameters())
    with torch.device('meta'):
        model = small()
    assert vitzoo.reduce_tokens(model, 'dynamicvit', locations=(1,)).score_predictor[0].in_conv[0].weight.is_meta
    weight = model = reduced().score_predictor[0].out_conv[0].weight
    assert 0.015 < weight.std() < 0.025


def test_files_of_a_reduced_model():
    model = reduced()
    state = {'model': reduced().state_dict()}
    assert not vitzoo.load_checkpoint(model, state).dropped
    plain = small()
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    with pytest.raises(ValueError, match=r"score_predictor\.0.*reduce_tokens\(model, 'dynamicvit'"):
        vitzoo.load_checkpoint(plain, state)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert len(vitzoo.load_checkpoint(plain, state, strict=False).dropped) == 20
    with pytest.raises(ValueError, match='load it before vitzoo.reduce_tokens'):
        vitzoo.load_checkpoint(model, plain.state_dict())
    assert len(vitzoo.load_checkpoint(model, plain.state_dict(), strict=False).new) == 20


@pytest.mark.parametrize(('options', 'message'), [
    ({'keep_rate': 0}, 'keep_rate=0'), ({'keep_rate': 1.5}, 'keep_rate=1.5'), ({'locations': (3,)}, 'from 0 to 2'),
    ({'locations': (2, 1)}, 'ascending')])
def test_refused_options(options, message):
    model = small()
    with pytest.raises(ValueError, match=message):
        vitzoo.reduce_tokens(model, 'dynamicvit', **options)
    assert not hasattr(model, 'reduction') and not hasattr(model, 'score_predictor')
