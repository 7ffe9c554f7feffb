"""Losses that MMSegmentation lacks."""
import torch
from torch import Tensor, nn

from vitzoo.arguments import check_types
from vitzoo.registry import MODELS


@MODELS.register_module()
class ClassDiceLoss(nn.Module):
    """Dice loss of each class over the whole batch, mean over the classes (V-Net, https://arxiv.org/abs/1606.04797, squared denominator).

    Small classes weigh as much as large ones. MMSegmentation's DiceLoss sums over all classes of an image at once, and there the background
    outweighs the rest; its TverskyLoss takes each image alone, where most classes are absent.

    Args:
        loss_weight: factor of the loss.
        ignore_index: label of pixels that do not count.
        loss_name: MMSegmentation adds up what begins with `loss_`.
    """

    @check_types
    def __init__(self, loss_weight: float = 1., ignore_index: int = 255, loss_name: str = 'loss_dice'):
        super().__init__()
        self.loss_weight = loss_weight
        self.ignore_index = ignore_index
        self.loss_name = loss_name

    def forward(self, pred: Tensor, target: Tensor, **kwargs) -> Tensor:
        """Logits (B, num_classes, H, W) and labels (B, H, W) to a scalar. What MMSegmentation passes besides is not used."""
        valid = target != self.ignore_index
        share = pred.softmax(1) * valid.unsqueeze(1)
        labels = target.where(valid, 0)
        # of the true class alone, class by class: a one-hot map of all pixels would cost more than the rest
        hits = share.gather(1, labels.unsqueeze(1)).flatten()
        both = hits.new_zeros(pred.shape[1]).index_add(0, labels.flatten(), hits)
        pixels = torch.bincount(target[valid], minlength=pred.shape[1])
        dice = (2 * both + 1) / (share.square().sum((0, 2, 3)) + pixels + 1)
        return self.loss_weight * (1 - dice).mean()
