"""Training with reduced tokens: gradients, losses, what training loops do to a model, and the helpers."""
import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from timm.utils import ModelEmaV3

import vitzoo
from vitzoo.reduction.training import (
    PolicyOutput,
    dynamicvit_loss,
    forward_with_policy,
    logit_distillation,
    ratio_loss,
    scheduled_keep_rate,
    token_distillation,
)

METHODS = {
    'evit': {'keep_rate': 0.6, 'locations': (1,), 'fuse': True},
    'tome': {'r': 4},
    'dynamicvit': {'keep_rate': 0.7, 'locations': (1, 2)},
    'sparsifiner': {'reduce_n_factor': 2, 'basis_coef_topk': 4},
}
LEARN = [name for name in METHODS if name != 'sparsifiner']  # whose every parameter has a gradient of the classes


def small(**options):
    """16 patches and a class token, 3 blocks."""
    return timm.create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=4,
                             **options)


def reduced(method, **options):
    return vitzoo.reduce_tokens(small(**options), method, **METHODS[method])


def quadrants(count=32):
    """Noise with a bright patch in one quarter, which is the class."""
    images, labels = 0.3 * torch.randn(count, 3, 32, 32), torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        y, x = 16 * (label // 2), 16 * (label % 2)
        image[:, y:y + 8, x:x + 8] += 2
    return images, labels


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('method', LEARN)
def test_a_few_steps_lower_the_loss(method):
    model, teacher = reduced(method).train(), small().eval()
    images, labels = quadrants()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        if method == 'dynamicvit':
            with torch.no_grad():
                tokens = teacher.forward_features(images)
                logits = teacher.forward_head(tokens)
            output = forward_with_policy(model, images)
            loss = F.cross_entropy(output.logits, labels) + dynamicvit_loss(output, logits, tokens[:, 1:])
        else:
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize('method', METHODS)
def test_gradients_reach_every_parameter(method):
    model = reduced(method).train()
    images, labels = quadrants(8)
    F.cross_entropy(model(images), labels).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == [name for name, _ in model.named_parameters() if 'mask_predictor' in name]  # masks have none: sparsifiner_loss


@pytest.mark.parametrize('method', METHODS)
def test_checkpointing_changes_no_gradient(method):
    model = reduced(method).train()
    images, labels = quadrants(8)
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)  # of decisions by chance
        F.cross_entropy(model(images), labels).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize('method', METHODS)
def test_copies_are_reduced_and_answer_the_same(method):
    model = reduced(method).eval()
    images, _ = quadrants(2)
    with torch.no_grad():
        expected = model(images)
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), ModelEmaV3(model).module):
            assert other.reduction == model.reduction and type(other) is type(model)
            assert torch.equal(other(images), expected)
            vitzoo.restore_tokens(other)
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize('method', METHODS)
def test_an_average_follows_what_is_learned(method):
    model = reduced(method)
    average = ModelEmaV3(model, decay=0.5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    average.update(model)
    for name, value in average.module.state_dict().items():
        torch.testing.assert_close(value, before[name] + 0.5)


@pytest.mark.parametrize('method', METHODS)
def test_restoring_gives_back_the_state(method):
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [id(p) for p in model.parameters()]
    vitzoo.reduce_tokens(model, method, **METHODS[method])
    assert list(before) == [name for name in model.state_dict() if 'predictor' not in name]
    vitzoo.restore_tokens(model)
    assert list(model.state_dict()) == list(before) and all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [id(p) for p in model.parameters()] == parameters and vars(model).keys() == vars(small()).keys()


@pytest.mark.parametrize('method', METHODS)
def test_layer_decay_takes_learned_parts(method):
    model = reduced(method)
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    assert sum(len(group['params']) for group in groups) == len(list(model.parameters()))


def test_keep_rate_goes_down_half_a_cosine():
    rates = [scheduled_keep_rate(epoch, base=0.7, start=10, epochs=20) for epoch in (0, 10, 15, 20, 25, 30, 99)]
    assert rates == pytest.approx([1, 1, 0.85 + 0.15 * 2 ** -0.5, 0.85, 0.85 - 0.15 * 2 ** -0.5, 0.7, 0.7])
    assert rates[-1] == 0.7
    assert [scheduled_keep_rate(epoch, base=0.7, start=5, epochs=0) for epoch in (4.9, 5)] == [1, 0.7]
    steps = sorted({scheduled_keep_rate(epoch / 10, base=0.65, epochs=20, step=0.1) for epoch in range(250)})
    assert steps == [0.65, 0.7, 0.8, 0.9, 1]
    with pytest.raises(ValueError, match='base=2'):
        scheduled_keep_rate(0, base=2)


def test_keep_rate_of_a_compiled_model():
    """Options change under the compiled model; each rate is compiled once."""
    model = reduced('evit').train()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    images, labels = quadrants(4)
    for epoch in (1, 2, 1):
        vitzoo.reduce_tokens(compiled, 'evit', keep_rate=scheduled_keep_rate(epoch, base=0.5, epochs=3), locations=(1,))
        logits = compiled(images)
        torch.testing.assert_close(logits, model(images))
        F.cross_entropy(logits, labels).backward()


def test_policy_of_a_compiled_step():
    model = reduced('dynamicvit').train()
    torch._dynamo.reset()
    output = torch.compile(forward_with_policy, fullgraph=True, backend='eager')(model, quadrants(4)[0])
    assert isinstance(output, PolicyOutput) and output.decisions.shape == (4, 2, 16) and output.logits.shape == (4, 4)


def test_policy_leaves_nothing_on_the_model():
    model = reduced('dynamicvit').train()
    before = set(vars(model))
    output = forward_with_policy(torch.nn.DataParallel(model), quadrants(2)[0])
    assert set(vars(model)) == before and output.ratios == (0.7, 0.7 ** 2)


def test_policy_is_refused_where_there_is_none():
    images = quadrants(2)[0]
    with pytest.raises(ValueError, match=r'model.train\(\)'):
        forward_with_policy(reduced('dynamicvit').eval(), images)
    for model in (small(), reduced('evit')):
        with pytest.raises(ValueError, match="reduce_tokens\\(model, 'dynamicvit'\\)"):
            forward_with_policy(model, images)


def test_losses_against_their_formulas():
    decisions = torch.tensor([[[1., 1, 1, 0], [1, 0, 0, 0]], [[1, 1, 0, 0], [1, 1, 0, 0]]])
    ratios = (0.75, 0.5)
    assert ratio_loss(decisions, ratios).item() == pytest.approx((0 + 0.25 ** 2 + 0.25 ** 2 + 0) / 4)
    tokens, teacher = torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    expected = torch.cat([(tokens - teacher)[0, :1], (tokens - teacher)[1, :2]]).square().mean()
    torch.testing.assert_close(token_distillation(tokens, teacher, decisions[:, 1]), expected)
    assert token_distillation(tokens, teacher, torch.zeros(2, 4)) == 0
    logits, target = torch.randn(2, 3), torch.randn(2, 3)
    p, q = logits.softmax(1), target.softmax(1)
    torch.testing.assert_close(logit_distillation(logits, target), (q * (q / p).log()).sum() / 2)
    output = PolicyOutput(logits, tokens, decisions, ratios)
    assert dynamicvit_loss(output).item() == pytest.approx(2 * ratio_loss(decisions, ratios).item())
    torch.testing.assert_close(dynamicvit_loss(output, target, teacher, ratio=0), 0.5 * logit_distillation(logits, target) + 0.5 * expected)


def test_the_ratio_loss_teaches_the_ratio():
    model = reduced('dynamicvit').train()
    images, _ = quadrants()
    optimizer = torch.optim.AdamW(model.score_predictor.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        dynamicvit_loss(forward_with_policy(model, images)).backward()
        optimizer.step()
    kept = forward_with_policy(model, images).decisions.mean((0, 2)).tolist()
    assert kept == pytest.approx([0.7, 0.49], abs=0.1)
