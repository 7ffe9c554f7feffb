"""Runs the blocks of timm's `VisionTransformer` and `Eva` with a method between their parts, by the blocks' own layers."""
import operator

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models._manipulate import checkpoint
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from ..layers import join_heads, record, recording
from .method import Method, Seen, Tokens, add_bias

MODELS = (VisionTransformer, Eva)
BLOCKS = (Block, EvaBlock, EvaBlockPostNorm)
ATTENTIONS = (Attention, EvaAttention, AttentionRope)
SMALL_MAP = 2 ** 17  # numbers in an attention map


def embed(model: nn.Module, image: Tensor) -> Tokens:
    """Images (B, C, H, W) -> what goes into the first block."""
    grid = tuple(map(operator.index, model.patch_embed.dynamic_feat_size(image.shape[-2:])))  # numbers for TorchScript's tracer too
    x = model.patch_embed(image)
    if isinstance(model, Eva):
        x, rope = model._pos_embed(x)
    else:
        x, rope = model._pos_embed(x), None
    if rope is not None:
        rope = rope[:, None] if model.rope_mixed else rope[None, None, None]  # (depth, H, N, D) or (N, D)
    return Tokens(model.norm_pre(x), model.num_prefix_tokens, grid, rope)


def run_block(model: nn.Module, method: Method, i: int, tokens: Tokens) -> Tokens:
    """Block i with what the method does around it; with gradient checkpointing it is computed once more in the backward pass."""
    if model.grad_checkpointing and torch.is_grad_enabled():
        tokens = checkpoint(_around_block, model, method, i, tokens)
    else:
        tokens = _around_block(model, method, i, tokens)
    if recording():
        record(model.blocks[i], 'tokens', method.labels(tokens).unflatten(1, tokens.grid), tokens.num_patches, kind='tokens')
    return tokens


def _around_block(model: nn.Module, method: Method, i: int, tokens: Tokens) -> Tokens:
    tokens = method.pre(model, i, tokens)
    tokens = _block(model, method, i, tokens)
    return method.post(model, i, tokens)


def _block(model: nn.Module, method: Method, i: int, tokens: Tokens) -> Tokens:
    block, want = model.blocks[i], method.want(model, i)
    rope = None if tokens.rope is None else tokens.rope[min(i, len(tokens.rope) - 1)]
    if not want and tokens.size is None:  # as it is
        return tokens._replace(x=block(tokens.x) if isinstance(block, Block) else block(tokens.x, rope=rope))
    update, seen, tokens = _attention_branch(model, method, i, tokens, rope, want)
    tokens = tokens._replace(x=tokens.x + update)
    if want:
        tokens = method.mid(model, i, tokens, seen)
    del update, seen  # the MLP takes their memory
    return tokens._replace(x=tokens.x + _mlp_branch(block, tokens.x))


def _attention_branch(model: nn.Module, method: Method, i: int, tokens: Tokens, rope: Tensor | None, want: str | None):
    """What attention adds, (B, P + N, C), what it saw, and the tokens."""
    block, x = model.blocks[i], tokens.x
    attn = block.attn
    y = x if isinstance(block, EvaBlockPostNorm) else block.norm1(x)
    gate = None if attn.gate is None else attn.gate(y).sigmoid()
    q, k, v = _project(attn, y)
    content = k
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        q, k = (_rotate(attn, t, rope).type_as(v) for t in (q, k))
    groups = getattr(attn, 'num_kv_groups', 1)
    if groups > 1:
        k, v = (t.repeat_interleave(groups, dim=1) for t in (k, v))
    k, v = method.edit_keys(i, k, v, tokens)
    bias, tokens = method.mask(model, i, q, k, tokens)
    if bias is not None and bias.is_floating_point():
        bias = bias.to(q.dtype)
    y, attention = _attend(method, i, attn, q, k, v, bias, want, tokens)
    y = attn.norm(join_heads(y))
    if gate is not None:
        y = y * gate
    y = attn.proj_drop(attn.proj(y))
    if isinstance(block, Block):
        y = block.ls1(y)
    elif isinstance(block, EvaBlockPostNorm):
        y = block.norm1(y)
    elif block.gamma_1 is not None:
        y = block.gamma_1 * y
    return block.drop_path1(y), Seen(q, k, content, bias, attn.scale, attention), tokens


def _attend(
        method: Method, i: int, attn: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, want: str | None, tokens: Tokens,
) -> tuple[Tensor, Tensor | None]:
    """Values summed (B, H, N, d), and the map (B, H, N, N) if it is wanted or attention is spelled out."""
    masked = bias is not None and bias.dtype == torch.bool
    if attn.fused_attn and want != 'map' and not _is_small(q):
        rate = attn.attn_drop.p if attn.training else 0.
        y = F.scaled_dot_product_attention(q, k, v, bias, rate, scale=attn.scale)
        if masked:  # said again: an exported query without a key gets the mean of all values
            y = y.masked_fill(~bias.any(-1, keepdim=True), 0)
        return y, None
    logits = q * attn.scale @ k.transpose(-2, -1)
    if bias is not None:
        logits = add_bias(logits, bias)
    attention = method.softmax(i, logits, tokens) if want == 'map' else logits.softmax(-1)
    del logits
    if masked:
        attention = attention * bias
    attention = attn.attn_drop(attention)
    if want == 'map':
        attention = method.edit_map(i, attention)
    return attention @ v, attention


def _is_small(q: Tensor) -> bool:
    """Whether the map of queries (B, H, N, d) stays in a CPU's cache, where it is computed quicker than by fused attention."""
    if q.device.type != 'cpu' or torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return q.shape[0] * q.shape[1] * q.shape[2] ** 2 <= SMALL_MAP


def _project(attn: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, (B, heads, N, d) each; of keys and values there may be fewer heads."""
    B, N = x.shape[:2]
    if attn.qkv is None:
        return tuple(layer(x).unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for layer in (attn.q_proj, attn.k_proj, attn.v_proj))
    qkv = attn.qkv(x)
    if getattr(attn, 'q_bias', None) is not None:
        qkv = qkv + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias]).to(qkv.dtype)
    return qkv.view(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)


def _rotate(attn: nn.Module, t: Tensor, rope: Tensor) -> Tensor:
    """Queries or keys (B, heads, P + N, d) turned by their positions (B or 1, heads or 1, N, D); prefix tokens have none."""
    prefix, patches = t.split([t.shape[2] - rope.shape[2], rope.shape[2]], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attn.rotate_half)], dim=2)


def _mlp_branch(block: nn.Module, x: Tensor) -> Tensor:
    """What the MLP adds, (B, P + N, C)."""
    if isinstance(block, EvaBlockPostNorm):
        return block.drop_path2(block.norm2(block.mlp(x)))
    y = block.mlp(block.norm2(x))
    if isinstance(block, Block):
        y = block.ls2(y)
    elif block.gamma_2 is not None:
        y = block.gamma_2 * y
    return block.drop_path2(y)
