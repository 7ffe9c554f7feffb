"""Kinds of timm models whose tokens are reduced in tests, each as small as shows what is special about it, and settings that fit them."""
from dataclasses import fields

import timm
import torch
from timm.layers import Attention, set_fused_attn, use_fused_attn
from torch import nn

import vitzoo
from vitzoo.reduction import METHODS, Method

DEPTH = 3
SIZE = (32, 48)  # 4 x 6 patches
_SMALL = dict(depth=DEPTH, embed_dim=32, num_heads=2, patch_size=8, img_size=SIZE, num_classes=5)


class Gated(Attention):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, gated=True, **kwargs)


_VIT = 'vit_tiny_patch16_224'
KINDS = {  # timm's name, and what is added to it
    'class_token': (_VIT, {}),
    'registers': (_VIT, dict(reg_tokens=3)),
    'average': ('vit_medium_patch16_gap_256', {}),  # no class token, LayerScale
    'average_of_all': (_VIT, dict(global_pool='avg', pool_include_prefix=True)),
    'map': ('vit_base_patch16_siglip_224', {}),
    'refined': (_VIT, dict(global_pool='prr', class_token=False)),
    'qk_norm': (_VIT, dict(qk_norm=True, init_values=0.1)),
    'distilled': ('deit_tiny_distilled_patch16_224', {}),
    'any_size': (_VIT, dict(dynamic_img_size=True, dynamic_img_pad=True)),
    'no_positions': (_VIT, dict(pos_embed='none', final_norm=False)),
    'deit3': ('deit3_small_patch16_224', {}),  # positions for patches alone
    'dinov2': ('vit_small_patch14_reg4_dinov2', dict(dynamic_img_size=True)),
    'clip': ('vit_base_patch16_clip_quickgelu_224', {}),
    'gated': (_VIT, dict(attn_layer=Gated, scale_attn_norm=True, scale_mlp_norm=True)),
    'unfused': (_VIT, {}),
    'dinov3': ('vit_small_patch16_dinov3', {}),
    'eva02': ('eva02_tiny_patch14_336', {}),
    'eva02_scaled': ('eva02_tiny_patch14_336', dict(scale_mlp=True, scale_attn_inner=True, qkv_fused=False)),
    'pe': ('vit_pe_core_tiny_patch16_384', dict(attn_pool_num_heads=2)),
    'mixed': ('vit_small_patch16_rope_mixed_224', {}),
    'mrope': ('vit_small_patch16_dinov3', dict(rope_type='mrope', global_pool='token')),
    'gap': ('vit_medium_patch16_rope_reg1_gap_256', {}),
    'grouped': ('vit_medium_patch16_rope_reg1_gap_256', dict(attn_type='rope', num_kv_heads=1, qkv_fused=False, qk_norm=True,
                                                             class_token=True)),
    'post_norm': ('eva02_tiny_patch14_336', dict(use_post_norm=True)),
}
ANY_SIZE = ('any_size', 'dinov2', 'dinov3', 'mrope')


def build(kind: str, **kwargs) -> nn.Module:
    """In eval mode, with weights that are the same every time and far from those initial ones that could hide a mistake."""
    torch.manual_seed(0)
    name, special = KINDS[kind]
    fused = use_fused_attn()
    set_fused_attn(kind != 'unfused')
    try:
        model = timm.create_model(name, **{**_SMALL, **special, **kwargs}).eval()
    finally:
        set_fused_attn(fused)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if 'rope' not in name and (p.ndim == 1 or 'token' in name or 'latent' in name):
                p.add_(torch.randn_like(p), alpha=0.2)
            elif p.ndim == 2:
                p.normal_(std=p.shape[1] ** -0.5)
    return model


def image(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *(size or SIZE), generator=torch.Generator().manual_seed(1))


# What fits so few blocks and patches; each method takes of it what it has.
_FITTING = dict(locations=(0, 1), token_locations=(0, 1), location=0, r=5, num_prop=5, clusters=(2, 3), keep=9, reduce_n_factor=2)
# What makes a method do nothing, of those where there is such a setting.
OFF = {
    'evit': dict(keep_rate=1.), 'tome': dict(r=0), 'gtp': dict(num_prop=0), 'dynamicvit': dict(keep_rate=1.),
    'expedite': dict(clusters=100), 'sparsifiner': dict(attn_keep=1.),
}

ONE_SIZE = ('sparsifiner',)  # its tables are made for one number of tokens


def options(method: str, **others) -> dict:
    names = {field.name for field in fields(METHODS[method])}
    return {name: value for name, value in {**_FITTING, **others}.items() if name in names}


def reduced(kind: str, method: str | Method, **kwargs) -> nn.Module:
    model = build(kind, **kwargs)
    return vitzoo.reduce_tokens(model, method, **(options(method) if isinstance(method, str) else {})).eval()


class Looks(Method):
    """Wants to see the attention of every block, and changes nothing."""

    def __init__(self, what):
        self.what = what

    def want(self, model, i):
        return self.what


WITHOUT_CLASS_TOKEN = [kind for kind in KINDS if build(kind).cls_token is None]
PAIRS = [(kind, method) for kind in KINDS for method in METHODS
         if kind not in WITHOUT_CLASS_TOKEN or not METHODS[method].needs_class_token]


def check_traced(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    """No graph break, and no shape or choice that depends on the image."""
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    exported = torch.export.export(model, (x,)).module()
    for traced, image in ((compiled, x), (compiled, y), (exported, y)):
        torch.testing.assert_close(traced(image), model(image), rtol=1e-5, atol=1e-5)
