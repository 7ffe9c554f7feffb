"""Attention of some tokens on others, fused or spelled out."""
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import use_fused_attn

from .plain import require_plain


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None, *,
           drop: nn.Module, fused: bool) -> torch.Tensor:
    """Queries (B, heads, Q, d), keys and values (B, heads, T, d) -> (B, heads, Q, d). The mask is added to the logits.

    scale: of the logits, d ** -0.5 by default. drop: a dropout, or an identity, that acts on the map (B, heads, Q, T); it is called if not
    fused, where alone there is such a map.
    """
    if fused:
        rate = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.
        return F.scaled_dot_product_attention(q, k, v, mask, rate, scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = (q if scale == 1 else q * scale) @ k.transpose(-2, -1)
    if mask is not None:
        logits = logits + mask
    return drop(logits.softmax(-1)) @ v


class SoftmaxAttention(nn.Module):
    """`attend` as a module, which obeys `timm.layers.set_fused_attn` when it is built, as timm's attention does.

    With it off, `attn_drop` sees every attention map; timm's `AttentionExtract` finds it, and the softmax, by these names.
    """

    def __init__(self):
        super().__init__()
        self.fused_attn = use_fused_attn()
        self.attn_drop = nn.Identity()

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None,
                scale: float | None = None) -> torch.Tensor:
        return attend(q, k, v, mask, scale, drop=self.attn_drop, fused=self.fused_attn)


def attend_unscaled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`attend` spelled out, with logits q k^T as they are: for queries of `split_qkv`."""
    return attend(q, k, v, mask, scale=1, drop=nn.Identity(), fused=False)


@torch.no_grad()
def split_qkv(layers: Sequence[nn.Linear], proj: nn.Linear, num_heads: int) -> tuple[nn.Linear, nn.Linear, nn.Linear, nn.Linear]:
    """Layers q, k, v and proj for `attend_unscaled`; the rows of `layers`, one after the other, are ordered q, k, v.

    For inference where what is split is copied. The scale of the logits is in q. k and v have no bias: that of k adds the same to all
    logits of a query; that of v, since weights sum to 1, is added once, by proj.

    Raises ValueError if the layers are more than their weight.
    """
    require_plain(nn.Linear, *layers, proj)
    q, k, v = torch.cat([layer.weight for layer in layers]).chunk(3)
    scale = (q.shape[0] // num_heads) ** -0.5
    if layers[0].bias is None:
        return linear_of(q * scale), linear_of(k), linear_of(v), proj
    q_bias, _, v_bias = torch.cat([layer.bias for layer in layers]).chunk(3)
    return linear_of(q * scale, q_bias * scale), linear_of(k), linear_of(v), linear_of(proj.weight, proj.bias + proj.weight @ v_bias)


def linear_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A linear layer, for inference, with this weight and bias."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device='meta')  # no memory, no random numbers
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
