"""Activations."""
import torch
import torch.nn as nn
from timm.models import register_notrace_module


@register_notrace_module
class Gelu(nn.GELU):
    """Exact GELU of a tensor that nothing else needs: in place in inference, where fresh memory costs more than the function.

    A forward hook on the layer before it that keeps its output sees the activation there (as in front of `nn.ReLU(inplace=True)`).
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().forward(x)
        return torch.ops.aten.gelu_(x)
