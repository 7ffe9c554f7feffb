import importlib.util

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
from mmengine.config import Config  # noqa: E402
from mmengine.registry import MODELS, init_default_scope  # noqa: E402
from mmengine.structures import InstanceData, PixelData  # noqa: E402

from vitzoo.dense import DenseBackbone  # noqa: E402
from vitzoo.mm import config_path, setup  # noqa: E402
from vitzoo.mm.config import CONFIGS  # noqa: E402

NAMES = sorted(p.relative_to(CONFIGS).with_suffix('').as_posix() for p in CONFIGS.glob('[!_]*/*.py'))
SIZE = (131, 167)


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


def batch(cfg, num=2):
    """Random images of an odd size with two objects each."""
    height, width = SIZE
    images = [torch.randint(256, (3, height, width), dtype=torch.uint8) for _ in range(num)]
    if cfg.default_scope == 'mmengine':
        return [torch.stack(images).float(), torch.arange(num)]
    samples = []
    for _ in range(num):
        if cfg.default_scope == 'mmdet':
            from mmdet.structures import DetDataSample
            from mmdet.structures.mask import BitmapMasks
            boxes = torch.tensor([[10., 20., 60., 80.], [70., 30., 150., 125.]])
            masks = np.zeros((2, height, width), np.uint8)
            masks[0, 25:75, 15:55] = masks[1, 35:120, 75:145] = 1
            sample = DetDataSample(metainfo=dict(
                img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1., 1.)))
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 7]), masks=BitmapMasks(masks, height, width))
        else:
            from mmseg.structures import SegDataSample
            sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE))
            labels = torch.zeros(1, height, width, dtype=torch.long)
            labels[:, 25:75, 15:55], labels[:, 35:120, 75:145] = 2, 8
            sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def total(losses):
    values = [v for name, v in losses.items() if 'loss' in name]
    return sum(sum(v) if isinstance(v, list) else v for v in values).mean()


@pytest.mark.parametrize('name', [n for n in NAMES if not n.endswith('_in1k')])  # those: test_classification.py
def test_config_learns_at_an_odd_size_with_every_parameter(name):
    torch.manual_seed(0)
    cfg = setup(config_path(name))
    if cfg.default_scope == 'mmseg':
        cfg.model.data_preprocessor.size = SIZE
    model = build(cfg).train()
    data = model.data_preprocessor(batch(cfg), training=True)
    losses = model(**data, mode='loss') if isinstance(data, dict) else model(*data, mode='loss')
    loss = total(losses)
    assert torch.isfinite(loss) and loss > 0
    loss.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []

    if cfg.default_scope == 'mmengine':
        return
    assert isinstance(model.backbone, DenseBackbone)
    head = cfg.model.get('neck') or cfg.model.decode_head
    assert list(model.backbone.out_channels) == list(head.in_channels)
    strides = {'mmdet': lambda: [s for s, _ in model.bbox_head.prior_generator.strides] if hasattr(model, 'bbox_head')
               else [s for s, _ in model.rpn_head.prior_generator.strides], 'mmseg': lambda: [4, 8, 16, 32]}[cfg.default_scope]()
    assert strides[:len(model.backbone.strides)] == list(model.backbone.strides)


@pytest.mark.parametrize('name', [n for n in NAMES if 'classification' not in n])
def test_config_has_what_tools_and_inferencers_look_for(name):
    cfg = setup(config_path(name))
    assert cfg.test_pipeline and cfg.default_scope in ('mmdet', 'mmseg')
    assert 'vitzoo.mm' in cfg.custom_imports.imports
    assert cfg.model.get('pretrained') is None  # mmseg hands it to the backbone
    assert not cfg.model.backbone.get('pretrained', False)


def test_digit_classes():
    from vitzoo.datasets import digit_scenes
    detection = setup(config_path('detection/mask-rcnn_svit_micro_digits')).metainfo
    segmentation = setup(config_path('segmentation/fpn_svit_micro_digits')).metainfo
    assert tuple(detection.classes) == digit_scenes.CLASSES
    assert tuple(segmentation.classes) == digit_scenes.SEG_CLASSES
    assert segmentation.palette == digit_scenes.SEG_PALETTE


@pytest.mark.parametrize('name', ['detection/retinanet_svit_micro_digits', 'segmentation/fpn_svit_micro_digits'])
def test_dump_reloads_and_builds(name, tmp_path):
    cfg = setup(config_path(name))
    cfg.dump(tmp_path / 'dump.py')
    again = Config.fromfile(tmp_path / 'dump.py')
    assert again.model == cfg.model and again.train_dataloader == cfg.train_dataloader
    assert build(again).backbone.out_channels == build(cfg).backbone.out_channels


def test_config_of_a_user_inherits_from_ours(tmp_path):
    (tmp_path / 'mine.py').write_text(
        f"_base_ = [{str(config_path('detection/retinanet_svit_micro_digits'))!r}]\nmodel = dict(backbone=dict(drop_path_rate=0.2))\n")
    cfg = setup(tmp_path / 'mine.py', cfg_options={'train_cfg.max_iters': 7, 'model.backbone.with_cp': True}, seed=3)
    assert (cfg.model.backbone.drop_path_rate, cfg.model.backbone.with_cp, cfg.train_cfg.max_iters) == (0.2, True, 7)
    assert cfg.randomness.seed == 3 and cfg.work_dir == 'work_dirs/mine'
    assert setup(tmp_path / 'mine.py', work_dir=tmp_path).work_dir == str(tmp_path)


def test_missing_pkg_resources_is_explained(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name, *args: None if name == 'pkg_resources' else find_spec(name, *args))
    with pytest.raises(ImportError, match='setuptools<82'):
        setup(config_path('detection/retinanet_svit_micro_digits'))


def test_unknown_config_is_answered_with_the_names():
    with pytest.raises(ValueError, match='detection/mask-rcnn_svit_micro_digits'):
        config_path('mask-rcnn')
    assert config_path(NAMES[0]) == config_path(NAMES[0] + '.py')


def distributed_config():
    return Config(dict(
        model=dict(decode_head=dict(norm_cfg=dict(type='SyncBN', requires_grad=True)), heads=[dict(norm_cfg=dict(type='SyncBN'))]),
        optim_wrapper=dict(type='AmpOptimWrapper', loss_scale='dynamic', optimizer=dict(type='AdamW')),
        model_wrapper_cfg=dict(find_unused_parameters=True),
        env_cfg=dict(cudnn_benchmark=True, dist_cfg=dict(backend='nccl')), work_dir='x'))


def test_cpu_config(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    backends = []
    monkeypatch.setattr(torch.distributed, 'init_process_group', backends.append)
    cfg = setup(distributed_config(), launcher='pytorch')
    assert backends == ['gloo'] == [cfg.env_cfg.dist_cfg.backend] and cfg.env_cfg.cudnn_benchmark
    assert cfg.model.decode_head.norm_cfg == dict(type='BN', requires_grad=True) and cfg.model.heads[0].norm_cfg.type == 'BN'
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None)
    assert cfg.optim_wrapper == dict(type='OptimWrapper', optimizer=dict(type='AdamW'))
    with pytest.raises(ValueError, match='slurm'):
        setup(distributed_config(), launcher='slurm')
    alone = setup(distributed_config())
    assert alone.model_wrapper_cfg == dict(find_unused_parameters=True) and alone.optim_wrapper.type == 'OptimWrapper'


def test_gpu_config_is_left_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    cfg, before = setup(distributed_config(), launcher='pytorch'), distributed_config()
    assert all(cfg[key] == before[key] for key in before) and cfg.launcher == 'pytorch'
