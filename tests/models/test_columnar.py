"""The base of the columnar families, by a third one: a plain ViT with class and register tokens, against timm's."""
import copy
from typing import NamedTuple

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from vitzoo.models._columnar import Columnar, quarters


class Tokens(NamedTuple):
    tokens: torch.Tensor
    size: tuple[int, int]


class PlainViT(Columnar, VisionTransformer):
    def embed(self, x):
        return Tokens(self.norm_pre(self._pos_embed(self.patch_embed(x))), self.patch_embed.dynamic_feat_size(x.shape[2:]))

    def forward_block(self, block, state):
        return Tokens(self.run(block, state.tokens), state.size)

    def to_map(self, state):
        return state.tokens[:, self.num_prefix_tokens:]

    def to_prefix(self, state):
        return state.tokens[:, :self.num_prefix_tokens]

    def to_tokens(self, state):
        return self.norm(state.tokens)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


@pytest.fixture
def models():
    options = dict(img_size=64, embed_dim=32, depth=5, num_heads=2, num_classes=7, reg_tokens=2, dynamic_img_size=True)
    timm_s, ours = VisionTransformer(**options).eval(), PlainViT(**options).eval()
    for p in timm_s.parameters():
        torch.nn.init.normal_(p, std=0.3)
    ours.load_state_dict(timm_s.state_dict())
    return ours, timm_s


@pytest.mark.parametrize('kwargs', [
    {}, dict(indices=2), dict(indices=[0, -2], stop_early=True), dict(norm=True, output_fmt='NLC', stop_early=True),
    dict(return_prefix_tokens=True), dict(norm=True, return_prefix_tokens=True),
], ids=str)
def test_intermediates_of_a_plain_vit(models, kwargs):
    ours, timm_s = models
    x = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), timm_s(x), rtol=0, atol=0)
        found, expected = (m.forward_intermediates(x, **kwargs) for m in models)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        torch.testing.assert_close(ours.forward_intermediates(x, intermediates_only=True, **kwargs), expected[1], rtol=0, atol=0)


@pytest.mark.parametrize('prune_norm', [False, True])
@pytest.mark.parametrize('prune_head', [False, True])
def test_pruning_of_a_plain_vit(models, prune_norm, prune_head):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        found, expected = (copy.deepcopy(m) for m in models)
        assert found.prune_intermediate_layers([1, 2], prune_norm, prune_head) == expected.prune_intermediate_layers(
            [1, 2], prune_norm, prune_head)
        assert found.state_dict().keys() == expected.state_dict().keys()
        torch.testing.assert_close(found(x), expected(x), rtol=0, atol=0)


def test_quarters():
    assert quarters(12) == (2, 5, 8, 11) and quarters(6) == (1, 2, 4, 5) and quarters(3) == (0, 1, 2) and quarters(1) == (0,)
