"""Recover layers: from the tokens that are left to a feature for each position of the grid, instead of a method's own way back.

Shapes: B images, N tokens that are left, h x w the grid of positions with N0 = h * w of them, C channels.
"""
import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vitzoo.arguments import show
from vitzoo.layers import Kept, SoftmaxAttention, join_heads
from vitzoo.reduction.method import take_rows

CHOICES = ('method', 'nearest', 'learnt')


def nearest_kept(here: Tensor) -> Tensor:
    """For each position of a map the nearest one that is there, itself if it is: (B, h, w) bool -> (B, h * w), from 0.

    By Euclidean distance, of equal ones the first. Where nothing is there, any. One axis after the other, as an exact distance transform
    goes, which needs no table of all pairs.
    """
    _, h, w = here.shape
    rows, columns = (_squares(length, here.device) for length in (h, w))
    # of each position the nearest in its row, (B, h, w), and how far it is; further than any other, if the row is empty
    distance, column = torch.where(here[:, :, None], columns, float(h ** 2 + w ** 2)).min(-1)
    row = (rows[:, None] + distance.transpose(1, 2)[:, None]).argmin(-1)  # from (1, h, 1, h) and (B, 1, w, h): (B, h, w)
    return (row * w + column.gather(1, row)).flatten(1)


def _squares(length: int, device: torch.device) -> Tensor:
    """Squared distances of places on a line, (length, length)."""
    places = torch.arange(length, device=device)
    return ((places[:, None] - places) ** 2).float()


class NearestRecover(nn.Module):
    """A position has the features of the token that it is part of; one that was dropped, those of the position nearest to it that was not.

    Nothing is learned and nothing is mixed, for any size.
    """

    def forward(self, kept: Kept) -> Tensor:
        """Tokens (B, N, C) and where each position went -> (B, N0, C)."""
        labels = kept.labels()
        nearest = nearest_kept((labels >= 0).unflatten(1, kept.grid))
        return take_rows(kept.tokens, labels.gather(1, nearest))


class LearntRecover(nn.Module):
    """Cross-attention of learnt queries, one for each position, to the tokens that are left: the recover layer of HoT (Hourglass
    Tokenizer, https://arxiv.org/abs/2311.12028), written from its description.

    Which token stands for which position is not told: tokens carry their place with them, from the model's position embedding. There are
    queries for one grid alone. They are added to what they find, as a block does.

    Args:
        dim: C.
        num_heads: of the attention.
        grid: (h, w).
    """

    def __init__(self, dim: int, num_heads: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = tuple(grid)
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1], dim))
        self.norm_q, self.norm_kv = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attn = SoftmaxAttention()
        trunc_normal_(self.queries, std=.02)
        for layer in self.q, self.kv, self.proj:
            trunc_normal_(layer.weight, std=.02)
            nn.init.zeros_(layer.bias)

    def forward(self, kept: Kept) -> Tensor:
        """Tokens (B, N, C) -> (B, N0, C). Raises ValueError on another grid."""
        if tuple(kept.grid) != self.grid:
            raise ValueError(f"recover='learnt' has queries for {self.grid[0]}x{self.grid[1]} positions, got an image of "
                             f"{kept.grid[0]}x{kept.grid[1]}: build the backbone with the img_size of your images, pad them to it, or "
                             "choose recover='nearest', which takes any size")
        B = kept.tokens.shape[0]
        q = self.q(self.norm_q(self.queries)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(self.norm_kv(kept.tokens)).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.queries + self.proj(join_heads(self.attn(q.expand(B, -1, -1, -1), k, v)))


def make_recover_layer(choice: str, model_name: str, model: nn.Module) -> nn.Module | None:
    """The layer of a `DenseBackbone` around a model; None for the method's own way. ValueError for a model that has nothing to recover."""
    if choice not in CHOICES:
        raise ValueError(f'recover={show(choice)}: expected one of {CHOICES}')
    if choice == 'method':
        return None
    if not hasattr(model, 'forward_kept'):
        raise ValueError(f'recover={choice!r}: {model_name} keeps a feature for each position, there is nothing to recover; leave it at '
                         "'method', or reduce the tokens of a vision transformer, such as with reduction=dict(method='evit')")
    if choice == 'nearest':
        return NearestRecover()
    return LearntRecover(model.embed_dim, model.blocks[0].attn.num_heads, model.patch_embed.grid_size)


def recovered_map(layer: nn.Module, kept: Kept) -> Tensor:
    """What is left -> (B, C, h, w), in the precision of the tokens, under autocast too."""
    return layer(kept).to(kept.tokens.dtype).unflatten(1, kept.grid).permute(0, 3, 1, 2).contiguous()
