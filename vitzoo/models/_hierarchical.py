"""What timm asks of a model, for all families made of a stem, stages and a head. The families' files hold the computation."""
from collections.abc import Sequence

import torch
import torch.nn as nn
from timm.layers import ClassifierHead
from timm.models._manipulate import checkpoint_seq

from ..arguments import check_types
from ..layers import check_choice, check_image, check_indices, check_options, precision_of, specialize_size
from ._builder import PublishedWeights


class Stage(nn.Module):
    """Downsample (identity for the first stage) and blocks; (B, H, W, C) in and out."""

    def __init__(self, downsample: nn.Module, blocks: list[nn.Module]):
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


def _check_pool(num_classes: int, global_pool: str) -> None:
    if num_classes and not global_pool:
        raise ValueError(f"global_pool='' with num_classes={num_classes}: expected a pooling in front of the classifier, such as 'avg', "
                         'or num_classes=0 for the map itself.')


class Hierarchical(PublishedWeights, nn.Module):
    """Base of the hierarchical families.

    A family's constructor checks its numbers (`check_stages`), hands on to this one what all have, sets the modules `stem` (image
    (B, C, H, W) to map (B, H', W', C')), `stages` (a Sequential) and the one between the last stage and the head, and ends with
    `build_head()`.

    Args:
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: as in timm.
        embed_dims: width of each stage.
        num_features: width of the classifier's input, that of the last stage by default.
        first_stride: of the first stage; each further one doubles it.

    Raises:
        ValueError: on values that no model can mean.
    """
    final = 'norm'  # name of the module between the last stage and the head

    # facts that the rest of the package reads; a family states those that are otherwise
    columnar = False  # maps of one stride
    any_size = True  # padding is done inside
    attends = True  # has attention among positions, whose maps and groups can be seen
    selects = False  # makes choices that a rounding difference can flip
    dense_norm_eps: float | None = None  # of the LayerNorm that the published dense code puts on each map; None where it has none

    def __init__(self, in_chans: int, num_classes: int, global_pool: str, drop_rate: float, drop_path_rate: float,
                 embed_dims: Sequence[int], num_features: int | None = None, first_stride: int = 4):
        super().__init__()
        check_options(in_chans, num_classes, global_pool, drop_rate, drop_path_rate)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.drop_rate = drop_rate
        self.num_features = num_features or embed_dims[-1]
        self.feature_info = [dict(num_chs=dim, reduction=first_stride * 2 ** i, module=f'stages.{i}') for i, dim in enumerate(embed_dims)]

    @property
    def feature_indices(self) -> tuple[int, ...]:
        """The maps of `features_only` where nobody says which."""
        return tuple(range(len(self.feature_info)))

    @property
    def min_input_size(self) -> tuple[int, int]:
        """The smallest image (H, W)."""
        return tuple(getattr(self, 'pretrained_cfg', {}).get('min_input_size', (3, 1, 1))[1:])

    def check_input(self, x: torch.Tensor) -> None:
        """Raise ValueError on an image that the model does not take."""
        check_image(x, self.in_chans, self.min_input_size, precision_of(self))
        if hasattr(self, 'exportable_dynamic_size'):  # has tables of its size
            specialize_size(x)

    def make_head(self, **factory_kwargs) -> nn.Module:
        """The classifier on the NCHW features: `global_pool` (with `feat_mult`) and `fc`."""
        return ClassifierHead(
            self.num_features, self.num_classes, pool_type=self.global_pool, drop_rate=self.drop_rate, **factory_kwargs)

    def build_head(self, device=None, dtype=None) -> None:
        """Raises ValueError on classes without pooling."""
        _check_pool(self.num_classes, self.global_pool)
        self.head = self.make_head(device=device, dtype=dtype)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(
            stem=r'^stem',
            blocks=r'^stages\.(\d+)' if coarse else [
                (r'^stages\.(\d+)\.downsample', (0,)),
                (r'^stages\.(\d+)\.blocks\.(\d+)', None),
                (rf'^{self.final}', (99999,)),
            ],
        )

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    @check_types
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, with the pooling that the model has unless another is given, and 'avg' if it has none.

        Raises ValueError on classes with `global_pool=''`, and on values that timm does not know.
        """
        check_options(num_classes=num_classes, global_pool=global_pool or '')
        if global_pool is None:
            global_pool = self.global_pool or ('avg' if num_classes else '')
        _check_pool(num_classes, global_pool)
        self.num_classes = num_classes
        self.global_pool = global_pool
        like = next(self.parameters())
        self.build_head(like.device, like.dtype)
        self.head.train(self.training)

    # What goes from stage to stage is the map (B, H, W, C), or whatever a family makes of these three.

    def forward_stem(self, x: torch.Tensor):
        """Images (B, C, H, W) -> what the first stage takes."""
        return self.stem(x)

    def forward_stage(self, stage: nn.Module, x, image_size: tuple[int, int]):
        """One stage, for families whose stages need more than the map."""
        return stage(x)

    def to_map(self, x) -> torch.Tensor:
        """The map (B, H, W, C) in what goes from stage to stage."""
        return x

    def forward_final(self, x: torch.Tensor) -> torch.Tensor:
        """What lies between the last stage and the head, (B, H, W, C) in and out."""
        return getattr(self, self.final)(x)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Maps after the last block of each stage.

        Args:
            x: images (B, C, H, W).
            indices: the last n stages if int, all if None, else these stages.
            norm: accepted for timm's sake: the final norm belongs to the classifier and fits no other stage.
            stop_early: stop after the last stage asked for.
            output_fmt: 'NCHW' or 'NHWC'.
            intermediates_only: return the maps alone, else (final features, maps).

        Raises:
            ValueError: another format, a stage that there is not, or an image that `check_input` refuses.
        """
        check_choice('output_fmt', output_fmt, 'NCHW', 'NHWC')
        take_indices = check_indices('indices', indices, len(self.stages))
        self.check_input(x)
        image_size = x.shape[2:]
        x = self.forward_stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages[:max(take_indices) + 1] if stop_early else self.stages):
            x = self.forward_stage(stage, x, image_size)
            if i in take_indices:
                taken = self.to_map(x)
                intermediates.append(taken.permute(0, 3, 1, 2) if output_fmt == 'NCHW' else taken)
        if intermediates_only:
            return intermediates
        x = self.to_map(x)
        if i == len(self.stages) - 1:
            x = self.forward_final(x)
        return x.permute(0, 3, 1, 2), intermediates

    def prune_intermediate_layers(self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True) -> list[int]:
        """Drop what the given stages do not need."""
        take_indices = check_indices('indices', indices, len(self.stages))
        max_index = max(take_indices)
        cut = max_index < len(self.stages) - 1
        self.stages = self.stages[:max_index + 1]
        if cut or prune_norm or prune_head:
            setattr(self, self.final, nn.Identity())
            self.num_features = self.feature_info[max_index]['num_chs']
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images (B, C, H, W) -> (B, num_features, ceil(H / 32), ceil(W / 32))."""
        self.check_input(x)
        image_size = x.shape[2:]
        x = self.forward_stem(x)
        for stage in self.stages:
            x = self.forward_stage(stage, x, image_size)
        return self.forward_final(self.to_map(x)).permute(0, 3, 1, 2)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))
