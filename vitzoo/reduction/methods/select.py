"""One-stage selection: in one block, the best patches are kept, as published for the frozen encoders of vision-language models.

    faster_vlm  FasterVLM, "[CLS] Attention is All You Need for Training-Free Visual Token Pruning", https://arxiv.org/abs/2412.01818
    vtc_cls     VTC-CLS, "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", https://github.com/THU-MIG/VTC-CLS
    vision_zip  VisionZip, https://github.com/dvlab-research/VisionZip
    hiprune     HiPrune, https://arxiv.org/abs/2508.00553

Those select at the end of an encoder, for what comes behind it. The encoder itself becomes cheaper where the block is an earlier one.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...arguments import check_range, show
from ...layers import check_choice, per_size
from ..method import Method, Seen, Tokens, mix_positions, take_rows
from ..restore import Drop, refill

MOST = 2 ** 16  # tokens
DEFAULTS = dict(keep=0.5, score='class', sum_from=0, anchors=0., merge_rest=False, num_context=10)
PRESETS = {
    'faster_vlm': dict(location=-2, score='class'),
    'vtc_cls': dict(location=-2, score='class_sum'),
    'vision_zip': dict(location=-2, score='class', merge_rest=True),
    'hiprune': dict(location=-2, score='column', anchors=0.1),
}


@per_size
def crosses(h: int, w: int) -> np.ndarray:
    """Row by row, 1 for a patch and its four neighbours on a grid, else 0: (h * w, h * w).

    As published, places are counted row after row: left of a row's first patch is the last one of the row above, and what would be outside
    is the first or the last patch of all.
    """
    place = np.arange(h * w)
    table = np.zeros((h * w, h * w), np.float32)
    for step in (0, -1, 1, -w, w):
        table[place, np.clip(place + step, 0, h * w - 1)] = 1
    return table


def rate(score: str, seen: Seen, num_prefix: int) -> Tensor:
    """How much each patch token is worth by one block's attention or keys, (B, N)."""
    if score == 'column':
        return seen.map.mean(2).mean(1)[:, num_prefix:]
    if score == 'similarity':
        keys = F.normalize(patch_keys(seen, num_prefix), dim=-1)
        return -(keys @ keys.mean(1)[:, :, None])[:, :, 0]  # the mean of a key's cosines with all keys
    return seen.rows(slice(0, 1)).mean(1)[:, 0, num_prefix:]


def patch_keys(seen: Seen, num_prefix: int) -> Tensor:
    """Keys of patch tokens, the mean over heads: (B, N, d)."""
    return seen.content[:, :, num_prefix:].float().mean(1)


def with_neighbours(scores: Tensor, count: int, grid: tuple[int, int]) -> Tensor:
    """The `count` best of all patches (B, N0) and the four neighbours of each: 1, all else 0."""
    best = scores.topk(count, dim=1).indices
    anchors = (best[:, :, None] == torch.arange(scores.shape[1], device=scores.device)).any(1)
    return (anchors.float() @ crosses(*grid, like=scores.float()) > 0).float()


def prefer(scores: Tensor, preferred: Tensor) -> Tensor:
    """Scores (B, N) in which all those that are preferred, 1 and not 0, are above the rest, in their order."""
    scores = scores.float()
    return scores + preferred * (1 + scores.amax(1, keepdim=True) - scores.amin(1, keepdim=True))


def context(keys: Tensor, count: int) -> Tensor:
    """How `count` contextual tokens are made of tokens with keys (B, L, d): weights (B, count, L).

    Every (L // count)-th token is a target; each other token goes to the target that its key is most like. Sums of rows are 2: a target,
    and the mean of what goes to it; 1 where nothing does.
    """
    B, L, _ = keys.shape
    token, target = torch.arange(L, device=keys.device), torch.arange(count, device=keys.device) * (L // count)
    is_target = token == target[:, None]
    keys = F.normalize(keys, dim=-1)
    nearest = (keys @ keys[:, :(count - 1) * (L // count) + 1:L // count].transpose(1, 2)).argmax(-1)
    goes = (nearest[:, None] == torch.arange(count, device=keys.device)[:, None]) & ~is_target.any(0)
    return is_target + goes / goes.sum(-1, keepdim=True).clamp_min(1)


@dataclass(frozen=True)
class Select(Method):
    """Keeps the best patch tokens in one block, between attention and MLP. What is left out is dropped, or merged into a few tokens.

    Args:
        location: the block, from 0; negative ones count from the end. None: the middle one, 6 of 12.
        keep: how many patch tokens are kept, 1 or more, if it is an integer; the share of them if it is a float, up to 1.0 for all. None:
            0.5. Where that is all of them nothing happens.
        score: by what the class token attends to, the mean over heads ('class'), in all blocks up to this one ('class_sum'); by the
            attention that a token gets from all others ('column'); or how little its key is like those of others ('similarity'). None:
            'class'. The last two work without a class token.
        sum_from: the first block of 'class_sum'; negative ones count from the end. None: 0.
        anchors: 0 to 1; with it, patches that stood out earlier go first: round(kept * anchors / 5) patches with the best scores in block
            `anchor_location`, and their four neighbours each. None: 0.
        anchor_location: None: three eighths of the depth, as published for 9 of 24 blocks, but in front of `location`.
        merge_rest: merge what is left out into contextual tokens, which are added to those that are kept: each is one token of the rest,
            spread evenly over it, and the mean of those whose keys are most like its own. None: False.
        num_context: how many, at most as many as are left out. None: 10.
        position: of a contextual token, in a model with rotary positions: 'mean' of what it is made of, 'keep' for that of its own token.
        preset: options that are None are those of a published method: 'faster_vlm', 'vtc_cls', 'vision_zip' or 'hiprune'. All select in
            the second to last block, so that `location` is for you to set if the model is to become cheaper.
    """
    location: int | None = None
    keep: int | float | None = None
    score: str | None = None
    sum_from: int | None = None
    anchors: float | None = None
    anchor_location: int | None = None
    merge_rest: bool | None = None
    num_context: int | None = None
    position: str = 'mean'
    preset: str | None = None

    @property
    def needs_class_token(self) -> bool:
        return self.score.startswith('class')

    def __post_init__(self):
        check_choice('preset', self.preset, None, *PRESETS)
        for name, value in {**DEFAULTS, **PRESETS.get(self.preset, {})}.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_choice('score', self.score, 'class', 'class_sum', 'column', 'similarity')
        check_choice('position', self.position, 'mean', 'keep')
        check_range(0, 1, anchors=self.anchors)
        check_range(1, MOST, num_context=self.num_context)
        if isinstance(self.keep, int):
            check_range(1, MOST, keep=self.keep)
        elif not 0 < self.keep <= 1:
            raise ValueError(f'keep={show(self.keep)}: expected a number of tokens (an integer, 1 or more), or a share (a float above 0, '
                             'up to 1.0).')

    def check(self, model: nn.Module) -> None:
        depth = len(model.blocks)
        for name in ('location', 'sum_from', 'anchor_location'):
            i = getattr(self, name)
            if i is not None and not -depth <= i < depth:
                raise ValueError(f'{name}={i}: expected a block from 0 to {depth - 1}, or from -1 back to -{depth}.')
        location, sum_from, anchor = self.blocks(depth)
        if self.score == 'class_sum' and sum_from > location:
            raise ValueError(f'sum_from={self.sum_from}: expected at most block {location}, where tokens are selected.')
        if self.anchors and not 0 <= anchor < location:
            raise ValueError(f'anchor_location={self.anchor_location}: expected a block in front of block {location}, where tokens are '
                             'selected.')

    def blocks(self, depth: int) -> tuple[int, int, int]:
        """Where tokens are selected, the first block of a sum of scores, and where anchors are found; all from 0."""
        location = depth // 2 if self.location is None else self.location % depth
        anchor = min(depth * 3 // 8, location - 1) if self.anchor_location is None else self.anchor_location % depth
        return location, self.sum_from % depth, anchor

    def num_kept(self, num_patches: int) -> int:
        """How many of N patch tokens are kept, contextual ones not counted."""
        if isinstance(self.keep, int):
            return min(self.keep, num_patches)
        return min(max(round(self.keep * num_patches), 1), num_patches)

    def num_merged(self, num_patches: int) -> int:
        """How many contextual tokens there are."""
        return min(self.num_context, num_patches - self.num_kept(num_patches)) if self.merge_rest else 0

    def schedule(self, num_patches: int, depth: int, num_prefix: int = 1) -> tuple[int, ...]:
        location = self.blocks(depth)[0]
        left = self.num_kept(num_patches) + self.num_merged(num_patches)
        return (num_patches,) * location + (left,) * (depth - location)

    def want(self, model: nn.Module, i: int) -> str | None:
        location, sum_from, anchor = self.blocks(len(model.blocks))
        summed = self.score == 'class_sum' and sum_from <= i < location
        keeps_all = isinstance(self.keep, float) and self.keep == 1
        if keeps_all or not (i == location or summed or self.anchors and i == anchor):
            return None
        return 'map' if self.score == 'column' else 'keys'

    def mid(self, model: nn.Module, i: int, tokens: Tokens, seen: Seen) -> Tokens:
        location, sum_from, anchor = self.blocks(len(model.blocks))
        N, num_kept = tokens.num_patches, self.num_kept(tokens.num_patches)
        if num_kept == N:
            return tokens
        so_far, preferred = tokens.memory or (None, None)
        scores = rate(self.score, seen, tokens.num_prefix)
        if self.anchors and i == anchor:
            preferred = with_neighbours(scores, round(num_kept * self.anchors / 5), tokens.grid)
        if self.score == 'class_sum' and sum_from <= i:
            scores = so_far = scores if so_far is None else so_far + scores
        if i < location:
            return tokens._replace(memory=(so_far, preferred))
        order = (scores if preferred is None else prefer(scores, preferred)).argsort(dim=1, descending=True)
        num_merged = self.num_merged(N)
        if num_merged:
            return self._merge_rest(tokens, patch_keys(seen, tokens.num_prefix), order, num_kept, num_merged)
        drop = Drop(tokens.patches, order, num_kept)
        return tokens.take(order[:, :num_kept])._replace(memory=None).with_step(drop)

    def _merge_rest(self, tokens: Tokens, keys: Tensor, order: Tensor, num_kept: int, num_merged: int) -> Tokens:
        rest = order[:, num_kept:].sort(dim=1).values  # as they are on the grid: every so-manieth of them is a target
        order = torch.cat([order[:, :num_kept], rest], dim=1)
        weights = context(take_rows(keys, rest), num_merged)
        drop = Drop(tokens.patches, order, num_kept, num_merged, weights)
        tokens = tokens.take(order)
        kept, left = tokens.x.split([tokens.num_prefix + num_kept, rest.shape[1]], dim=1)
        rope = tokens.rope
        if rope is not None:
            if self.position == 'mean':
                new = mix_positions(rope[:, :, :, num_kept:], weights)
            else:
                step = rest.shape[1] // num_merged
                new = rope[:, :, :, num_kept:num_kept + (num_merged - 1) * step + 1:step]
            rope = torch.cat([rope[:, :, :, :num_kept], new], dim=3)
        x = torch.cat([kept, weights.to(left.dtype) @ left], dim=1)
        return tokens._replace(x=x, rope=rope, memory=None).with_step(drop)

    def restore(self, y: Tensor, tokens: Tokens) -> tuple[Tensor, tuple[int, int]]:
        return refill(y, tokens.history), tokens.grid
