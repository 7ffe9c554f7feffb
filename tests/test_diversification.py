"""The attention diversification loss against the published one, and the maps that it is made of."""
import golden
import pytest
import timm
import torch
import zoo

from vitzoo.losses import AttentionDiversification, attention_similarity, collect_attention

LIMIT = 1e-4  # some attention lies that near the threshold


def scores(facts, layer):
    """The scores of a layer of a case, as its notes say."""
    x = golden.make_input(facts['notes']['seeds'][layer], facts['shape'])
    return facts['notes']['gain'] * (x + 2 * x[:, :, :1])


def near(found, published):
    return golden.error(found.detach().numpy(), published) < LIMIT


def test_published_loss():
    facts, published = golden.load_case('tap_adl/adl-n49.npz')
    logits = [scores(facts, layer).requires_grad_() for layer in range(3)]
    maps = [x.softmax(-1) for x in logits]
    for threshold in facts['notes']['thresholds']:
        assert near(AttentionDiversification(threshold)(maps), published[f'adl_th{threshold}'])
    loss = AttentionDiversification(facts['notes']['thresholds'][0])
    each = torch.stack([loss([x]) for x in maps])
    assert near(each, published['per_layer'])
    loss(maps).backward()
    assert near(logits[0].grad[0, 0, ::3, ::3], published['grad0'])


def test_one_image():
    """The published code answers 0 for a batch of one; ours gives what it gives beside other images."""
    facts, published = golden.load_case('tap_adl/adl-n49-b1.npz')
    assert published['adl_th2'] == 0 and not published['per_layer'].any()
    one = [scores(facts, layer).softmax(-1) for layer in range(2)]
    loss = AttentionDiversification(2.)
    assert loss(one) > 0.1
    torch.testing.assert_close(loss([x.repeat(3, 1, 1, 1) for x in one]), loss(one))
    two = [torch.cat([x, x.flip(-1)]) for x in one]
    torch.testing.assert_close(loss(two), (loss([x[:1] for x in two]) + loss([x[1:] for x in two])) / 2)


def peaky(*shape):
    return (6 * torch.randn(*shape)).softmax(-1)


def test_equal_queries_cost_one():
    assert attention_similarity(peaky(2, 1, 1, 30).expand(2, 3, 30, 30)).item() == pytest.approx(1, abs=1e-6)


def test_order_of_keys_is_nothing():
    x = peaky(2, 3, 20, 30)
    assert 0 < attention_similarity(x) < 1
    torch.testing.assert_close(attention_similarity(x[..., torch.randperm(30)]), attention_similarity(x))


def test_flat_attention_costs_nothing():
    x = torch.zeros(2, 3, 20, 30, requires_grad=True)
    loss = attention_similarity(x.softmax(-1), 1.5)
    loss.backward()
    assert loss == 0 and not x.grad.any()


def test_equals_the_definition():
    """By loops: thresholds on the means, cosine over the keys that are left."""
    x, threshold = peaky(2, 3, 5, 7).double(), 1.5
    cosines = []
    for image in x:
        rows = [sum(head[q] for head in image) / 3 for q in range(5)]
        mean = sum(rows) / 5
        kept = [torch.tensor([a if a > threshold / 7 else 0 for a in row], dtype=torch.float64) for row in (mean, *rows)]
        cosines += [kept[0] @ row / (kept[0].norm() * row.norm()).clamp_min(1e-16) for row in kept[1:]]
    torch.testing.assert_close(attention_similarity(x, threshold), torch.stack(cosines).mean())


def test_reductions():
    maps = [peaky(2, 3, 20, 20) for _ in range(3)]
    each = AttentionDiversification(reduction='none')(maps)
    assert each.shape == (3,)
    torch.testing.assert_close(AttentionDiversification(reduction='sum', weight=2.)(maps), 2 * each.sum())
    torch.testing.assert_close(AttentionDiversification()(maps), each.mean())


def test_low_precision():
    x = peaky(2, 3, 20, 20)
    assert attention_similarity(x.bfloat16()) == pytest.approx(attention_similarity(x).item(), abs=2e-2)


@pytest.mark.parametrize('name', ['test_vit', 'svit_micro', 'stvit_deit_micro', 'lookupvit_micro', 'vz_davit_micro'])
def test_maps_of_a_model_in_training(name):
    model = timm.create_model(name).train()
    image = torch.randn(2, 3, *model.default_cfg['input_size'][1:])
    with collect_attention(model) as maps:
        logits = model(image)
    for x in maps:
        assert x.ndim == 4
        torch.testing.assert_close(x.sum(-1), torch.ones(x.shape[:-1]))
    for parameter in model.parameters():
        parameter.grad = None
    (logits.square().mean() + AttentionDiversification(1.)(maps)).backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())
    model(image)
    assert len(maps) and not any(m._forward_pre_hooks for m in model.modules())


def test_collecting_changes_no_output():
    model = zoo.build('test_vit')
    image = torch.randn(2, 3, 160, 160)
    with torch.inference_mode(), collect_attention(model, r'blocks\.[24]\.') as maps:
        collected = model(image)
    assert len(maps) == 2 and maps[0].shape[-1] == maps[0].shape[-2] == 101
    with torch.inference_mode():
        torch.testing.assert_close(collected, model(image))
    assert all(block.attn.fused_attn for block in model.blocks)


def test_left_as_it_was_after_an_error():
    model = zoo.build('test_vit')
    with pytest.raises(RuntimeError, match='stop'), collect_attention(model):
        raise RuntimeError('stop')
    assert all(block.attn.fused_attn and not block.attn.attn_drop._forward_pre_hooks for block in model.blocks)


def test_refusals():
    with pytest.raises(ValueError, match='no such attention'), collect_attention(timm.create_model('resnet10t')):
        pass
    model = timm.create_model('test_vit')
    model.set_grad_checkpointing()
    with pytest.raises(ValueError, match='checkpointing'), collect_attention(model):
        pass
    for maps in ([], [torch.ones(2, 3, 4)]):
        with pytest.raises(ValueError, match='maps='):
            AttentionDiversification()(maps)
    for options in (dict(threshold=-1.), dict(reduction='max'), dict(weight=-1.)):
        with pytest.raises(ValueError, match=f'{list(options)[0]}='):
            AttentionDiversification(**options)
