"""`vitzoo.reduction.compare`: what it counts, how it measures agreement and the stability of a choice, what it refuses."""
import copy

import pytest
import timm
import torch
from deit import kept_patches

import vitzoo
from vitzoo.profiling import count_macs, on_meta
from vitzoo.reduction import METHODS, Setting, compare, default_settings, parse_setting, settings
from vitzoo.reduction.compare import draw, fitting_settings, overlap, patch_labels
from vitzoo.reduction.methods import tome
from vitzoo_runtime.files import is_ours


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    return timm.create_model('vit_tiny_patch16_224', img_size=96, depth=4, num_classes=5).eval()


@pytest.fixture(scope='module')
def images():
    return torch.randn(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def one(model, images, text, **options):
    """The row of a setting."""
    return compare(model, images, [parse_setting(text)], latency=False, **options)[1]


def analytic_macs(schedule, patches=196, dim=384, classes=1000, extra=lambda i, before, after: 0):
    """Multiply-adds of a DeiT with patches of 16x16 whose blocks leave so many patch tokens, and `extra` in each block."""
    total, before = patches * dim * 3 * 16 ** 2 + dim * classes, patches
    for i, after in enumerate(schedule):
        n = before + 1
        total += 4 * n * dim ** 2 + 2 * n ** 2 * dim + 8 * (after + 1) * dim ** 2 + extra(i, before, after)
        before = after
    return total


def evit_extra(i, before, after, dim=384):
    """The class token's attention, and the sum of the dropped tokens, of which one is new."""
    return 0 if before == after else (before + 1) * dim + (before - after + 1) * dim


def tome_extra(i, before, after, dim=384, head=64):
    """The matching, and the sums of what is merged; patches at odd places are sources with one class token in front."""
    sources, targets = before // 2, before - before // 2
    return 0 if before == after else sources * targets * head + targets * (before - after) * dim


@pytest.mark.parametrize('method, options, published, extra', [
    ('evit', {'keep_rate': 1.}, 4.60, evit_extra), ('evit', {'keep_rate': .9}, 4.02, evit_extra), ('evit', {}, 3.03, evit_extra),
    ('evit', {'keep_rate': .5}, 2.31, evit_extra), ('tome', {'r': 8}, 3.42, tome_extra), ('tome', {}, 2.70, tome_extra),
    ('tome', {'r': (8, -1)}, 3.06, tome_extra)])
def test_multiply_adds_are_the_analytic_ones(method, options, published, extra):
    with torch.device('meta'):
        model = vitzoo.reduce_tokens(timm.create_model('deit_small_patch16_224'), method, **options)
    schedule = model.reduction.schedule(196, 12)
    x = torch.empty(1, 3, 224, 224, device='meta')
    assert count_macs(on_meta(model), x) == analytic_macs(schedule, extra=extra)
    assert analytic_macs(schedule) / 1e9 == pytest.approx(published, abs=.006)  # counted without the methods' own products


@pytest.mark.parametrize('method', METHODS)
def test_every_method_by_its_default_settings(model, images, method):
    before = copy.deepcopy(model.state_dict())
    chosen = default_settings(4, 36, [method])
    plain, *rows = compare(model, images, chosen, latency=False)
    assert plain.name == 'plain' and plain.share == 1 and plain.tokens == 36
    assert [row.name for row in rows] == [str(setting) for setting in chosen]
    for row in rows:
        assert row.method == method and row.share == row.macs / plain.macs
        for value in (row.top1, row.feature, row.overlap):
            assert value is None or -1e-6 <= value <= 1 + 1e-6
        assert row.dense is None or -1 <= row.dense <= 1 + 1e-6
        assert (row.overlap is None) == (row.tokens == 36)
        assert not row.latency_ms and not row.ratio
    assert type(model).__name__ == 'VisionTransformer' and model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize('setting', ['evit:keep_rate=1.,locations=(1,)', 'tome:r=0'])
def test_what_reduces_nothing_agrees(model, images, setting):
    row = one(model, images, setting)
    assert (row.top1, row.share, row.overlap) == (1, 1, None)
    assert row.feature == pytest.approx(1, abs=1e-6) and row.dense == pytest.approx(1, abs=1e-6)


def test_agreement_is_that_of_outputs(model, images):
    row = one(model, images, 'evit:keep_rate=0.2,locations=(1,)')
    reduced = vitzoo.reduce_tokens(copy.deepcopy(model), 'evit', keep_rate=.2, locations=(1,))
    with torch.no_grad():
        assert row.top1 == pytest.approx((reduced(images).argmax(1) == model(images).argmax(1)).float().mean().item())
        features = [m.forward_head(m.forward_features(images), pre_logits=True) for m in (reduced, model)]
        maps = [m.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)[0] for m in (reduced, model)]
    assert row.feature == pytest.approx(torch.cosine_similarity(*features).mean().item(), abs=1e-5)
    assert row.dense == pytest.approx(torch.cosine_similarity(*maps).mean().item(), abs=1e-5)
    assert row.feature < 1 - 1e-4 and row.tokens == 9  # ceil(0.2 * 36) and the fused one


def test_a_method_of_your_own(model, images):
    method = tome.ToMe(r=4, position='keep')
    row = compare(model, images, [method], latency=False)[1]
    assert (row.method, row.name, row.options['r']) == ('ToMe', str(method), 4)
    assert row.feature == one(model, images, 'tome:r=4').feature


def test_what_was_learned_serves(model, images):
    """A model with trained predictors is compared with these, and keeps them."""
    reduced = vitzoo.reduce_tokens(copy.deepcopy(model), 'dynamicvit', locations=(1,))
    with torch.no_grad():
        for p in reduced.score_predictor.parameters():
            p.normal_()
    text = 'dynamicvit:keep_rate=0.5,locations=(2,)'
    fresh, learned = one(model, images, text), one(reduced, images, text)
    assert fresh.untrained > 0 and learned.untrained == 0 and fresh.feature != learned.feature
    assert one(reduced, images, 'tome:r=4').feature == one(model, images, 'tome:r=4').feature
    assert reduced.reduction.locations == (1,) and len(reduced.score_predictor) == 1


def test_a_model_without_classes_has_no_top1(images):
    model = timm.create_model('vit_tiny_patch16_224', img_size=96, depth=2, num_classes=0).eval()
    row = one(model, images, 'tome:r=4')
    assert row.top1 is None and row.feature < 1


def test_labels_say_what_was_kept_and_merged(model, images):
    with torch.no_grad():
        reduced = vitzoo.reduce_tokens(copy.deepcopy(model), 'evit', keep_rate=.5, locations=(2,))
        labels = patch_labels(reduced, images)
        tokens = reduced.forward_tokens(images)
        kept, = kept_patches(tokens)
        assert ((labels >= 0).sum(1) == 18).all() and torch.equal(labels.gather(1, kept), torch.arange(18).expand(3, -1))

        merged = vitzoo.reduce_tokens(copy.deepcopy(model), 'tome', r=6)
        tokens = merged.forward_tokens(images)
        assert torch.equal(patch_labels(merged, images), tome.labels(tokens)[:, 1:] - 1)


def test_overlap():
    kept = torch.tensor([[0, -1, 1, 2], [0, 1, -1, 2]])
    assert overlap(kept, kept) == 1
    assert overlap(kept, torch.tensor([[1, 0, -1, 2], [-1, 0, 1, 2]])) == pytest.approx(2 / 3)  # two of three, whatever their numbers
    parts = torch.tensor([[0, 0, 1, 1]])
    assert overlap(parts, torch.tensor([[5, 5, 3, 3]])) == 1  # the same partition
    assert overlap(parts, torch.tensor([[0, 0, 0, 1]])) == pytest.approx(1 / 4)  # one of four pairs
    assert overlap(torch.tensor([[0, 1, 2]]), torch.tensor([[2, 1, 0]])) == 1  # no pairs at all
    assert overlap(None, kept) is None


def test_noise_is_what_changes_the_choice(model, images):
    calm, wild = (one(model, images, 'tome:r=6', grey_level=level).overlap for level in (0, 2.))
    assert calm == 1 and wild < .9


def test_noise_is_one_grey_level_of_the_models_own_scale(model):
    from vitzoo.reduction.compare import _noise
    noise = _noise(model, torch.zeros(2, 3, 8, 8), None)
    assert model.pretrained_cfg['std'] == (.5, .5, .5) and noise.unique().tolist() == pytest.approx([-2 / 255, 2 / 255])


def test_times_in_turns_with_the_plain_model(model, images):
    plain, row = compare(model, images, [Setting('tome', {'r': 8})], export=False, rounds=2)
    assert plain.latency_ms.keys() == row.latency_ms.keys() == row.ratio.keys() == {'eager'}
    middle, low, high = row.ratio['eager']
    assert 0 < low <= middle <= high and row.latency_ms['eager'] > 0


@pytest.mark.slow
def test_times_of_exported_models(model, images, tmp_path):
    pytest.importorskip('onnxruntime')
    rows = compare(model, images, [Setting('evit', {'locations': (1,)})], rounds=1)
    assert all(row.latency_ms['onnx'] > 0 and not row.notes for row in rows)
    pytest.importorskip('matplotlib')
    assert is_ours(draw(rows, tmp_path / 'x.png'))


@pytest.mark.slow
def test_what_cannot_be_exported_is_compared_all_the_same(model, images, monkeypatch):
    pytest.importorskip('onnxruntime')
    from vitzoo.reduction import apply
    monkeypatch.setattr(apply.Reduced, 'exportable', 'for the sake of this test', raising=False)
    plain, row = compare(model, images, [Setting('tome', {'r': 2})], rounds=1)
    assert 'onnx' in plain.latency_ms and row.latency_ms.keys() == {'eager'} and 'for the sake of this test' in row.notes[0]


@pytest.mark.parametrize('text, options', [
    ('tome', {}), ('tome:r=8', {'r': 8}), ('tome:r=(8,-1), position=keep', {'r': (8, -1), 'position': 'keep'}),
    ('evit:fuse=False', {'fuse': False}), ("tome:r=[1, 2]", {'r': [1, 2]})])
def test_settings_as_text(text, options):
    setting = parse_setting(text)
    assert setting.options == options and setting.method == text.partition(':')[0]


@pytest.mark.parametrize('text', [
    '', 'nonsense', 'tome:8', 'tome:r', 'tome:r=', 'tome:r=open("x")', 'tome:**{}', 'tome:r=1)(', 'tome:r=1)+f(', 'tome:x=1',
    'tome:r=' + '(' * 500])
def test_settings_that_are_none(text):
    with pytest.raises(ValueError, match='expected|there are'):
        parse_setting(text)


def test_default_settings_are_the_published_ones_at_their_size(monkeypatch):
    assert [s.options for s in default_settings(12, 196, ['evit', 'tome'])] == [
        *({'keep_rate': rate, 'locations': (3, 6, 9)} for rate in (.8, .7, .5)), *({'r': r} for r in (8, 13, 16))]
    assert default_settings(24, 196, ['evit'])[0].options['locations'] == (6, 12, 18)
    monkeypatch.setitem(settings.METHODS, 'new', tome.ToMe)  # one that has no entry
    assert default_settings(12, 196, ['new']) == [Setting('new')]
    assert {s.method for s in default_settings(12, 196)} == {*METHODS, 'new'}


def test_default_settings_leave_out_what_a_model_cannot_do(images):
    model = timm.create_model('vit_tiny_patch16_224', img_size=96, depth=2, class_token=False, global_pool='avg').eval()
    fitting, reasons = fitting_settings(model, 36)
    assert 'class token' in reasons['evit'] and 'evit' not in {s.method for s in fitting} and 'tome' in {s.method for s in fitting}
    assert {row.method for row in compare(model, images[:1], latency=False)} == {None} | {s.method for s in fitting}


@pytest.mark.parametrize('change, error, match', [
    (dict(settings=[Setting('tome', {'r': -1})]), ValueError, 'tome r=-1: r=-1'),
    (dict(settings=[Setting('tome', {'x': 1})]), TypeError, "no option 'x'"),
    (dict(settings=[Setting('evit', {'locations': (9,)})]), ValueError, 'from 0 to 3'),
    (dict(images=torch.zeros(0, 3, 96, 96)), ValueError, 'empty'),
    (dict(images=torch.zeros(1, 4, 96, 96)), ValueError, '3 channels'),
    (dict(images=torch.zeros(1, 3, 90, 96)), ValueError, 'does not take images of 90x96'),
    (dict(rounds=0), ValueError, 'rounds=0'),
    (dict(rounds='x'), ValueError, 'rounds'),
    (dict(images='x'), ValueError, 'images'),
    (dict(settings='tome'), ValueError, 'expected Setting'),
    (dict(model=torch.nn.Linear(2, 2)), ValueError, 'Linear'),
])
def test_bad_arguments_before_any_work(model, images, change, error, match):
    said = []
    with pytest.raises(error, match=match):
        compare(**{'model': model, 'images': images, 'progress': said.append, **change})
    assert not said
