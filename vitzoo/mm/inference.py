"""A trained `vitzoo.Classifier` on single images, in the manner of `mmdet.apis.init_detector` and `inference_detector`."""
import os

import torch
from mmengine.config import Config
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from vitzoo.registry import MODELS
from vitzoo.weights import load_checkpoint

from .classifier import Classifier
from .safe_load import read_content

__all__ = ['inference_classifier', 'init_classifier']


def init_classifier(config: str | os.PathLike | Config, checkpoint: str | os.PathLike, device: str | torch.device = 'cpu') -> Classifier:
    """The trained model of a classification config, ready for `inference_classifier`.

    `dataset_meta['classes']` has the names that the checkpoint holds, numbers if it has none.

    Raises:
        ValueError: the config has no test data to take the transforms from, or the checkpoint does not fit.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    data = (cfg.get('test_dataloader') or {}).get('dataset')
    if not data:
        raise ValueError('the config has no test_dataloader.dataset, which says how images are prepared')
    model = MODELS.build(cfg.model)
    content = read_content(checkpoint)
    try:
        load_checkpoint(model.model, content)
    except ValueError as e:
        raise ValueError(f'{checkpoint} does not fit the config: {e}') from e
    meta = (content.get('meta') or {}).get('dataset_meta') or {}
    model.dataset_meta = {'classes': meta.get('classes') or [str(i) for i in range(model.model.num_classes)]}
    model.transform = create_transform(**{key: value for key, value in data.items() if key not in ('type', 'root')})
    return model.to(device).eval()


@torch.inference_mode()
def inference_classifier(model: Classifier, image: Image.Image) -> Tensor:
    """An RGB image of any size -> class probabilities (num_classes,)."""
    x = model.transform(image)[None].to(next(model.parameters()).device)
    return model(x).softmax(1)[0]
