"""Dense backbones whose tokens are reduced, over all methods."""
import copy
from dataclasses import dataclass, fields

import pytest
import timm
import torch
from torch import nn

from vitzoo.dense import DenseBackbone
from vitzoo.reduction import METHODS, Method

VIT = 'deit_tiny_patch16_224'
# what fits four blocks and 5 x 7 patches; each method takes of it what it has
FITTING = dict(locations=(1, 2), location=1, token_locations=(1, 2), clusters=(2, 3), r=3, num_prop=2, reduce_n_factor=2, keep=20)
OFF = dict(evit=dict(keep_rate=1.), tome=dict(r=0), gtp=dict(num_prop=0), expedite=dict(clusters=100), dynamicvit=dict(keep_rate=1.),
           sparsifiner=dict(attn_keep=1.))
ONE_SIZE = ('sparsifiner',)  # what it learns is made for one number of tokens
every_method = pytest.mark.parametrize('method', METHODS)


def reduction(method, **options):
    names = {field.name for field in fields(METHODS[method])}
    return dict(method=method, **{name: value for name, value in FITTING.items() if name in names}, **options)


def build(name=VIT, reduction=None, **kwargs):
    """A small model of 80 x 112 pixels; its maps are far from constant."""
    torch.manual_seed(0)
    kwargs = dict(depth=4, embed_dim=48, num_heads=3) | ({} if 'dinov3' in name else dict(img_size=(80, 112))) | kwargs
    backbone = DenseBackbone(name, reduction=reduction, **kwargs).eval()
    for module in backbone.model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        for gamma in ('gamma', 'gamma_1', 'gamma_2'):
            if isinstance(getattr(module, gamma, None), nn.Parameter):
                nn.init.constant_(getattr(module, gamma), 0.5)
    return backbone


def loss(maps):
    return sum((m ** 2).mean() for m in maps)


@dataclass(frozen=True)
class Learned(Method):
    """Scales the patches by what it learns, in a block and beside the blocks."""

    def attach(self, model):
        model.blocks[0].attn.scale_predictor = nn.Linear(model.embed_dim, 1)
        model.score_predictor = nn.Linear(model.embed_dim, 1)

    def detach(self, model):
        del model.blocks[0].attn.scale_predictor, model.score_predictor

    def post(self, model, i, tokens):
        part = model.score_predictor if i else model.blocks[0].attn.scale_predictor
        return tokens._replace(x=tokens.x * part(tokens.x).sigmoid())


@every_method
@pytest.mark.parametrize('size', [(75, 109), (33, 130), (101, 49)])
@torch.no_grad()
def test_maps_have_the_full_grid(method, size):
    backbone, x = build(reduction=reduction(method)), torch.rand(2, 3, *size)
    if method in ONE_SIZE and size != (75, 109):
        with pytest.raises(ValueError, match='tokens'):
            backbone(x)
        return
    maps = backbone(x)
    assert [m.shape for m in maps] == [
        (2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.out_channels, (4, 8, 16, 32), strict=True)]
    assert all(m.is_contiguous() and m.isfinite().all() for m in maps)
    torch.testing.assert_close(backbone(x[1:]), [m[1:] for m in maps], rtol=1e-3, atol=1e-4)


@every_method
@torch.no_grad()
def test_method_that_is_off_changes_nothing(method):
    if method not in OFF:
        pytest.skip('has no setting that does nothing')
    plain, backbone = build(), build(reduction=reduction(method) | OFF[method])
    backbone.load_state_dict(plain.state_dict(), strict=False)  # without what it learns
    x = torch.rand(2, 3, 75, 109)
    torch.testing.assert_close(backbone(x), plain(x))
    different = build(reduction=reduction(method))
    different.load_state_dict(plain.state_dict(), strict=False)
    assert (different(x)[2] - plain(x)[2]).abs().max() > 1e-3


@every_method
def test_gradients_reach_what_the_plain_backbone_trains(method):
    backbone = build(reduction=reduction(method)).train()
    loss(backbone(torch.rand(2, 3, 75, 109))).backward()
    wanted = {name for name, _ in build().named_parameters()}
    grads = {name: p.grad for name, p in backbone.named_parameters() if name in wanted}
    assert grads.keys() == wanted
    assert [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()] == []
    backbone = build(reduction=reduction(method), frozen_stages=2).train()
    loss(backbone(torch.rand(2, 3, 75, 109))).backward()
    frozen = {name for name, p in backbone.named_parameters() if name in wanted and p.grad is None}
    assert frozen and all(name.startswith(('body.model.patch_embed', 'body.model.cls_token', 'body.model.pos_embed', 'body.model.blocks.0',
                                           'body.model.blocks.1')) for name in frozen)


@every_method
def test_checkpointing_changes_no_gradient(method):
    plain, recomputing = build(reduction=reduction(method)), build(reduction=reduction(method), with_cp=True)
    recomputing.load_state_dict(plain.state_dict())
    calls, x = [], torch.rand(2, 3, 75, 109)
    recomputing.model.blocks[3].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    for backbone in plain, recomputing:
        loss(backbone(x)).backward()
    assert len(calls) == 2
    for (name, p), q in zip(plain.named_parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@every_method
@torch.no_grad()
def test_copies_and_own_files(method, tmp_path):
    backbone, x = build(reduction=reduction(method)), torch.rand(1, 3, 75, 109)
    wanted = backbone(x)
    assert all(map(torch.equal, copy.deepcopy(backbone)(x), wanted))
    torch.save(backbone.state_dict(), tmp_path / 'own.pth')
    other = DenseBackbone(VIT, reduction=reduction(method), checkpoint_path=tmp_path / 'own.pth', depth=4, embed_dim=48, num_heads=3,
                          img_size=(80, 112)).eval()
    assert all(map(torch.equal, other(x), wanted))


@pytest.mark.parametrize('name, kwargs', [
    (VIT, {}), ('deit_tiny_distilled_patch16_224', {}), ('vit_small_patch14_reg4_dinov2', dict(patch_size=16)),
    ('vit_small_patch16_dinov3', {}), ('vit_base_patch16_siglip_224', {}), ('eva02_tiny_patch14_336', dict(patch_size=16))])
@pytest.mark.parametrize('method', [name for name in METHODS if name in ('tome', 'expedite')])
def test_models(name, kwargs, method):
    backbone = build(name, reduction(method), frozen_stages=1, with_cp=True, **kwargs).train()
    maps = backbone(torch.rand(2, 3, 67, 100))
    assert [m.shape[2:] for m in maps] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    loss(maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in backbone.model.blocks[0].parameters())


@every_method
def test_classifier_s_file_goes_in(method, tmp_path):
    kwargs = dict(depth=4, embed_dim=48, num_heads=3, img_size=(80, 112))
    classifier = timm.create_model(VIT, **kwargs)
    torch.save(classifier.state_dict(), tmp_path / 'classifier.pth')
    backbone = DenseBackbone(VIT, reduction=reduction(method), checkpoint_path=tmp_path / 'classifier.pth', **kwargs)
    own, wanted = backbone.model.state_dict(), classifier.state_dict()
    shared = own.keys() & wanted.keys()
    assert len(shared) > 50 and all(torch.equal(own[k], wanted[k]) for k in shared)
    new = [name for name in backbone.load(wanted).new if not name.startswith('pyramid.')]
    assert new == [f'body.model.{name}' for name in own if name not in shared]  # what is learned


def test_pretrained_patches_of_another_size(tmp_path):
    """timm resamples DINOv2's patches of 14 pixels, before tokens are reduced."""
    name, kwargs = 'vit_small_patch14_reg4_dinov2', dict(depth=3, embed_dim=48, num_heads=3)
    torch.save(timm.create_model(name, img_size=98, **kwargs).state_dict(), tmp_path / 'dinov2.pth')
    kwargs |= dict(patch_size=16, pretrained=True, pretrained_cfg_overlay=dict(file=tmp_path / 'dinov2.pth'))
    plain, backbone = DenseBackbone(name, **kwargs), DenseBackbone(name, reduction=reduction('expedite'), **kwargs)
    wanted = plain.model.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in backbone.model.state_dict().items())
    assert [m.shape[2:] for m in backbone(torch.rand(1, 3, 67, 100))] == [(17, 25), (9, 13), (5, 7), (3, 4)]


@pytest.mark.parametrize('stages', [1, 4])
def test_what_a_method_learns_is_not_frozen(stages):
    backbone = build(reduction=dict(method=Learned()), frozen_stages=stages).train()
    model = backbone.model
    block, learned = model.blocks[0], (model.blocks[0].attn.scale_predictor, model.score_predictor)
    assert all(part.training and part.weight.requires_grad for part in learned)
    assert not any(p.requires_grad for name, p in block.named_parameters() if 'scale_predictor' not in name)
    assert not block.mlp.training and not block.norm1.training
    loss(backbone(torch.rand(2, 3, 75, 109))).backward()
    assert all(part.weight.grad is not None for part in learned)


@pytest.mark.parametrize('name, given, message', [
    ('svit_micro', dict(method='tome'), 'svit_micro'), ('resnet10t', dict(method='tome'), 'resnet10t'),
    ('beit_base_patch16_224', dict(method='tome'), 'Beit'), ('vit_medium_patch16_gap_256', dict(method='evit'), 'class token'),
    (VIT, {}, 'name of a method'), (VIT, dict(method='nothing'), 'nothing'), (VIT, dict(method='tome', r=-1), 'r=-1'),
    (VIT, dict(method='expedite', rec_location=-1), 'coarser grid'), (VIT, 'tome', 'dict')])
def test_refused_before_anything_is_built(monkeypatch, name, given, message):
    create = timm.create_model

    def create_on_meta(*args, **kwargs):
        assert torch.empty(0).is_meta, 'built'
        return create(*args, **kwargs)
    monkeypatch.setattr(timm, 'create_model', create_on_meta)
    with pytest.raises(ValueError, match=message):
        DenseBackbone(name, reduction=given, pretrained=True)


def test_unknown_option():
    with pytest.raises(TypeError, match='no_such_option'):
        DenseBackbone(VIT, reduction=dict(method='tome', no_such_option=1))
