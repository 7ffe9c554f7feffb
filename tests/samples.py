"""Models of configs, random images as each library of OpenMMLab wants them, and their loss."""
import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

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
