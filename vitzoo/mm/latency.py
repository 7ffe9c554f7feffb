"""Where the time of a whole detector or segmentor goes."""
import contextlib
import io
import os
import warnings

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope

from vitzoo.profiling.modules import split_network

from .config import setup


def split_config(config: str | os.PathLike, size: tuple[int, int], *, rounds: int = 5) -> dict[str, tuple[float, float, float]]:
    """Backbone, neck, head and whole -> milliseconds of CPU time for one image of (H, W), one thread: median, lowest, highest.

    The model is built from the config, with random weights, and does what its own `predict` does with an image of that size, without
    bringing boxes or regions back to another. How many objects a head has to do with depends on the weights.

    Raises:
        ValueError: if the config is of neither a detector nor a segmentor, or the model does not take that size.
    """
    cfg = setup(config)
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise ValueError(f'{config}: default_scope={scope!r}; expected a config of MMDetection or MMSegmentation (mmdet, mmseg).')
    init_default_scope(scope)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # those libraries deprecate a lot, and say what they load
        warnings.simplefilter('ignore')
        torch.manual_seed(0)
        model = MODELS.build(cfg.model)
        model.init_weights()
        model.eval()
        call = (_detect if scope == 'mmdet' else _segment)(model, size)
        return split_network(model, call, rounds)


def _detect(model, size: tuple[int, int]):
    from mmdet.structures import DetDataSample
    height, width = size
    divisor = getattr(model.data_preprocessor, 'pad_size_divisor', 1)
    image = F.pad(torch.randn(1, 3, height, width), (0, -width % divisor, 0, -height % divisor))
    padded = tuple(image.shape[-2:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, pad_shape=padded, batch_input_shape=padded, scale_factor=(1., 1.)))
    return lambda: model.predict(image, [sample], rescale=False)


def _segment(model, size: tuple[int, int]):
    image = torch.randn(1, 3, *size)
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
    return lambda: model.inference(image, [meta])
