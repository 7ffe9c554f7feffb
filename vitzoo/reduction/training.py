"""Helpers to train models whose tokens are reduced. They keep nothing on the model; a loop adds what they answer to its own loss.

EViT and ToMe train as they are; EViT's keep rate may come down slowly:

    for epoch in range(epochs):
        vitzoo.reduce_tokens(model, 'evit', keep_rate=scheduled_keep_rate(epoch, base=0.7, epochs=20))

DynamicViT learns by three more losses, with the model as it was as the teacher:

    output = forward_with_policy(model, images)
    with torch.no_grad():
        tokens = teacher.forward_features(images)
        logits = teacher.forward_head(tokens)
    loss = F.cross_entropy(output.logits, labels) + dynamicvit_loss(output, logits, tokens[:, teacher.num_prefix_tokens:])

Sparsifiner's masks are learned by `sparsifiner_loss`: no other gradient reaches what predicts them.
"""
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arguments import check_range, check_types
from ..layers import check_image, precision_of
from .apply import Reduced, find_transformer
from .method import Seen, Tokens
from .methods.dynamicvit import EPS, DynamicViT
from .methods.sparsifiner import Sparsifiner
from .runner import embed, run_block


@check_types
def scheduled_keep_rate(epoch: float, base: float = 0.7, start: float = 0.0, epochs: float = 100.0, step: float = 0.0) -> float:
    """EViT's keep rate on its way from 1 to `base`, half a cosine long, https://arxiv.org/abs/2202.07800.

    Args:
        epoch: how many are done, from 0; fractions count iterations.
        base: the rate at the end.
        start: the epoch of the first change; 0 for fine-tuning.
        epochs: how many it takes from there.
        step: round up to multiples of it, and not below `base`; 0 does not. Each new rate makes a new graph under torch.compile, which
            gives up after `torch._dynamo.config.recompile_limit` of them, 8 by default (train and eval mode count apart): a step of 0.1
            makes 4 rates from 1 to 0.7.
    """
    check_range(0, 1, base=base, step=step)
    check_range(0, math.inf, epoch=epoch, start=start, epochs=epochs)
    done = min(max((epoch - start) / epochs, 0), 1) if epochs else float(epoch >= start)
    rate = base + (1 - base) * (1 + math.cos(math.pi * done)) / 2
    if step and done < 1:
        rate = round(min(math.ceil(round(rate / step, 6)) * step, 1), 6)
    return max(rate, base)


class PolicyOutput(NamedTuple):
    """What DynamicViT's losses look at."""
    logits: Tensor  # (B, classes), or what else `forward_head` answers in training
    tokens: Tensor  # (B, N, C), all patches behind the final norm
    decisions: Tensor  # (B, S, N), for each of S locations 1 where a patch is still kept, else 0; with a gradient
    ratios: tuple[float, ...]  # S, the share that shall be kept


def forward_with_policy(model: nn.Module, images: Tensor) -> PolicyOutput:
    """A training step's forward of a model with DynamicViT, images (B, C, H, W), in train mode.

    It runs the transformer inside `model`; what wraps that (data parallelism, torch.compile) is not called. Wrap a module whose forward
    calls this function instead.

    Raises:
        ValueError: another method, or a model in eval mode, which drops tokens instead of deciding on them.
    """
    vit = _reduced_by(model, DynamicViT, 'dynamicvit')
    if not vit.training:
        raise ValueError('The model is in eval mode, which drops tokens and leaves no decisions to learn from; call model.train() first.')
    if not vit.reduction.locations:
        raise ValueError('locations=(): expected one at least, there is nothing to learn.')
    tokens = vit.forward_tokens(images)
    features = vit.to_head(tokens)
    patches = vit.norm(tokens.patches)
    return PolicyOutput(vit.forward_head(features), patches, torch.stack(tokens.memory, dim=1), vit.reduction.ratios)


def ratio_loss(decisions: Tensor, ratios: tuple[float, ...]) -> Tensor:
    """Mean squared distance of the share of patches that each image keeps (B, S, N) from the share that it should."""
    kept = decisions.mean(2)
    return torch.stack([(kept[:, j] - ratio) ** 2 for j, ratio in enumerate(ratios)]).mean()


def logit_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the classes (B, K) from the teacher's, mean over images."""
    return F.kl_div(logits.log_softmax(-1), teacher.log_softmax(-1), reduction='batchmean', log_target=True)


def token_distillation(tokens: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean squared distance of the patches (B, N, C) that are kept at the end, (B, N) of 0 and 1, from the teacher's."""
    kept = kept.detach()
    distances = (tokens - teacher).float().square().mean(2)
    return (distances * kept).sum() / kept.sum().clamp_min(EPS)


def dynamicvit_loss(
        output: PolicyOutput,
        teacher_logits: Tensor | None = None,
        teacher_tokens: Tensor | None = None,
        *,
        ratio: float = 2.0,
        logits: float = 0.5,
        tokens: float = 0.5,
) -> Tensor:
    """What DynamicViT adds to the loss of the classes, https://arxiv.org/abs/2106.02034, section 3.3, by the paper's weights.

    Args:
        output: of `forward_with_policy`.
        teacher_logits: (B, classes) of the model without reduction; None: nothing is distilled from them.
        teacher_tokens: its patches (B, N, C) behind the final norm; None likewise.
        ratio: weight of `ratio_loss`.
        logits: of `logit_distillation`.
        tokens: of `token_distillation`.
    """
    loss = ratio * ratio_loss(output.decisions, output.ratios)
    if teacher_logits is not None:
        loss = loss + logits * logit_distillation(output.logits, teacher_logits)
    if teacher_tokens is not None:
        loss = loss + tokens * token_distillation(output.tokens, teacher_tokens, output.decisions[:, -1])
    return loss


def sparsifiner_loss(model: nn.Module, images: Tensor) -> Tensor:
    """How far the scores that Sparsifiner predicts are from attention, mean squared distance over all blocks; images (B, C, H, W).

    Its gradient reaches the predictors alone. Scores here are those of the basis with its signs and without its threshold, else most of a
    new basis would never learn; attention is the dense one, of the model's present queries and keys. The published training begins with
    such a loss for a few epochs; this form of it is ours.
    """
    vit = _reduced_by(model, Sparsifiner, 'sparsifiner')
    check_image(images, vit.in_chans, like=precision_of(vit))
    method = _Reconstruction(**{**vars(vit.reduction), 'token_keep': 1.0})
    tokens = method.start(vit, embed(vit, images))
    for i in range(len(vit.blocks)):
        tokens = run_block(vit, method, i, tokens)
    return torch.stack(tokens.history).mean()


class _Reconstruction(Sparsifiner):
    """Runs the blocks as Sparsifiner does and keeps the loss of each in `Tokens.history`."""

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        P = tokens.num_prefix
        q, k = seen.q.detach(), seen.k.detach()
        predictor = model.blocks[i].attn.mask_predictor
        attention = (q[:, :, P:] * seen.scale @ k.transpose(-2, -1)).softmax(-1)
        scores = self.coefficients(predictor, q, k, P) @ predictor.proj_back_n.T
        return tokens._replace(history=(*tokens.history, F.mse_loss(scores.float(), attention.float())))


def _reduced_by(model: nn.Module, kind: type, name: str) -> nn.Module:
    """The transformer inside the model. Raises ValueError unless this method reduces its tokens."""
    vit = find_transformer(model)
    if not isinstance(vit, Reduced) or not isinstance(vit.reduction, kind):
        raise ValueError(f'{type(vit).__name__}: expected a model behind vitzoo.reduce_tokens(model, {name!r}).')
    return vit
