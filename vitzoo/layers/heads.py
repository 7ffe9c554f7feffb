"""Heads of attention."""
import torch


def split_heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(B, N, heads * d) -> (B, heads, N, d)."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)


def join_heads(x: torch.Tensor) -> torch.Tensor:
    """What attention answers, (B, heads, N, d) -> (B, N, heads * d)."""
    x = x.transpose(1, 2)
    # Exporters trace again what was traced once. Attention may then answer in another memory order, and `contiguous` has left no trace
    # where the first one needed no copy. One that is always made does, and compilers drop it where it changes nothing.
    x = x.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else x.contiguous()
    return x.flatten(2)
