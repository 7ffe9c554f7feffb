"""Recover layers of dense backbones: back to the grid by the nearest token, or by learnt queries."""
import copy

import numpy as np
import pytest
import torch
from test_reduced_backbone import ONE_SIZE, VIT, build, every_method, loss, reduction

import vitzoo
from vitzoo.dense import DenseBackbone
from vitzoo.dense.recover import LearntRecover, NearestRecover, nearest_kept, recovered_map
from vitzoo.layers import Kept

EVIT = dict(method='evit', locations=(1, 2), keep_rate=0.5)


def stvit_deit(recover, size=(80, 112)):
    torch.manual_seed(0)
    return DenseBackbone('stvit_deit_micro', img_size=size, recover=recover).eval()


@pytest.mark.parametrize('shape', [(5, 7), (1, 9), (8, 3)])
@pytest.mark.parametrize('share', [0.02, 0.3, 1.])
def test_nearest_is_the_least_of_all_distances(shape, share):
    rng = np.random.RandomState(0)
    here = rng.rand(4, *shape) < share
    here[:, -1, -1] = True
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1).reshape(-1, 2)
    squares = ((places[:, None] - places) ** 2).sum(-1)
    found = nearest_kept(torch.from_numpy(here)).numpy()
    for one, index in zip(here.reshape(4, -1), found, strict=True):
        assert one[index].all()
        assert (squares[np.arange(len(index)), index] == np.where(one, squares, 10 ** 6).min(1)).all()
        assert (index[one] == np.flatnonzero(one)).all()


def test_nearest_takes_stored_values():
    tokens = torch.arange(3.)[None, :, None]
    labels = torch.tensor([[0, -1, -1, 1, 2, 0]])  # 2 x 3
    assert NearestRecover()(Kept(tokens, (2, 3), lambda: labels)).flatten().tolist() == [0, 0, 0, 1, 2, 0]


@every_method
@pytest.mark.parametrize('size', [(75, 109), (33, 130), (101, 49)])
@torch.no_grad()
def test_nearest_at_any_size(method, size):
    if method in ONE_SIZE and size != (75, 109):
        pytest.skip('what it learns is made for one number of tokens')
    backbone, x = build(reduction=reduction(method), recover='nearest'), torch.rand(2, 3, *size)
    maps, kept = backbone(x), backbone.model.forward_kept(torch.nn.functional.pad(x, (0, -size[1] % 16, 0, -size[0] % 16)))
    assert [m.shape for m in maps] == [
        (2, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(backbone.out_channels, (4, 8, 16, 32), strict=True)]
    grid = backbone.recover_layer(kept)
    for image in range(2):  # nothing is mixed
        assert (grid[image][:, None] == kept.tokens[image]).all(-1).any(1).all()
    assert [m.shape for m in backbone(x[:0])] == [(0, *m.shape[1:]) for m in maps]


@torch.no_grad()
def test_nearest_is_the_way_of_methods_that_merge_alone():
    """ToMe's own, and that of STViT-DeiT without its block."""
    x = torch.rand(2, 3, 75, 109)
    options = dict(reduction=reduction('tome'))
    assert all(map(torch.equal, build(**options, recover='nearest')(x), build(**options)(x)))
    backbone, x = stvit_deit('nearest'), torch.rand(2, 3, 80, 112)
    assert torch.equal(recovered_map(backbone.recover_layer, backbone.model.forward_kept(x)), backbone.body(x)[0])
    assert (stvit_deit('nearest')(x)[2] - stvit_deit('method')(x)[2]).abs().max() > 1e-3


@every_method
def test_learnt_at_its_size_alone(method):
    backbone = build(reduction=reduction(method), recover='learnt').train()
    loss(backbone(torch.rand(2, 3, 75, 109))).backward()
    grads = {name: p.grad for name, p in backbone.recover_layer.named_parameters()}
    assert len(grads) == 11 and all(grad is not None and grad.abs().max() > 0 for grad in grads.values())
    assert [m.shape[2:] for m in backbone(torch.rand(0, 3, 66, 98))] == [(17, 25), (9, 13), (5, 7), (3, 4)]
    if method not in ONE_SIZE:  # those say so themselves
        with pytest.raises(ValueError, match=r'5x7 positions, got an image of 5x8.*nearest'):
            backbone(torch.rand(2, 3, 75, 115))


def test_learnt_recovers_a_place_from_its_token():
    """A map that names the column of each position is learnt from half of the tokens."""
    torch.manual_seed(0)
    position = torch.randn(35, 32)
    target = (torch.arange(35) % 7 / 7)[None, :, None].expand(8, -1, 32)
    layer = LearntRecover(32, 2, (5, 7))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        rows = torch.stack([torch.randperm(35)[:17] for _ in range(8)])
        error = (layer(Kept(position[rows], (5, 7), None)) - target).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        losses.append(error.item())
    assert losses[-1] < losses[0] / 10


@pytest.mark.parametrize('recover', ['nearest', 'learnt'])
def test_gradients_frozen_stages_and_checkpointing(recover):
    backbone = build(reduction=EVIT, recover=recover, frozen_stages=2, with_cp=True).train()
    loss(backbone(torch.rand(2, 3, 75, 109))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in backbone.model.blocks[1].parameters())
    own = stvit_deit(recover).train()
    loss(own(torch.rand(2, 3, 80, 112))).backward()
    assert own.model.recover is None and [n for n, p in own.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('recover', ['nearest', 'learnt'])
@torch.no_grad()
def test_files(recover, tmp_path):
    backbone, x = build(reduction=EVIT, recover=recover), torch.rand(1, 3, 75, 109)
    wanted = backbone(x)
    assert all(map(torch.equal, copy.deepcopy(backbone)(x), wanted))
    torch.save(backbone.state_dict(), tmp_path / 'own.pth')
    other = build(reduction=EVIT, recover=recover)
    for p in other.parameters():
        p.zero_()
    report = vitzoo.load_checkpoint(other, tmp_path / 'own.pth')
    assert not report.new and all(map(torch.equal, other(x), wanted))
    plain = build()
    report = vitzoo.load_checkpoint(other, plain.state_dict())
    learnt = [name for name in other.state_dict() if name.startswith('recover_layer.')]
    assert report.new == learnt and bool(learnt) == (recover == 'learnt')
    report = vitzoo.load_checkpoint(other, plain.model.state_dict())
    assert {name for name in report.new if not name.startswith('pyramid.')} == set(learnt)


@torch.no_grad()
def test_a_method_without_a_way_of_its_own():
    options = reduction('expedite', rec_location=-1)
    for recover in 'nearest', 'learnt':
        assert build(reduction=options, recover=recover)(torch.rand(1, 3, 75, 109))[2].shape[2:] == (5, 7)
    with pytest.raises(ValueError, match="recover='nearest'"):
        build(reduction=options)


@pytest.mark.parametrize('name, kwargs, message', [
    ('svit_micro', dict(recover='nearest'), 'svit_micro .*nothing to recover'), ('resnet10t', dict(recover='learnt'), 'nothing to recover'),
    (VIT, dict(recover='nearest'), 'nothing to recover.*reduction'), ('lookupvit_micro', dict(recover='learnt'), 'nothing to recover'),
    (VIT, dict(recover='best', reduction=EVIT), "recover='best'"),
    ('stvit_deit_micro', dict(recover=False), 'recover'), ('stvit_deit_micro', dict(recover='own'), "recover='own'")])
def test_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        DenseBackbone(name, **kwargs)


@pytest.mark.parametrize('recover', ['nearest', 'learnt'])
@torch.no_grad()
def test_under_autocast(recover):
    backbone, x = build(reduction=EVIT, recover=recover), torch.rand(1, 3, 75, 109)
    with torch.autocast('cpu', torch.bfloat16):
        maps = backbone(x)
    assert all(m.isfinite().all() for m in maps) and maps[2].shape == backbone(x)[2].shape


@pytest.mark.slow
@pytest.mark.parametrize('recover', ['nearest', 'learnt'])
def test_exported(recover, tmp_path):
    pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    report = vitzoo.export_onnx(build(reduction=EVIT, recover=recover), tmp_path / 'x.onnx', (75, 109), rounds=0, progress=False)
    assert report.max_error < 1e-5 and list(report.outputs) == ['feat0', 'feat1', 'feat2', 'feat3']


def test_from_a_config():
    pytest.importorskip('mmdet')
    from mmengine.registry import MODELS

    from vitzoo.mm import config_path, setup
    cfg = setup(config_path('segmentation/upernet_svit_micro_digits'), backbone=config_path('_base_/backbones/timm_vit_evit_learnt'))
    backbone = MODELS.build(cfg.model.backbone)
    assert isinstance(backbone.recover_layer, LearntRecover) and backbone.recover_layer.grid == (16, 20)
    assert [m.shape[1:] for m in backbone(torch.rand(1, 3, 128, 160))] == [(48, 32, 40), (96, 16, 20), (96, 8, 10), (96, 4, 5)]
