"""Image classification with mmengine's Runner: a timm model with timm's mixup and losses, folders of images, top-1 and top-5.

A trained model is put to use on single images in the manner of `mmdet.apis`: `init_classifier` and `inference_classifier`.
"""
import os
from collections.abc import Sequence

import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmengine.model import BaseModel, initialize
from PIL import Image
from timm.data import Mixup, create_transform
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import Tensor, nn
from torchvision import datasets

from vitzoo.arguments import MOST_PIXELS, check_range, check_types, show
from vitzoo.dense.backbone import check_model_name, check_weights
from vitzoo.layers import check_rates
from vitzoo.registry import DATASETS, METRICS, MODELS
from vitzoo.weights import load_checkpoint
from vitzoo.weights.files import meta_of

from .safe_load import read_content

__all__ = ['Accuracy', 'Classifier', 'ImageFolder', 'inference_classifier', 'init_classifier']

for loss in BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy:
    MODELS.register_module(module=loss)


@MODELS.register_module()
class Classifier(BaseModel):
    """A timm model with a loss.

    Args:
        model_name: any registered name, with or without a tag.
        loss: a loss of timm (`dict(type='vitzoo.BinaryCrossEntropy', ...)`) or of the registry, called with logits (B, num_classes) and
            labels (B,), or with target probabilities (B, num_classes) after mixup. Without it: cross-entropy, which takes either.
        label_smoothing: of the cross-entropy or, with mixup, of the target probabilities.
        mixup: arguments of `timm.data.Mixup` (`dict(mixup_alpha=0.8, cutmix_alpha=1.0)`), which wants batches of even size. Training alone.
        separate_logits: a loss on each of the two token sets of LookupViT, averaged; models with one answer have no such switch.
        checkpoint_path: weights to start from, in any layout that `vitzoo.load_checkpoint` reads (a path, or `hf-hub:ORG/REPO[/FILE]`), in
            the place of `pretrained`. The classifier stays new where the file has another number of classes.
        with_cp: recompute activations in the backward pass to save memory.
        data_preprocessor: as of mmengine.
        init_cfg: as of mmengine (`dict(type='Xavier', layer='Linear')`): how weights start when the Runner begins to train, in place of the
            model's own way or of pretrained weights. Without it the model stays as timm built it.
        model_kwargs: go to `timm.create_model` (`num_classes`, `drop_path_rate`, `pretrained`, ...).

    Raises:
        ValueError: the model lacks what is asked for, weights come from two places or do not fit, or a batch is odd where mixup pairs
            images.
    """

    @check_types
    def __init__(
            self,
            model_name: str,
            *,
            loss: dict | None = None,
            label_smoothing: float = 0.,
            mixup: dict | None = None,
            separate_logits: bool = False,
            checkpoint_path: str | os.PathLike | None = None,
            with_cp: bool = False,
            data_preprocessor: dict | nn.Module | None = None,
            init_cfg: dict | list[dict] | None = None,
            **model_kwargs,
    ):
        check_model_name(model_name)
        check_weights(model_kwargs.get('pretrained', False), checkpoint_path)
        if checkpoint_path is not None and init_cfg is not None:
            raise ValueError(f'init_cfg={show(init_cfg)} would replace the weights of checkpoint_path={str(checkpoint_path)!r}; give one')
        check_rates(label_smoothing=label_smoothing)
        super().__init__(data_preprocessor, init_cfg)
        self.model = timm.create_model(model_name, **model_kwargs)
        if checkpoint_path is not None:
            self._load(model_name, checkpoint_path)
        if loss is not None and label_smoothing and mixup is None:
            raise ValueError(f'label_smoothing={label_smoothing} is of the cross-entropy or of mixup, got loss={loss} without mixup; '
                             'give the loss its own smoothing')
        self.loss = None if loss is None else MODELS.build(loss)
        self.label_smoothing = label_smoothing if mixup is None else 0.
        self.mixup = None if mixup is None else Mixup(
            **{'label_smoothing': label_smoothing, 'num_classes': self.model.num_classes, **mixup})
        if separate_logits:
            if not hasattr(self.model, 'set_separate_logits'):
                raise ValueError(f'{model_name} has one answer; leave separate_logits=False')
            self.model.set_separate_logits()
        if with_cp:
            try:
                self.model.set_grad_checkpointing(True)
            except (AttributeError, AssertionError) as e:  # timm asserts where a model cannot
                raise ValueError(f'{model_name} has no gradient checkpointing; leave with_cp=False') from e

    def _load(self, model_name: str, source: str | os.PathLike) -> None:
        report = load_checkpoint(self.model, source, reset_head=True)
        new = f'new: {", ".join(report.new[:3])}{", ..." if len(report.new) > 3 else ""}' if report.new else 'nothing new'
        print_log(f'{model_name}: {report} from {source}; {new}', 'current')

    def init_weights(self) -> None:
        """Apply `init_cfg` once; timm's models come initialised, and mmengine would call methods of that name of theirs."""
        if self.init_cfg and not self.is_init:
            initialize(self, self.init_cfg)
        self._is_init = True

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Images (B, C, H, W) to logits ('tensor'), a loss dict ('loss'), or a dict of label and best five classes an image ('predict')."""
        if mode == 'loss' and self.mixup is not None and self.training:
            if len(images) % 2:
                raise ValueError(f'mixup pairs the images of a batch, got {len(images)}; use an even batch_size and drop_last=True')
            images, labels = self.mixup(images, labels)
        logits = self.model(images)
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            answers = logits if isinstance(logits, tuple) else (logits,)
            return dict(loss=sum(self._loss(answer, labels) for answer in answers) / len(answers))
        best = logits.topk(min(5, logits.shape[1])).indices.tolist()
        return [dict(predictions=p, label=t) for p, t in zip(best, labels.tolist(), strict=True)]

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.loss is not None:
            return self.loss(logits, target)
        return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)


@DATASETS.register_module()
class ImageFolder(datasets.ImageFolder):
    """Images in one folder a class, through timm's transforms; `transform_kwargs` go to `timm.data.create_transform`."""

    @check_types
    def __init__(self, root: str | os.PathLike, input_size: int | Sequence[int], is_training: bool = False, **transform_kwargs):
        check_range(1, MOST_PIXELS, input_size=input_size)
        if not isinstance(input_size, int) and len(input_size) not in (2, 3):
            raise ValueError(f'input_size={input_size}: expected a number, (H, W) or (C, H, W).')
        if not os.path.isdir(root):
            raise ValueError(f'root={show(root)} is not a folder; expected one with CLASS/IMAGE in it. The shipped configs look where the '
                             'environment variable IMAGENET (or DIGIT_SCENES) points')
        super().__init__(root, transform=create_transform(input_size, is_training=is_training, **transform_kwargs))
        self.metainfo = dict(classes=self.classes)  # goes into checkpoints


@METRICS.register_module()
class Accuracy(BaseMetric):
    """Share of images whose class is the first, or among the first five, of the predictions, in percent: top1 and top5."""

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        self.results += [(s['label'] == s['predictions'][0], s['label'] in s['predictions']) for s in data_samples]

    def compute_metrics(self, results: list[tuple[bool, bool]]) -> dict[str, float]:
        return {f'top{k}': 100 * sum(hits) / len(results) for k, hits in zip((1, 5), zip(*results, strict=True), strict=True)}


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
    content = read_content(checkpoint)
    meta = meta_of(content).get('dataset_meta')
    classes = meta.get('classes') if isinstance(meta, dict) else None
    # all weights come from the checkpoint: those that training began with need not be here, nor the pictures whose folders were counted
    options = {key: value for key, value in cfg.model.items() if key not in ('checkpoint_path', 'pretrained')}
    if classes and options.get('num_classes') is None:
        options['num_classes'] = len(classes)
    model = MODELS.build(options)
    try:
        load_checkpoint(model.model, content)
    except ValueError as e:
        raise ValueError(f'{checkpoint} does not fit the config: {e}') from e
    model.dataset_meta = {'classes': classes or [str(i) for i in range(model.model.num_classes)]}
    model.transform = create_transform(**{key: value for key, value in data.items() if key not in ('type', 'root')})
    return model.to(device).eval()


@torch.inference_mode()
def inference_classifier(model: Classifier, image: Image.Image) -> Tensor:
    """An RGB image of any size -> class probabilities (num_classes,)."""
    x = model.transform(image)[None].to(next(model.parameters()).device)
    return model(x).softmax(1)[0]
