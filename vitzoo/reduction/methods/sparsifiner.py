"""Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers, https://arxiv.org/abs/2303.13755

In every block a small network that is learned predicts which keys each query is connected with, and attention sees those alone. The
sequence keeps its length and the mask is applied to dense attention: **nothing gets faster here**, as in the published code. The method is
there to study and to load what was trained so, and as a start for kernels that use the mask.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ...arguments import check_range
from ...layers import record, recording
from ..method import Method, Seen, Tokens
from ._checks import check_locations, factory_of


class MaskPredictor(nn.Module):
    """Scores of queries on keys by a product of low rank: coefficients (from queries and keys) of a basis of rows that is learned.

    Args:
        num_tokens: P + N, which the learned tables are made for.
        num_basis: m, rows of the basis.
        head_dim: of queries and keys.
        reduced_dim: what they are projected to.
    """

    def __init__(self, num_tokens: int, num_basis: int, head_dim: int, reduced_dim: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.proj_c_q = nn.Linear(head_dim, reduced_dim, **dd)
        self.proj_c_k = nn.Linear(head_dim, reduced_dim, **dd)
        self.proj_n = nn.Parameter(torch.empty(num_tokens, num_basis, **dd))
        self.proj_back_n = nn.Parameter(torch.empty(num_tokens, num_basis, **dd))
        for layer in (self.proj_c_q, self.proj_c_k):
            trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for table in (self.proj_n, self.proj_back_n):
            trunc_normal_(table, std=0.02)

    def forward(self, q: Tensor, k: Tensor, num_prefix: int, active: Tensor | None = None) -> Tensor:
        """Queries and keys (B, H, P + N, d) -> (B, H, N, m) for the patches' queries; rows sum to 1.

        active: tokens (B, P + N) that count; None: all.
        """
        q, k = self.proj_c_q(q), self.proj_c_k(k)
        if active is not None:
            q, k = (t * active[:, None, :, None] for t in (q, k))
        logits = q[:, :, num_prefix:] @ (k.transpose(-2, -1) @ self.proj_n) * q.shape[1] ** -0.5  # heads, as published
        return logits.softmax(-1)

    def basis(self, threshold: float) -> Tensor:
        """(m, P + N), not negative; what is not above the threshold is 0."""
        basis = self.proj_back_n.abs()
        return (basis * (basis > threshold)).T


def largest(x: Tensor, k: int) -> Tensor:
    """True at the k largest of each row (..., N); k may be N or more."""
    if k >= x.shape[-1]:
        return torch.ones_like(x, dtype=torch.bool)
    index = x.topk(k, dim=-1).indices
    return torch.zeros_like(x, dtype=torch.bool).scatter(-1, index, torch.ones_like(index, dtype=torch.bool))


class Pruning(NamedTuple):
    """What `Tokens.memory` holds where tokens are given up."""
    active: Tensor | None  # tokens that others still see (B, P + N); None: all
    before: Tensor  # all tokens (B, P + N, C) in front of the present block


def active_tokens(tokens: Tokens) -> Tensor | None:
    return None if tokens.memory is None else tokens.memory.active


@dataclass(frozen=True)
class Sparsifiner(Method):
    """Connects each patch with the keys that a learned network finds for it. It saves no time in dense execution.

    It has to be trained, or loaded from a file of a model that was: the network starts at random. Its tables are made for the number of
    tokens of the model's image size when `reduce_tokens` is called, and other sizes are refused. Prefix tokens see all keys.

    Args:
        attn_keep: the share of the keys that each patch sees, 0 (excluded) to 1: ceil(attn_keep * (P + N)).
        reduce_n_factor: tokens for each row of the basis, P + N over the number of rows.
        reduce_c_factor: by which queries and keys are narrowed.
        basis_threshold: entries of the basis that are not above it are 0.
        basis_coef_topk: how many coefficients a query keeps; None: those above `basis_coef_threshold`.
        basis_coef_threshold: 0 to 1.
        attn_threshold: a patch sees the keys of scores above it, instead of `attn_keep`; it may be none, and attention then adds nothing
            but the bias of its projection.
        token_keep: the share of the patches that others still see behind the first of `token_locations`, and its powers behind the next
            ones: ceil(token_keep ** j * N). They are chosen by the attention of the class token; the rest keeps the features
            that it had in front of that block (published: 0, which no other token sees either).
        token_locations: the blocks whose attention chooses, from 0.
    """
    attn_keep: float = 0.25
    reduce_n_factor: int = 6
    reduce_c_factor: int = 2
    basis_threshold: float = 0.02
    basis_coef_topk: int | None = 8
    basis_coef_threshold: float = 0.05
    attn_threshold: float | None = None
    token_keep: float = 1.0
    token_locations: tuple[int, ...] = (3, 6, 9)

    def __post_init__(self):
        check_range(1e-6, 1, attn_keep=self.attn_keep, token_keep=self.token_keep)
        check_range(1, 2 ** 16, reduce_n_factor=self.reduce_n_factor, reduce_c_factor=self.reduce_c_factor)
        check_range(0, math.inf, basis_threshold=self.basis_threshold)
        check_range(0, 1, basis_coef_threshold=self.basis_coef_threshold)
        if self.basis_coef_topk is not None:
            check_range(1, 2 ** 16, basis_coef_topk=self.basis_coef_topk)

    def check(self, model: nn.Module) -> None:
        if self.token_keep < 1:
            check_locations(self.token_locations, model, 'token_locations')
            if model.cls_token is None:
                raise ValueError(f'token_keep={self.token_keep} goes by the attention of the class token, and this {type(model).__name__} '
                                 'has none; leave it at 1.')
        num_tokens, num_basis = self.num_tokens(model), self.num_tokens(model) // self.reduce_n_factor
        if num_basis < (self.basis_coef_topk or 1):
            raise ValueError(f'reduce_n_factor={self.reduce_n_factor} makes a basis of {num_basis} rows for {num_tokens} tokens, expected '
                             f'{self.basis_coef_topk or 1} at least (basis_coef_topk); choose a smaller one.')
        for i, block in enumerate(model.blocks):
            width = block.attn.head_dim // self.reduce_c_factor
            if not width:
                raise ValueError(f'reduce_c_factor={self.reduce_c_factor}: expected at most {block.attn.head_dim}, the channels of a head.')
            present = getattr(block.attn, 'mask_predictor', None)
            if present is None:
                continue
            shapes = tuple(present.proj_n.shape), present.proj_c_q.out_features
            if shapes != ((num_tokens, num_basis), width):
                raise ValueError(f'blocks.{i}.attn.mask_predictor has tables {shapes[0]} and {shapes[1]} channels a head, expected '
                                 f'{num_tokens, num_basis} and {width} for these options and this image size; call restore_tokens(model) '
                                 'first to drop what was learned.')

    @staticmethod
    def num_tokens(model: nn.Module) -> int:
        """P + N at the model's image size."""
        h, w = model.patch_embed.grid_size
        return model.num_prefix_tokens + h * w

    def attach(self, model: nn.Module) -> None:
        num_tokens = self.num_tokens(model)
        for block in model.blocks:
            dim = block.attn.head_dim
            block.attn.mask_predictor = MaskPredictor(
                num_tokens, num_tokens // self.reduce_n_factor, dim, dim // self.reduce_c_factor, **factory_of(model)).train(model.training)

    def detach(self, model: nn.Module) -> None:
        for block in model.blocks:
            del block.attn.mask_predictor

    def want(self, model: nn.Module, i: int) -> str | None:
        return None if self.attn_keep == self.token_keep == 1 and self.attn_threshold is None else 'keys'

    def start(self, model: nn.Module, tokens: Tokens) -> Tokens:
        expected = model.blocks[0].attn.mask_predictor.proj_n.shape[0] if len(model.blocks) else None
        found = tokens.num_prefix + tokens.num_patches
        if expected not in (None, found):
            raise ValueError(f'Sparsifiner learned tables for {expected} tokens, those of one image size; this image has '
                             f'{found}. Resize the image, or build the model with its img_size before reduce_tokens.')
        return tokens

    def pre(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        if self.token_keep == 1 or i < min(self.token_locations, default=i + 1):
            return tokens
        return tokens._replace(memory=Pruning(active_tokens(tokens), tokens.x))

    def num_active(self, i: int, num_patches: int) -> int:
        """How many of N patches others still see in block i."""
        past = sum(location < i for location in self.token_locations)
        return math.ceil(self.token_keep ** past * num_patches)

    def coefficients(self, predictor: MaskPredictor, q: Tensor, k: Tensor, num_prefix: int, active: Tensor | None = None) -> Tensor:
        """Those that each query keeps, the others 0: (B, H, N, m)."""
        c = predictor(q, k, num_prefix, active)
        return c * (c > self.basis_coef_threshold if self.basis_coef_topk is None else largest(c, self.basis_coef_topk))

    def scores(self, predictor: MaskPredictor, q: Tensor, k: Tensor, num_prefix: int, active: Tensor | None = None) -> Tensor:
        """(B, H, N, P + N) of the patches' queries on keys (B, H, P + N, d); -inf on those that are not active, (B, P + N)."""
        c = self.coefficients(predictor, q, k, num_prefix, active)
        scores = c @ predictor.basis(self.basis_threshold).to(c.dtype)
        return scores if active is None else scores.masked_fill(~active[:, None, None], -torch.inf)

    def edit_keys(self, i: int, k: Tensor, v: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Tokens that were given up are keys and values of 0: prefix tokens see them still, as published."""
        active = active_tokens(tokens)
        return (k, v) if active is None else (k * active[:, None, :, None], v * active[:, None, :, None])

    def mask(self, model: nn.Module, i: int, q: Tensor, k: Tensor, tokens: Tokens) -> tuple[Tensor | None, Tokens]:
        P, N, active = tokens.num_prefix, tokens.num_patches, active_tokens(tokens)
        scores = self.scores(model.blocks[i].attn.mask_predictor, q, k, P, active)
        if self.attn_threshold is None:
            budget = math.ceil(self.attn_keep * (P + N))
            mask = largest(scores, budget if active is None else min(budget, self.num_active(i, N)))
        else:
            mask = scores > self.attn_threshold
        if recording():  # how many of the patches' queries, in all heads, see each key
            seen = mask[..., P:].sum(dim=(1, 2)).unflatten(1, tokens.grid)
            record(model.blocks[i].attn, 'queries', seen, mask.shape[1] * N, kind='counts')
        return torch.cat([mask.new_ones(*mask.shape[:2], P, P + N), mask], dim=2), tokens

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        if self.token_keep == 1 or i not in self.token_locations:
            return tokens
        P, active = tokens.num_prefix, active_tokens(tokens)
        scores = seen.rows(slice(0, 1)).mean(1)[:, 0]
        if active is not None:
            scores = scores.masked_fill(~active, -torch.inf)
        kept = largest(scores[:, P:], self.num_active(i + 1, tokens.num_patches))
        active = torch.cat([kept.new_ones(kept.shape[0], P), kept], dim=1)
        return tokens._replace(memory=tokens.memory._replace(active=active))

    def labels(self, tokens: Tokens) -> Tensor:
        labels, active = super().labels(tokens), active_tokens(tokens)
        return labels if active is None else labels.where(active[:, tokens.num_prefix:], -1)

    def post(self, model: nn.Module, i: int, tokens: Tokens) -> Tokens:
        active = active_tokens(tokens)
        return tokens if active is None else tokens._replace(x=torch.where(active[:, :, None], tokens.x, tokens.memory.before))
