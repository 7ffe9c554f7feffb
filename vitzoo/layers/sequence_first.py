"""Attention on tokens (T, B, D), a token's place before its image, as ONNX Runtime likes it.

Its matrix product reads operands whose batch stands second, and heads of them, where they lie. With the batch in front each head is copied.
"""
import copy

import torch
from timm.layers import Attention
from torch import nn

from .plain import is_plain


def swap_first(x: torch.Tensor) -> torch.Tensor:
    """(T, B, D) -> (B, T, D), or the reverse; nothing moves if there is one image alone."""
    return x.reshape(x.shape[1], x.shape[0], x.shape[2]) if 1 in x.shape[:2] else x.transpose(0, 1)


def heads_of_sequence(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(T, B, D) -> (B, heads, T, d)."""
    return x.unflatten(2, (num_heads, x.shape[2] // num_heads)).permute(1, 2, 0, 3)


def sequence_of_heads(x: torch.Tensor) -> torch.Tensor:
    """(B, heads, T, d) -> (T, B, D)."""
    return x.permute(2, 0, 1, 3).flatten(2)


def attention_map(q: torch.Tensor, k: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Scaled queries (M, B, D) and keys (N, B, D) -> (B, heads, M, N), whose rows sum to 1."""
    return torch.matmul(heads_of_sequence(q, num_heads), heads_of_sequence(k, num_heads).transpose(2, 3)).softmax(-1)


def is_plain_attention(attention: nn.Module) -> bool:
    """Whether this is timm's attention without options, its projection to queries, keys and values no more than a weight."""
    return (is_plain(attention, Attention) and is_plain(attention.qkv, nn.Linear) and attention.gate is None
            and all(type(norm) is nn.Identity for norm in (attention.q_norm, attention.k_norm, attention.norm)))


class SequenceFirstAttention(nn.Module):
    """timm's attention as `is_plain_attention` wants it, its scale folded into the queries: (T, B, D) -> (T, B, D), for inference."""

    @torch.no_grad()
    def __init__(self, attention: Attention):
        super().__init__()
        self.num_heads = attention.num_heads
        self.qkv, self.proj = copy.deepcopy(attention.qkv), attention.proj
        for parameter in self.qkv.parameters():
            parameter[:len(parameter) // 3] *= attention.scale

    def forward(self, x: torch.Tensor, attn_mask: None = None, is_causal: bool = False) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=2)
        x = torch.matmul(attention_map(q, k, self.num_heads), heads_of_sequence(v, self.num_heads))
        return self.proj(sequence_of_heads(x))
