"""STViT-R-Swin: Making Vision Transformers Efficient from A Token Sparsification View, Chang et al., CVPR 2023,
https://arxiv.org/abs/2303.08685 (code: github.com/changsn/STViT-R and github.com/changsn/STViT-R-Object-Detection)

A Swin whose third stage repeats units of six blocks shaped like a dumbbell: a window block on the image tokens, two blocks that
generate nine semantic tokens a window, two that let the semantic tokens attend to each other, and one that recovers the image tokens
from them. Deep layers so run on 9 tokens instead of 49, and the stage still ends with the whole map.

Two forms were published on the same weights, and they compute different things. The classifier form is for 224x224 alone: semantic tokens
start without a residual from a 10x10 patch around their window, then see everything. The dense form (detection) takes any size: context is
a window with a halo of zero tokens at the borders, partly hidden by a mask. `STViT.form` says which of them runs.

Shapes: B batch, H W map, N = H * W image tokens, M = 9 * windows semantic tokens, T keys, C channels. Image tokens of a stage lie in
the order of the map, or, where whole windows cover it, window by window; semantic tokens always window by window.
"""
import math
import operator
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath, LayerScale, Mlp, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function, register_notrace_module
from timm.models._manipulate import checkpoint

from ..arguments import as_type, check_types
from ..layers import (
    Gelu,
    SoftmaxAttention,
    attend_unscaled,
    cells,
    channels_last,
    check_choice,
    check_ratios,
    check_stages,
    fold_batch_norm,
    fold_layer_scale,
    is_plain,
    join_heads,
    on_nchw,
    per_size,
    pointwise_conv,
    record,
    recording,
    require_plain,
    split_heads,
    split_qkv,
)
from ..weights.layout import Layout
from ._builder import build_model
from ._hierarchical import Hierarchical, Stage

__all__ = ['STViT']

WINDOW = 7  # side of a window of image tokens
GRID = 3  # side of a window of semantic tokens
SHIFT = WINDOW // 2
MAP = -1  # the order of the map, where others are named by the shift of their windows
UNIT = 6  # blocks of a dumbbell unit
NATIVE = (224, 224)  # the only image size of the classifier form



class KeyWindow(NamedTuple):
    """The keys that the tokens of a window attend to: a square of context tokens."""
    side: int
    step: int  # from the square of one window to that of the next
    queries: int  # tokens of a window that attend
    halo: bool = True  # the square lies around the window and reaches beyond the map (dense form); else within (classifier form)


# the dense form: both generations, on image tokens; recovery, on semantic tokens
GENERATE_1 = KeyWindow(side=14, step=WINDOW, queries=GRID ** 2)
GENERATE_2 = KeyWindow(side=21, step=WINDOW, queries=GRID ** 2)
RECOVER = KeyWindow(side=27, step=GRID, queries=WINDOW ** 2)
# the classifier form: a patch of image tokens, and the nine pooled tokens of the window
PATCH = KeyWindow(side=10, step=4, queries=GRID ** 2, halo=False)
# What it costs to gather a key for a window, in logits (measured on CPUs): below that, looking at all keys of the image is quicker.
GATHER_COST = 60


# ---- tables that depend on the size alone

def num_windows(H: int, W: int) -> tuple[int, int]:
    return -(-H // WINDOW), -(-W // WINDOW)


def _window_tokens(H: int, W: int, shift: int) -> np.ndarray:
    rows, cols = num_windows(H, W)
    r = (np.arange(rows * WINDOW) + shift) % (rows * WINDOW)
    c = (np.arange(cols * WINDOW) + shift) % (cols * WINDOW)
    token = np.where((r[:, None] < H) & (c < W), r[:, None] * W + c, H * W)
    return token.reshape(rows, WINDOW, cols, WINDOW).swapaxes(1, 2).ravel()


def _token_places(H: int, W: int, shift: int) -> np.ndarray:
    tokens = _window_tokens(H, W, shift)
    return np.argsort(tokens, kind='stable')[:H * W]


@per_size
def window_tokens(H: int, W: int, shift: int) -> np.ndarray:
    """The token of the map at each place of each window, int64 (windows * 49,); H * W where a window reaches beyond the map.

    Windows of a shifted layout start `shift` rows and columns further and wrap around.
    """
    return _window_tokens(H, W, shift)


@per_size
def token_places(H: int, W: int, shift: int) -> np.ndarray:
    """The place in the windows of each token of the map, int64 (H * W,)."""
    return _token_places(H, W, shift)


@per_size
def reordering(H: int, W: int, source: int, target: int) -> np.ndarray:
    """Where each token of the target order is in the source order, int64 (H * W,). H and W are multiples of 7."""
    tokens = np.arange(H * W) if target == MAP else _window_tokens(H, W, target)
    return tokens if source == MAP else _token_places(H, W, source)[tokens]


@per_size
def relative_positions() -> np.ndarray:
    """Row of the bias table for each pair of places of a window, int64 (49 * 49,)."""
    r, c = np.arange(WINDOW ** 2) // WINDOW, np.arange(WINDOW ** 2) % WINDOW
    across = 2 * WINDOW - 1
    return ((r[:, None] - r + WINDOW - 1) * across + c[:, None] - c + WINDOW - 1).ravel()


@per_size
def shift_masks() -> np.ndarray:
    """The four masks of shifted windows, (4, 1, 49, 49): -1000 between tokens that only wrapping brought together.

    Mask 0 is of windows inside, 1 of the last column, 2 of the last row, 3 of the corner. Published are -100, which hide as well, but
    leave weights of exp(-100), subnormal numbers, which slow down products of matrices on CPUs. exp(-1000) is zero.
    """
    r, c = np.arange(WINDOW ** 2) // WINDOW, np.arange(WINDOW ** 2) % WINDOW
    wrapped = np.stack([0 * r, c >= WINDOW - SHIFT, 2 * (r >= WINDOW - SHIFT), 2 * (r >= WINDOW - SHIFT) + (c >= WINDOW - SHIFT)])
    return np.where(wrapped[:, None, :, None] == wrapped[:, None, None, :], np.float32(0), np.float32(-1000))


@per_size
def window_kinds(H: int, W: int) -> np.ndarray:
    """Which of the shift masks each window takes, int64 (windows,)."""
    rows, cols = num_windows(H, W)
    return (2 * (np.arange(rows) == rows - 1)[:, None] + (np.arange(cols) == cols - 1)).ravel()


@lru_cache(maxsize=64)
def halo_keys(H: int, W: int, near: KeyWindow, pad_mask: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The keys of each window of an HxW map in the dense form: (key (windows, side ** 2), seen (windows, side ** 2)).

    Keys number the context tokens in the order they lie in; the number after the last stands for padding: rows and columns that fill up
    the windows, and the halo beyond. `seen` says what the mask leaves.
    """
    rows, cols = num_windows(H, W)
    pad_b, pad_r = rows * WINDOW - H, cols * WINDOW - W
    side, step = near.side, near.step
    r, c = np.arange(rows * step)[:, None], np.arange(cols * step)
    if near == RECOVER:
        key = (r // GRID * cols + c // GRID) * GRID ** 2 + r % GRID * GRID + c % GRID
        padding = key.size
        real = np.ones(key.shape, bool)
    else:
        real, padding = (r < H) & (c < W), H * W
        number = np.arange(H * W).reshape(H, W) if pad_b or pad_r else _token_places(H, W, 0).reshape(H, W)
        key = np.full(real.shape, padding)
        key[:H, :W] = number
    if pad_mask is None:
        seen = np.ones(key.shape, bool)
    elif pad_mask == 'correct':
        seen = real
    else:
        # As published: without padding on an axis, -0 starts at its beginning; with padding on both only the corner is hidden; and for
        # recovery the padding of the image is counted in semantic tokens.
        seen = np.ones(key.shape, bool)
        seen[-pad_b:, -pad_r:] = False
    left, right = (side - step) // 2, -((step - side) // 2)
    key = np.pad(key, (left, right), constant_values=padding)
    seen = np.pad(seen, (left, right), constant_values=pad_mask is None)
    r = step * np.arange(rows)[:, None] + np.arange(side)
    c = step * np.arange(cols)[:, None] + np.arange(side)
    key, seen = (table[r[:, None, :, None], c[None, :, None, :]].reshape(rows * cols, -1) for table in (key, seen))
    # A window of which nothing is left is not masked at all: the softmax does not see a constant.
    return key, seen | ~seen.any(1, keepdims=True)


@lru_cache(maxsize=64)
def patch_keys() -> tuple[np.ndarray, np.ndarray]:
    """The keys of each window in the classifier form, as `halo_keys`: its nine pooled tokens and a patch of image tokens."""
    H, W = (n // 16 for n in NATIVE)
    rows, cols = num_windows(H, W)
    windows, pooled = rows * cols, rows * cols * GRID ** 2
    r = PATCH.step * np.arange(rows)[:, None] + np.arange(PATCH.side)
    c = PATCH.step * np.arange(cols)[:, None] + np.arange(PATCH.side)
    image = _token_places(H, W, 0).reshape(H, W)[r[:, None, :, None], c[None, :, None, :]].reshape(windows, -1)
    key = np.concatenate([np.arange(pooled).reshape(windows, -1), pooled + image], 1)
    return key, np.ones(key.shape, bool)


def _keys(H: int, W: int, near: KeyWindow, pad_mask: str | None) -> tuple[np.ndarray, np.ndarray]:
    return halo_keys(H, W, near, pad_mask) if near.halo else patch_keys()


@per_size
def key_weights(H: int, W: int, near: KeyWindow, pad_mask: str | None, num_keys: int) -> np.ndarray:
    """log of how often each window sees each key, (windows, T), or (1, T) if all windows see the same.

    Added to the logits, it makes one padding key of many alike, and hides keys that are not seen.
    """
    key, seen = _keys(H, W, near, pad_mask)
    rows = np.arange(len(key))[:, None]
    count = np.bincount((rows * num_keys + key)[seen], minlength=len(key) * num_keys).reshape(len(key), num_keys)
    with np.errstate(divide='ignore'):
        weights = np.log(count)
    return weights[:1] if (weights == weights[0]).all() else weights


@per_size
def gathered_keys(H: int, W: int, near: KeyWindow, pad_mask: str | None) -> np.ndarray:
    """The keys of all windows one after the other, int64 (windows * side ** 2,)."""
    return _keys(H, W, near, pad_mask)[0].ravel()


@per_size
def gathered_mask(H: int, W: int, near: KeyWindow, pad_mask: str | None) -> np.ndarray:
    """0 for the gathered keys that a window sees, -inf for the others, (windows, 1, 1, side ** 2)."""
    seen = _keys(H, W, near, pad_mask)[1]
    return np.where(seen, np.float32(0), np.float32(-np.inf))[:, None, None]


@per_size
def query_windows(H: int, W: int, per_window: int) -> np.ndarray:
    """The window of each semantic token (per_window 9) or image token (49), int64 (M,) or (N,)."""
    rows, cols = num_windows(H, W)
    if per_window == WINDOW ** 2 and (H % WINDOW or W % WINDOW):
        return _token_places(H, W, 0) // per_window
    return np.arange(rows * cols).repeat(per_window)


# ---- attention

KeysValues = torch.Tensor | tuple[torch.Tensor, torch.Tensor]  # (B, T, 2C), keys before values, or two (B, T, C)


def attend(q: torch.Tensor, kv: KeysValues, num_heads: int, sdp_attn: Callable, groups: int = 1,
           mask: torch.Tensor | None = None) -> torch.Tensor:
    """Multi-head attention of q (B, Q, C) on kv.

    Each of `groups` equal runs of queries attends to its own run of keys. mask is added to the logits, broadcast to
    (B * groups, heads, Q / groups, T / groups).
    """
    B, Q, C = q.shape
    q = q.reshape(B * groups, Q // groups, num_heads, C // num_heads).transpose(1, 2)
    if isinstance(kv, tuple):
        k, v = (x.reshape(B * groups, x.shape[1] // groups, num_heads, C // num_heads).transpose(1, 2) for x in kv)
    else:
        k, v = kv.reshape(B * groups, kv.shape[1] // groups, 2, num_heads, C // num_heads).permute(2, 0, 3, 1, 4).unbind(0)
    return join_heads(sdp_attn(q, k, v, mask)).view(B, Q, C)


def attend_near(q: torch.Tensor, kv: KeysValues, num_heads: int, sdp_attn: Callable, H: int, W: int, near: KeyWindow,
                pad_mask: str | None) -> torch.Tensor:
    """Attention of the tokens of each window on the keys around it (see `halo_keys`, `patch_keys`).

    q (B, M, C) are semantic tokens, or image tokens (B, N, C) in recovery.
    """
    rows, cols = num_windows(H, W)
    num_keys = operator.index((kv[0] if isinstance(kv, tuple) else kv).shape[1])
    if num_keys <= near.side ** 2 * (1 + GATHER_COST / near.queries):
        return attend(q, kv, num_heads, sdp_attn, mask=query_weights(H, W, near, pad_mask, num_keys, q)[None, None])
    mask = gathered_mask(H, W, near, pad_mask, like=q).repeat(q.shape[0], 1, 1, 1)
    index = gathered_keys(H, W, near, pad_mask, like=q)
    kv = tuple(x.index_select(1, index) for x in kv) if isinstance(kv, tuple) else kv.index_select(1, index)
    if q.shape[1] == rows * cols * near.queries:
        return attend(q, kv, num_heads, sdp_attn, rows * cols, mask)
    tokens = window_tokens(H, W, 0, like=q).clamp(max=H * W - 1)  # whatever padding attends to is cropped
    q = q.index_select(1, tokens)
    return attend(q, kv, num_heads, sdp_attn, rows * cols, mask).index_select(1, token_places(H, W, 0, like=q))


def query_weights(H: int, W: int, near: KeyWindow, pad_mask: str | None, num_keys: int, like: torch.Tensor) -> torch.Tensor:
    """`key_weights` of each query, (Q, T), or (1, T) if all see the same."""
    weights = key_weights(H, W, near, pad_mask, num_keys, like=like)
    return weights.index_select(0, query_windows(H, W, near.queries, like=like)) if weights.shape[0] > 1 else weights


def pool_windows(x: torch.Tensor, windows: int) -> torch.Tensor:
    """Max pooling of each 7x7 window to 3x3 with bins [0, 3), [2, 5), [4, 7): (B, windows * 49, C) -> (B, windows * 9, C)."""
    B, _, C = x.shape
    x = x.reshape(B * windows, WINDOW, WINDOW, C).permute(0, 3, 1, 2)
    return F.max_pool2d(x, kernel_size=3, stride=2).permute(0, 2, 3, 1).reshape(B, windows * GRID ** 2, C)


def add_row(x: torch.Tensor) -> torch.Tensor:
    """A row of zeros behind the tokens: (B, N, C) -> (B, N + 1, C)."""
    return F.pad(x, (0, 0, 0, 1))


class WindowAttention(nn.Module):
    """Swin's attention within 7x7 windows, with a bias for each relative position.

    Takes normalised tokens (B, N, C) of an HxW map: in the order of the windows if these cover the map, else in the order of the map.
    Padding is zero after the norm, and is attended to (as in Swin's detection code).
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * WINDOW - 1) ** 2, num_heads, **dd))
        trunc_normal_(self.relative_position_bias_table, std=.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, **dd)

    def position_bias(self) -> torch.Tensor:
        """(1, heads, 49, 49)"""
        table = self.relative_position_bias_table
        if table.ndim == 4:  # folded
            return table
        return table.t().index_select(1, relative_positions(like=table)).view(1, self.num_heads, WINDOW ** 2, WINDOW ** 2)

    def forward(self, x: torch.Tensor, H: int, W: int, shift: int) -> torch.Tensor:
        B, N, C = x.shape
        rows, cols = num_windows(H, W)
        padded = N < rows * cols * WINDOW ** 2
        if padded:
            x = self.qkv(add_row(x)).index_select(1, window_tokens(H, W, shift, like=x))
        else:
            x = self.qkv(x)
        bias = self.position_bias()
        if shift:
            masked = bias + shift_masks(like=bias)
            bias = masked.index_select(0, window_kinds(H, W, like=x).repeat(B))
        q, k, v = x.reshape(B * rows * cols, WINDOW ** 2, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = join_heads(self.sdp_attn(q, k, v, bias)).view(B, rows * cols * WINDOW ** 2, C)
        if padded:
            x = x.index_select(1, token_places(H, W, shift, like=x))
        return self.proj(x)

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Spread the bias table over the pairs of a window (inference only)."""
        self.relative_position_bias_table = nn.Parameter(self.position_bias().clone(), requires_grad=False)
        return self

    def deploy(self, runtime: str) -> nn.Module:
        """With one layer for each of q, k, v. Raises ValueError if the layers are more than their weight."""
        return DeployedWindowAttention(self)


class DeployedWindowAttention(nn.Module):
    """`WindowAttention` that splits nothing, see `split_qkv`."""

    def __init__(self, attn: WindowAttention):
        super().__init__()
        self.num_heads = attn.num_heads
        self.register_buffer('position_bias', attn.position_bias().detach(), persistent=False)
        self.q, self.k, self.v, self.proj = split_qkv([attn.qkv], attn.proj, attn.num_heads)

    def forward(self, x: torch.Tensor, H: int, W: int, shift: int) -> torch.Tensor:
        B, N, C = x.shape
        windows = math.prod(num_windows(H, W))
        padded = N < windows * WINDOW ** 2
        if padded:
            x = add_row(x)
        q, k, v = (layer(x) for layer in (self.q, self.k, self.v))
        if padded:
            q, k, v = (y.index_select(1, window_tokens(H, W, shift, like=x)) for y in (q, k, v))
        bias = self.position_bias
        if shift:
            masked = bias + shift_masks(like=bias)
            bias = masked.index_select(0, window_kinds(H, W, like=x).repeat(B))
        q, k, v = (split_heads(y.reshape(B * windows, WINDOW ** 2, C), self.num_heads) for y in (q, k, v))
        x = join_heads(attend_unscaled(q, k, v, bias)).view(B, windows * WINDOW ** 2, C)
        if padded:
            x = x.index_select(1, token_places(H, W, shift, like=x))
        return self.proj(x)


class TokenAttention(nn.Module):
    """Projections of an attention of some tokens on others."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **dd)
        self.sdp_attn = SoftmaxAttention()
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(self, x: torch.Tensor, context: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        return self.proj(attend(self.q(x), self.kv(context), self.num_heads, self.sdp_attn))

    def deploy(self, runtime: str) -> nn.Module:
        """With one layer for each of q, k, v. Raises ValueError if the layers are more than their weight."""
        return DeployedTokenAttention(self)


class DeployedTokenAttention(nn.Module):
    """`TokenAttention` that splits nothing, see `split_qkv`."""

    def __init__(self, attn: TokenAttention):
        super().__init__()
        self.num_heads = attn.num_heads
        self.q, self.k, self.v, self.proj = split_qkv([attn.q, attn.kv], attn.proj, attn.num_heads)

    def forward(self, x: torch.Tensor, context: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        return self.proj(attend(self.q(x), (self.k(context), self.v(context)), self.num_heads, attend_unscaled))


# ---- blocks

class SwinBlock(nn.Module):
    """Window attention and MLP on image tokens (B, N, C), see `WindowAttention`."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.attn = WindowAttention(dim, num_heads, qkv_bias, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=Gelu, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, H: int, W: int, shift: int) -> torch.Tensor:
        if recording():  # what wrapping brings into one window is masked: these are windows of their own
            labels = cells(H, W, WINDOW, WINDOW, shift)
            record(self, 'windows', labels, int(labels.max()) + 1)
        x = x + self.drop_path(self.attn(self.norm1(x), H, W, shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def deploy(self, runtime: str) -> nn.Module:
        """With convolutions, see `DeployedSwinBlock`, but where it is to be quantised.

        Raises ValueError if the linear layers are more than their weight.
        """
        if runtime == 'onnx-int8':
            return self
        require_plain(nn.Linear, self.mlp.fc1, self.mlp.fc2)
        return DeployedSwinBlock(self)


class DeployedSwinBlock(nn.Module):
    """`SwinBlock` whose MLP is a chain of 1x1 convolutions where there are more tokens than channels: ONNX Runtime's are then faster."""

    def __init__(self, block: SwinBlock):
        super().__init__()
        self.norm1 = block.norm1
        self.attn = block.attn
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.convs = nn.Sequential(pointwise_conv(block.mlp.fc1), block.mlp.act, pointwise_conv(block.mlp.fc2))

    def forward(self, x: torch.Tensor, H: int, W: int, shift: int) -> torch.Tensor:
        B, N, C = x.shape
        x = x + self.attn(self.norm1(x), H, W, shift)
        y = self.norm2(x)
        return x + (on_nchw(self.convs, y.view(B, H, W, C)).reshape(B, N, C) if N > C else self.mlp(y))


class SemanticBlock(nn.Module):
    """Attention of tokens x (B, Q, C) on a context (B, T, C), and MLP, both with layer scale. One norm serves x and the context."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.attn = TokenAttention(dim, num_heads, qkv_bias, **dd)
        self.ls1 = LayerScale(dim, 1e-5, **dd)
        self.norm2 = nn.LayerNorm(dim, eps=1e-5, **dd)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), act_layer=Gelu, **dd)
        self.ls2 = LayerScale(dim, 1e-5, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None, attend: Callable[..., torch.Tensor] = attend,
                residual: bool = True) -> torch.Tensor:
        normed = self.norm1(x)
        y = self.attn(normed, normed if context is None else self.norm1(context), attend)
        x = self._add(x, y, self.ls1) if residual else self.ls1(y)
        return self._add(x, self.mlp(self.norm2(x)), self.ls2)

    def attention_map(self, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | float = 0.) -> torch.Tensor:
        """What the forward attends to, (B, Q, T), mean over the heads; for who listens."""
        q, k = self.attn.q(self.norm1(x)), self.attn.kv(self.norm1(context))[..., :x.shape[2]]
        q, k = (y.unflatten(2, (self.attn.num_heads, -1)).transpose(1, 2) for y in (q, k))
        return (q * q.shape[3] ** -0.5 @ k.transpose(2, 3) + mask).softmax(-1).mean(1)

    def _add(self, x: torch.Tensor, y: torch.Tensor, scale: nn.Module) -> torch.Tensor:
        if is_plain(scale, LayerScale) and not isinstance(self.drop_path, DropPath):
            return torch.addcmul(x, y, scale.gamma)
        return x + self.drop_path(scale(y))

    @torch.no_grad()
    def fuse(self) -> nn.Module:
        """Fold the layer scales into the projections before them (inference only)."""
        self.ls1 = fold_layer_scale(self.attn.proj, self.ls1)
        self.ls2 = fold_layer_scale(self.mlp.fc2, self.ls2)
        return self


# ---- stages

def reorder(x: torch.Tensor, H: int, W: int, source: int, target: int) -> torch.Tensor:
    """Tokens (B, H * W, C) from one order to another: `MAP`, or windows with a shift. H and W are multiples of 7."""
    one_window = (H, W) == (WINDOW, WINDOW) and {source, target} <= {MAP, 0}
    return x if source == target or one_window else x.index_select(1, reordering(H, W, source, target, like=x))


def is_classifier(form: str, image_size: tuple[int, int]) -> bool:
    return form == 'classifier' or form == 'auto' and tuple(image_size) == NATIVE


class Form(Stage):
    """A stage that computes one of the two published forms, 'classifier' or 'dense', or by the image's size either ('auto')."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], form: str):
        super().__init__(downsample, blocks)
        self.form = form

    def forward(self, x: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        x = self.downsample(x)
        B, C = x.shape[0], x.shape[3]
        H, W = (operator.index(n) for n in x.shape[1:3])  # plain numbers for the tables, also when traced
        x = self.forward_tokens(x.reshape(B, H * W, C), H, W, is_classifier(self.form, image_size))
        return x.view(B, H, W, C)

    def _run(self, function: Callable[..., torch.Tensor], *args) -> torch.Tensor:
        return checkpoint(function, *args) if self.grad_checkpointing and not torch.jit.is_scripting() else function(*args)


@register_notrace_module
class SwinStage(Form):
    """Blocks of window attention, every second one shifted; (B, H, W, C) in and out."""

    def forward_tokens(self, x: torch.Tensor, H: int, W: int, classifier: bool) -> torch.Tensor:
        order = MAP
        for i, block in enumerate(self.blocks):
            # the classifier form alone does not shift a map of one window
            shift = 0 if i % 2 == 0 or classifier and min(H, W) <= WINDOW else SHIFT
            if not (H % WINDOW or W % WINDOW):
                x, order = reorder(x, H, W, order, shift), shift
            x = self._run(block, x, H, W, shift)
        return reorder(x, H, W, order, MAP)


@register_notrace_module
class SemanticStage(Form):
    """Dumbbell units; (B, H, W, C) in and out."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module], form: str, use_global: bool, shortcut: bool, pad_mask: str | None,
                 device=None, dtype=None):
        super().__init__(downsample, blocks, form)
        self.shortcut = shortcut
        self.pad_mask = pad_mask
        self.semantic_token2 = None
        if use_global:
            dim = blocks[0].norm1.normalized_shape[0]
            rows, cols = num_windows(*(n // 16 for n in NATIVE))
            self.semantic_token2 = nn.Parameter(torch.empty(1, rows * cols * GRID ** 2, dim, device=device, dtype=dtype))
            trunc_normal_(self.semantic_token2, std=.02)

    def forward_tokens(self, x: torch.Tensor, H: int, W: int, classifier: bool) -> torch.Tensor:
        order = MAP if H % WINDOW or W % WINDOW else 0
        x = reorder(x, H, W, MAP, order)
        for i in range(0, len(self.blocks), UNIT):
            x = self._run(self._unit, x, i, H, W, classifier)
        return reorder(x, H, W, order, MAP)

    def _unit(self, x: torch.Tensor, first: int, H: int, W: int, classifier: bool) -> torch.Tensor:
        """Section 3 of the paper, 'dumbbell unit': image tokens (B, N, C) in and out."""
        base, generate1, generate2, local, everywhere, recover = (self.blocks[i] for i in range(first, first + UNIT))
        step = partial(self._step, H=H, W=W)
        rows, cols = num_windows(H, W)
        x = base(x, H, W, 0)
        if classifier:
            pooled = pool_windows(x, rows * cols)
            tokens = step(generate1, pooled, torch.cat([pooled, x], 1), PATCH, residual=self.shortcut)
            centred = tokens + self._centres(rows, cols) if self.semantic_token2 is not None and first == 0 else tokens
            tokens = step(generate2, centred, torch.cat([tokens, x], 1))
        else:
            # a padding token is zero before the norm; all of them are one key
            context = add_row(x)
            windows = context.index_select(1, window_tokens(H, W, 0, like=x)) if H % WINDOW or W % WINDOW else x
            pooled = pool_windows(windows, rows * cols)
            tokens = step(generate1, pooled, context, GENERATE_1)
            tokens = step(generate2, tokens, context, GENERATE_2)
        tokens = local(tokens, attend=partial(attend, groups=rows * cols))
        tokens = everywhere(tokens)
        if classifier:
            return step(recover, x, tokens)
        return step(recover, x, add_row(tokens), RECOVER)

    def _step(self, block: SemanticBlock, x: torch.Tensor, context: torch.Tensor, near: KeyWindow | None = None, residual: bool = True,
              *, H: int, W: int) -> torch.Tensor:
        """A block between image tokens and semantic tokens, of which `near` says who sees whom; None: all see all."""
        if recording():
            self._record(block, x, context, near, H, W)
        if near is None:
            return block(x, context, residual=residual)
        return block(x, context, partial(attend_near, H=H, W=W, near=near, pad_mask=self.pad_mask), residual)

    def _record(self, block: SemanticBlock, x: torch.Tensor, context: torch.Tensor, near: KeyWindow | None, H: int, W: int) -> None:
        """The semantic token that looks at each position most; in recovery, that it looks at most."""
        num_semantic, num_image, T = math.prod(num_windows(H, W)) * GRID ** 2, H * W, context.shape[1]
        weights = block.attention_map(x, context, 0. if near is None else query_weights(H, W, near, self.pad_mask, T, x))
        if near == RECOVER or T == num_semantic:  # with padding behind the semantic tokens in the dense form
            labels = weights[..., :num_semantic].argmax(2)
        elif near is None or not near.halo:  # the classifier form: the semantic tokens are keys as well
            labels = weights[..., T - num_image:].argmax(1)
        else:
            labels = weights[..., :num_image].argmax(1)
        labels = reorder(labels[..., None], H, W, MAP if H % WINDOW or W % WINDOW else 0, MAP)
        record(block, 'semantic tokens', labels.view(-1, H, W), num_semantic)

    def _centres(self, rows: int, cols: int) -> torch.Tensor:
        """The learned tokens, which lie in the order of their grid, window by window."""
        x = self.semantic_token2
        return x.view(rows, GRID, cols, GRID, -1).transpose(1, 2).reshape(x.shape)


class PatchMerging(nn.Module):
    """2x2 neighbours to channels, norm, Linear: (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), C'); odd sides are padded with zeros."""

    def __init__(self, in_dim: int, dim: int, device=None, dtype=None):
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_dim, eps=1e-5, device=device, dtype=dtype)
        self.reduction = nn.Linear(4 * in_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[1:3]
        if H % 2 or W % 2:
            x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        B, H, W, C = x.shape
        # the neighbours in the order (0, 0), (1, 0), (0, 1), (1, 1)
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        return self.reduction(self.norm(x))


@register_notrace_module
class Stem(nn.Sequential):
    """Two 3x3 convolutions of stride 2 with batch norm and Hardswish; (B, in_chans, H, W) -> (B, ceil(H / 4), ceil(W / 4), C).

    The image is padded with zeros to multiples of 4 first.
    """

    def __init__(self, in_chans: int, dim: int, device=None, dtype=None):
        layers = []
        for in_dim, out_dim in ((in_chans, dim // 2), (dim // 2, dim)):
            layers += [nn.Conv2d(in_dim, out_dim, kernel_size=3, stride=2, padding=1, bias=False, device=device, dtype=dtype),
                       nn.BatchNorm2d(out_dim, device=device, dtype=dtype), nn.Hardswish(inplace=True)]
        super().__init__(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        H, W = x.shape[2:]
        if H % 4 or W % 4:
            x = F.pad(x, (0, -W % 4, 0, -H % 4))
        return super().forward(channels_last(x)).permute(0, 2, 3, 1)

    def fuse(self) -> nn.Module:
        """Fold the batch norms into the convolutions (inference only)."""
        for i in (0, 3):
            self[i], self[i + 1] = fold_batch_norm(self[i], self[i + 1])
        return self


# ---- model

# Published names -> ours, applied in turn to every name; None drops it.
RULES = (
    (r'\.(attn_mask|relative_position_index)$', None),
    (r'^patch_embed\.proj\.0\.c\.', 'stem.0.'),
    (r'^patch_embed\.proj\.0\.bn\.', 'stem.1.'),
    (r'^patch_embed\.proj\.2\.c\.', 'stem.3.'),
    (r'^patch_embed\.proj\.2\.bn\.', 'stem.4.'),
    (r'^layers\.0\.downsample\.', 'stages.1.downsample.'),
    (r'^layers\.1\.downsample\.', 'stages.2.downsample.'),
    (r'^layers\.2\.downsample\.', 'stages.3.downsample.'),
    (r'^layers\.', 'stages.'),
    (r'\.layer_scale_(\d)$', r'.ls\1.gamma'),
    (r'^head\.', 'head.fc.'),
)
CLASSIFIER = Layout(
    name='a semantic-token checkpoint (STViT-R-Swin): use stvit_small or stvit_base',
    marker=r'^layers\.2\.blocks\.1\.(layer_scale_1|attn\.kv\.weight)$|^patch_embed\.proj\.0\.c\.weight$',
    own_marker=r'^stages\.0\.blocks\.0\.attn\.relative_position_bias_table$',
    rules=RULES,
)
# detection files have norm0 to norm3, which belong to DenseBackbone, instead of the classifier's norm and head
DENSE = replace(CLASSIFIER, absent=r'^(norm|head)\.', new=r'^norm\.')


@register_notrace_function
def check_form(x: torch.Tensor, form: str) -> None:
    """Raise ValueError if the classifier form is asked for and x is of another size than it can take."""
    if form == 'classifier' and x.ndim == 4 and tuple(x.shape[2:]) != NATIVE:
        raise ValueError(f"Image of {x.shape[2]}x{x.shape[3]}: form='classifier' takes {NATIVE[0]}x{NATIVE[1]} alone. "
                         "Build the model with form='dense' for other sizes, or 'auto' for both.")


class STViT(Hierarchical):
    """Swin with semantic tokens and recovery, STViT-R-Swin (https://arxiv.org/abs/2303.08685).

    Takes images of any height and width from 1x1 on; maps are ceil(H / 4) .. ceil(H / 32).

    Args:
        embed_dims, depths, num_heads: per stage. The third stage is made of units of six blocks.
        form: 'classifier' is the form that the ImageNet weights were trained in, for 224x224 alone; 'dense' the one of the detection
            weights, for any size; 'auto' the classifier form at exactly 224x224 and the dense one elsewhere.
        use_global: add learned tokens to the queries of the first unit's second generation (classifier form; no published weights do).
        shortcut: keep the pooled tokens as residual of the first generation in the classifier form (no published weights do). The dense
            form always does.
        pad_mask: what the dense form hides of the padding in the third stage. 'published', which the detection weights were trained with,
            hides nothing if no padding is needed, only a corner if both axes need it, and in recovery counts the padding of the image in
            semantic tokens; 'correct' hides all padding and nothing else; None hides nothing ('none' where None is no argument:
            timm.create_model leaves out what is None).

    Raises:
        ValueError: on numbers that do not fit together.
    """
    layouts = (DENSE, CLASSIFIER)
    dense_norm_eps = 1e-5  # of norm0 to norm3 of the published detectors
    classifier_size = NATIVE  # where form='auto' computes the classifier form, and no other
    exportable_dynamic_size = 'its window tables are made for one size'  # read by vitzoo.export

    @check_types
    def __init__(
            self,
            in_chans: int = 3,
            num_classes: int = 1000,
            global_pool: str = 'avg',
            embed_dims: tuple[int, int, int, int] = (96, 192, 384, 768),
            depths: tuple[int, int, int, int] = (2, 2, 18, 2),
            num_heads: tuple[int, int, int, int] = (3, 6, 12, 24),
            mlp_ratio: float = 4.,
            qkv_bias: bool = True,
            form: str = 'auto',
            use_global: bool = False,
            shortcut: bool = False,
            pad_mask: str | None = 'published',
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ):
        check_stages(embed_dims, depths, num_heads, even=True)
        check_ratios(embed_dims, mlp_ratio=mlp_ratio)
        if depths[2] % UNIT:
            raise ValueError(f'depths={depths}: the third stage is made of units of {UNIT} blocks, expected a multiple of {UNIT}.')
        check_choice('form', form, 'auto', 'classifier', 'dense')
        check_choice('pad_mask', pad_mask, 'published', 'correct', 'none', None)
        if use_global and form == 'dense':
            raise ValueError("use_global=True, form='dense': the learned tokens belong to the classifier form.")
        super().__init__(in_chans, num_classes, global_pool, drop_rate, drop_path_rate, embed_dims)
        dd = {'device': device, 'dtype': dtype}
        self.form = form
        pad_mask = None if pad_mask == 'none' else pad_mask

        self.stem = Stem(in_chans, embed_dims[0], **dd)
        drop_path = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        stages = []
        for i, dim in enumerate(embed_dims):
            downsample = PatchMerging(embed_dims[i - 1], dim, **dd) if i else nn.Identity()
            blocks = [(SemanticBlock if i == 2 and j % UNIT else SwinBlock)(dim, num_heads[i], mlp_ratio, qkv_bias, rate, **dd)
                      for j, rate in enumerate(drop_path[i])]
            stages.append(SemanticStage(downsample, blocks, form, use_global, shortcut, pad_mask, **dd) if i == 2 else
                          SwinStage(downsample, blocks, form))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(self.num_features, eps=1e-5, **dd)
        self.build_head(**dd)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith('relative_position_bias_table')}

    def forward_stage(self, stage: nn.Module, x: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        return stage(x, image_size)

    def forward_intermediates(self, x: torch.Tensor, *args, **kwargs) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps after the last block of each stage, see `Hierarchical.forward_intermediates`."""
        check_form(x, self.form)
        return super().forward_intermediates(x, *args, **kwargs)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, num_features, ceil(H / 32), ceil(W / 32))."""
        check_form(x, self.form)
        return super().forward_features(x)


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 1000, 'input_size': (3, 224, 224), 'pool_size': (7, 7),
        'crop_pct': 0.875, 'interpolation': 'bicubic', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'stem.0', 'classifier': 'head.fc', **kwargs,
    }


def _hub(filename: str, **kwargs) -> dict:
    return _cfg(
        hf_hub_id='csncsn/STViT-R', hf_hub_filename=filename, custom_load='hf',  # our reader: the files are pickles with more than weights
        origin_url='https://github.com/changsn/STViT-R', paper_ids='arXiv:2303.08685', license='mit (the code)', **kwargs)


def _coco(size: str) -> dict:
    return _hub(f'cascade_mask_rcnn_swin_{size}_patch4_window7_mstrain_480-800_giou_4conv1f_adamw_3x_coco.pth', num_classes=0)


default_cfgs = generate_default_cfgs({
    'stvit_micro.untrained': _cfg(description='our own, for tests and tutorials; no weights', license='apache-2.0'),
    'stvit_tiny.untrained': _cfg(description='no weights were published', paper_ids='arXiv:2303.08685'),
    'stvit_small.in1k': _hub('STViT-R-Swin-S.pth'),
    'stvit_small.coco': _coco('small'),
    'stvit_base.in1k': _hub('STViT-R-Swin-B.pth'),
    'stvit_base.coco': _coco('base'),
})

VARIANTS = {
    'stvit_micro': dict(embed_dims=(32, 64, 96, 128), depths=(1, 2, 6, 2), num_heads=(1, 2, 3, 4)),
    'stvit_tiny': dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    'stvit_small': dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    'stvit_base': dict(embed_dims=(128, 256, 512, 1024), depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
}


def _create_stvit(variant: str, pretrained: bool, **kwargs) -> STViT:
    if as_type('features_only', kwargs.get('features_only', False), bool):
        if as_type('form', kwargs.get('form', 'auto'), str) == 'classifier':
            raise ValueError("form='classifier', features_only=True: features are of the dense form; leave form out.")
        kwargs['form'] = 'dense'
    return build_model(STViT, variant, pretrained, **{**VARIANTS[variant], **kwargs})


@register_model
def stvit_micro(pretrained: bool = False, **kwargs) -> STViT:
    """Our own, 1.4 M parameters, for tests and tutorials."""
    return _create_stvit('stvit_micro', pretrained, **kwargs)


@register_model
def stvit_tiny(pretrained: bool = False, **kwargs) -> STViT:
    """STViT-R-Swin-T: 28.3 M parameters, 3.6 GFLOPs (published configuration, no published weights or accuracy)."""
    return _create_stvit('stvit_tiny', pretrained, **kwargs)


@register_model
def stvit_small(pretrained: bool = False, **kwargs) -> STViT:
    """STViT-R-Swin-S: 49.6 M parameters, 5.8 GFLOPs, 82.7 % ImageNet top-1 (published README)."""
    return _create_stvit('stvit_small', pretrained, **kwargs)


@register_model
def stvit_base(pretrained: bool = False, **kwargs) -> STViT:
    """STViT-R-Swin-B: 87.8 M parameters, 10.3 GFLOPs, 83.2 % ImageNet top-1 (published README)."""
    return _create_stvit('stvit_base', pretrained, **kwargs)
