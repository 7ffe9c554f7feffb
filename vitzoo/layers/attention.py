"""Attention of some tokens on others, fused or spelled out."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import use_fused_attn


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None, *,
           drop: nn.Module, fused: bool) -> torch.Tensor:
    """Queries (B, heads, Q, d), keys and values (B, heads, T, d) -> (B, heads, Q, d). The mask is added to the logits.

    scale: of the logits, d ** -0.5 by default. drop: the dropout that acts on the map, (B, heads, Q, T), which only exists if not fused.
    """
    if fused:
        return F.scaled_dot_product_attention(q, k, v, mask, dropout_p=drop.p if drop.training else 0., scale=scale)
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
        self.attn_drop = nn.Dropout(0.)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None,
                scale: float | None = None) -> torch.Tensor:
        return attend(q, k, v, mask, scale, drop=self.attn_drop, fused=self.fused_attn)
