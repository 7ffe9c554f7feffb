"""Image classification with mmengine's Runner: a timm model, folders of images, top-1."""
from collections.abc import Sequence

import timm
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from timm.data import create_transform
from torch import Tensor
from torchvision import datasets

from vitzoo.registry import DATASETS, METRICS, MODELS


@MODELS.register_module()
class Classifier(BaseModel):
    """A timm model with cross-entropy. Arguments are those of `timm.create_model`."""

    def __init__(self, model_name: str, *, label_smoothing: float = 0., data_preprocessor: dict | None = None, **model_kwargs):
        super().__init__(data_preprocessor)
        self.model = timm.create_model(model_name, **model_kwargs)
        self.label_smoothing = label_smoothing

    def init_weights(self) -> None:
        """timm's models come initialised."""

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Images (B, C, H, W) to logits ('tensor'), a loss dict ('loss'), or one dict of prediction and label an image ('predict')."""
        logits = self.model(images)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing))
        return [dict(prediction=p, label=t) for p, t in zip(logits.argmax(1).tolist(), labels.tolist(), strict=True)]


@DATASETS.register_module()
class ImageFolder(datasets.ImageFolder):
    """Images in one folder a class, through timm's transforms; `transform_kwargs` go to `timm.data.create_transform`."""

    def __init__(self, root: str, input_size: int | Sequence[int], is_training: bool = False, **transform_kwargs):
        size = input_size if isinstance(input_size, int) else tuple(input_size)
        super().__init__(root, transform=create_transform(size, is_training=is_training, **transform_kwargs))
        self.metainfo = dict(classes=self.classes)  # goes into checkpoints


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of right predictions, in percent."""

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        self.results += [sample['prediction'] == sample['label'] for sample in data_samples]

    def compute_metrics(self, results: list[bool]) -> dict[str, float]:
        return {'top1': 100 * sum(results) / len(results)}
