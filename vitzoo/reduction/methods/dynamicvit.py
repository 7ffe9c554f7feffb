"""DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification, https://arxiv.org/abs/2106.02034

In front of a few blocks a small network that is learned scores the patches, and those of the highest scores are kept. While it learns, all
patches stay: each is kept or dropped by chance, and attention does not see the dropped ones. `vitzoo.reduction.training` has its losses.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ...arguments import check_range, show
from ..method import Method, Tokens
from ..restore import Drop, refill
from ._checks import check_locations, factory_of

EPS = 1e-6  # of the masked softmax, as published


class ScorePredictor(nn.Module):
    """Says of each patch how likely it is to be kept: half of what it knows of it is local, half the mean over all patches kept so far."""

    def __init__(self, dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_own = dim // 2
        self.in_conv = nn.Sequential(nn.LayerNorm(dim, **dd), nn.Linear(dim, dim, **dd), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2, **dd), nn.GELU(), nn.Linear(dim // 2, dim // 4, **dd), nn.GELU(), nn.Linear(dim // 4, 2, **dd))
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Patches (B, N, C), which of them are kept (B, N) or None for all -> log-probabilities (B, N, 2) to keep and to drop."""
        x = self.in_conv(x)
        own, shared = x[:, :, :self.num_own], x[:, :, self.num_own:]
        if kept is None:
            mean = shared.mean(1, keepdim=True)
        else:
            weights = kept[:, :, None].to(shared.dtype)
            mean = (shared * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(EPS)
        scores = self.out_conv(torch.cat([own, mean.expand_as(shared)], dim=2))
        return scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))  # halves have few numbers around -0.7


def draw(scores: Tensor) -> Tensor:
    """Log-probabilities (B, N, 2) to keep and to drop -> 1 where a patch is kept, else 0, (B, N), by chance.

    The straight-through Gumbel-softmax: gradients are those of the probability.
    """
    return F.gumbel_softmax(scores.float(), hard=True)[:, :, 0]


def masked_softmax(logits: Tensor, kept: Tensor) -> Tensor:
    """Attention (B, H, N, N) of logits on tokens that are kept, (B, N) of 0 and 1 with a gradient; each token also sees itself."""
    N = logits.shape[-1]
    itself = torch.eye(N, dtype=torch.float32, device=logits.device)
    seen = kept[:, None, None].float()
    seen = seen + (1 - seen) * itself
    weights = (logits - logits.amax(-1, keepdim=True)).float().exp() * seen
    return ((weights + EPS / N) / (weights.sum(-1, keepdim=True) + EPS)).to(logits.dtype)


@dataclass(frozen=True)
class DynamicViT(Method):
    """Keeps the patches that a learned network scores highest, in front of a few blocks.

    It has to be trained, or loaded from a published file: the network starts at random. In training mode no patch goes away, and each
    forward draws anew which ones attention sees; a forward costs more than that of the model as it was.

    Args:
        keep_rate: the share of the patches that is kept at the first location, 0 (excluded) to 1, and its powers at the next ones:
            int(keep_rate ** j * N0) of N0 patches at the j-th, at least one.
        locations: the blocks, from 0.
    """
    keep_rate: float = 0.7
    locations: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self):
        check_range(1e-6, 1, keep_rate=self.keep_rate)

    def check(self, model: nn.Module) -> None:
        check_locations(self.locations, model)
        present = getattr(model, 'score_predictor', None)
        if present is not None and len(present) != len(self.locations):
            raise ValueError(f'locations={show(self.locations)}: the model has learned parts for {len(present)} locations; call '
                             'restore_tokens(model) first to drop them.')

    def attach(self, model: nn.Module) -> None:
        parts = [ScorePredictor(model.embed_dim, **factory_of(model)) for _ in self.locations]
        model.score_predictor = nn.ModuleList(parts).train(model.training)

    def detach(self, model: nn.Module) -> None:
        del model.score_predictor

    @property
    def ratios(self) -> tuple[float, ...]:
        """The share of the patches that is kept from each location on."""
        return tuple(self.keep_rate ** (j + 1) for j in range(len(self.locations)))

    def num_kept(self, i: int, num_patches: int) -> int:
        """How many of N0 patches stay from block i on, which is a location."""
        return max(int(self.ratios[self.locations.index(i)] * num_patches), 1)

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        counts = [num_patches]
        for i in range(depth):
            counts.append(self.num_kept(i, num_patches) if i in self.locations else counts[-1])
        return tuple(counts[1:])

    def want(self, model: nn.Module, i: int) -> str | None:
        # in front of the first decision the masked softmax is the plain one, but for its EPS
        return 'map' if model.training and self.locations and i >= self.locations[0] else None

    def pre(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        if i not in self.locations:
            return tokens
        predictor = model.score_predictor[self.locations.index(i)]
        if model.training:
            kept = tokens.memory[-1] if tokens.memory else None
            decision = draw(predictor(tokens.patches, kept))
            decision = decision if kept is None else decision * kept
            return tokens._replace(memory=(*(tokens.memory or ()), decision))
        num_kept = self.num_kept(i, tokens.grid[0] * tokens.grid[1])
        if num_kept == tokens.num_patches:
            return tokens
        order = predictor(tokens.patches)[:, :, 0].argsort(dim=1, descending=True)
        drop = Drop(tokens.patches, order, num_kept)
        return tokens.take(order[:, :num_kept]).with_step(drop)

    def softmax(self, i: int, logits: Tensor, tokens: Tokens) -> Tensor:
        return masked_softmax(logits, F.pad(tokens.memory[-1], (tokens.num_prefix, 0), value=1.))

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        return refill(y, tokens.history), tokens.grid

    def to_pool(self, y: Tensor, tokens: Tokens) -> Tensor:
        if not tokens.memory:
            return y
        kept = tokens.memory[-1][:, :, None].to(y.dtype)
        return y * kept / kept.mean(1, keepdim=True).clamp_min(EPS)
