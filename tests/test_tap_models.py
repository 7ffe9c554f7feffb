"""TAP and ADL inside whole published models: FAN (https://arxiv.org/abs/2204.12451) and RVT (https://arxiv.org/abs/2105.07926).

The models here hold what the golden cases need and no more; the package offers neither.
"""
import functools

import golden
import pytest
import torch
from timm.models.xcit import ClassAttentionBlock, PositionalEncodingFourier
from torch import nn

from vitzoo.layers import TokenAwarePooling, on_nchw
from vitzoo.losses import AttentionDiversification

LayerNorm = functools.partial(nn.LayerNorm, eps=1e-6)


class Attention(nn.Module):
    """Self-attention that keeps its map. fan: q and kv apart; rvt: one qkv, and a mask on the scores where there is one."""

    def __init__(self, dim, heads, fan=False, mask=None):
        super().__init__()
        self.heads = heads
        if fan:
            self.q, self.kv = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        else:
            self.qkv = nn.Linear(dim, 3 * dim)
            if mask:
                self.att_mask = nn.Parameter(torch.zeros(heads, mask, mask))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        qkv = torch.cat([self.q(x), self.kv(x)], -1) if hasattr(self, 'q') else self.qkv(x)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        if hasattr(self, 'att_mask'):
            scores = scores * self.att_mask.sigmoid()
        self.map = scores.softmax(-1)
        return self.proj((self.map @ v).transpose(1, 2).flatten(2))


class DWConv(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.bn = nn.BatchNorm2d(dim)
        self.conv2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x):
        return self.conv2(self.bn(nn.functional.gelu(self.conv1(x))))


class FanMlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(dim, hidden), DWConv(hidden), nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.ones(hidden))

    def forward(self, x, grid):
        x = self.fc1(x)
        x = x + self.gamma * on_nchw(self.dwconv, x.unflatten(1, grid)).flatten(1, 2)
        return self.fc2(x)


class ChannelProcessing(nn.Module):
    """Channel attention: a gate per channel from its likeness to the mean channel of its head."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q, self.mlp_v, self.norm_v = nn.Linear(dim, dim), FanMlp(dim, 4 * dim), LayerNorm(dim)

    def forward(self, x, grid):
        q, key = (y.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1).softmax(-1) for y in (self.q(x), x))  # (B, heads, d, N)
        gate = (q @ key.mean(2, keepdim=True).transpose(2, 3)).sigmoid() * self.temperature
        return self.norm_v(self.mlp_v(x, grid)) * gate.flatten(1, 2).transpose(1, 2)


class FanBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.dilation_predictor = TokenAwarePooling(dim)
        self.norm1, self.attn, self.gamma1 = LayerNorm(dim), Attention(dim, heads, fan=True), nn.Parameter(torch.ones(dim))
        self.norm2, self.mlp, self.gamma2 = LayerNorm(dim), ChannelProcessing(dim, heads), nn.Parameter(torch.ones(dim))

    def forward(self, x, grid):
        y = self.dilation_predictor(x.unflatten(1, grid)).flatten(1, 2)
        x = x + self.gamma1 * self.attn(self.norm1(y))
        return x + self.gamma2 * self.mlp(self.norm2(x), grid)


class Embed(nn.Module):
    def __init__(self, proj):
        super().__init__()
        self.proj = proj

    def forward(self, x):
        return self.proj(x)


class Fan(nn.Module):
    """fan_tiny_12_p16."""

    def __init__(self, dim=192, depth=12, heads=4):
        super().__init__()
        dims = (3, dim // 8, dim // 4, dim // 2, dim)
        layers = []
        for i in range(4):
            conv = nn.Conv2d(dims[i], dims[i + 1], 3, stride=2, padding=1, bias=False)
            layers += [nn.Sequential(conv, nn.BatchNorm2d(dims[i + 1])), nn.GELU()]
        self.patch_embed = Embed(nn.Sequential(*layers[:-1]))
        self.pos_embed = PositionalEncodingFourier(dim=dim)
        self.blocks = nn.ModuleList(FanBlock(dim, heads) for _ in range(depth))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_attn_blocks = nn.Sequential(*(
            ClassAttentionBlock(dim, heads, qkv_bias=True, norm_layer=LayerNorm, tokens_norm=True) for _ in range(2)))
        self.norm, self.head = LayerNorm(dim), nn.Linear(dim, 1000)

    def forward(self, x):
        x = self.patch_embed(x)
        grid = tuple(x.shape[2:])
        x = (x + self.pos_embed(len(x), *grid)).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, grid)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        return self.head(self.norm(self.cls_attn_blocks(x))[:, 0])


class RvtMlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1, self.bn1 = nn.Conv2d(dim, hidden, 1), nn.BatchNorm2d(hidden)
        self.dwconv, self.bn2 = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.BatchNorm2d(hidden)
        self.fc2, self.bn3 = nn.Conv2d(hidden, dim, 1), nn.BatchNorm2d(dim)

    def forward(self, x):
        x = nn.functional.gelu(self.bn1(self.fc1(x)))
        x = nn.functional.gelu(self.bn2(self.dwconv(x)))
        return self.bn3(self.fc2(x))


class RvtBlock(nn.Module):
    def __init__(self, dim, heads, mask):
        super().__init__()
        self.dilation_predictor = TokenAwarePooling(dim)
        self.norm1, self.attn = LayerNorm(dim), Attention(dim, heads, mask=mask)
        self.norm2, self.mlp = LayerNorm(dim), RvtMlp(dim, 4 * dim)

    def forward(self, x):
        """(B, H, W, C)."""
        grid = x.shape[1:3]
        x = x + self.attn(self.norm1(self.dilation_predictor(x)).flatten(1, 2)).unflatten(1, grid)
        return x + on_nchw(self.mlp, self.norm2(x))


class Pool(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.conv = nn.Conv2d(dim, 2 * dim, 3, stride=2, padding=1, groups=dim)

    def forward(self, x):
        return on_nchw(self.conv, x)


class Stage(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(x)


class Rvt(nn.Module):
    """rvt_tiny_plus, for 224x224."""

    def __init__(self):
        super().__init__()
        self.patch_embed = Embed(nn.Sequential(
            nn.Conv2d(3, 32, 7, stride=2, padding=2), nn.BatchNorm2d(32), nn.MaxPool2d(3, stride=2, padding=1),
            nn.Conv2d(32, 192, 4, stride=4)))
        self.transformers = nn.ModuleList([
            Stage(RvtBlock(192, 6, mask=14 * 14) for _ in range(10)), Stage(RvtBlock(384, 12, mask=None) for _ in range(2))])
        self.pools = nn.ModuleList([Pool(192)])
        self.norm, self.head = LayerNorm(384), nn.Linear(384, 1000)

    def forward(self, x):
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        x = self.transformers[1](self.pools[0](self.transformers[0](x)))
        return self.head(self.norm(x.mean((1, 2))))


@pytest.mark.parametrize('kind', [Fan, Rvt])
@torch.inference_mode()
def test_published_model(kind):
    """Logits, and the loss over the attention maps of all blocks with pooling."""
    facts, published = golden.load_case(f'tap_adl/tap_{"fan_tiny_12_p16" if kind is Fan else "rvt_tiny_plus"}.npz')
    model = kind().eval()
    missing, unexpected = model.load_state_dict(golden.make_state_dict(facts['entries'], facts['rescale']), strict=False)
    assert not unexpected and all(name.endswith('num_batches_tracked') for name in missing)
    assert sum(p.numel() for p in model.parameters()) == facts['params']
    logits = model(golden.make_input(facts['seed'], facts['shape']))
    assert golden.error(logits.numpy(), published['logits']) < 1e-5
    maps = [module.map for module in model.modules() if isinstance(module, Attention)]
    assert golden.error(AttentionDiversification(1.)(maps).numpy(), published['adl_th1']) < 1e-4
    assert AttentionDiversification(2.)(maps) == 0  # flat attention
