"""Attention of some tokens on others, fused or spelled out."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import use_fused_attn


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None, *,
           drop: nn.Module, fused: bool) -> torch.Tensor:
    """Queries (B, heads, Q, d), keys and values (B, heads, T, d) -> (B, heads, Q, d). The mask is added to the logits.

    scale: of the logits, d ** -0.5 by default. drop: a dropout, or an identity, that acts on the map (B, heads, Q, T); it is called if not
    fused, where alone there is such a map.
    """
    if fused:
        rate = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.
        return F.scaled_dot_product_attention(q, k, v, mask, rate, scale=scale)
    logits = q * (q.shape[-1] ** -0.5 if scale is None else scale) @ k.transpose(-2, -1)
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
