"""Samplers that mmengine lacks."""
from collections.abc import Sized

from mmengine.dist import get_dist_info, sync_random_seed
from timm.data.distributed_sampler import RepeatAugSampler as TimmRepeatAugSampler

from vitzoo.arguments import check_range, check_types
from vitzoo.registry import DATA_SAMPLERS


@DATA_SAMPLERS.register_module()
class RepeatAugSampler(TimmRepeatAugSampler):
    """timm's repeated augmentation (https://arxiv.org/abs/1901.09335): each image `num_repeats` times in a row, epochs as long as without.

    On several processes the repeats of an image go to different ones.
    """

    @check_types
    def __init__(self, dataset: Sized, num_repeats: int = 3, shuffle: bool = True, seed: int | None = None):
        check_range(1, 1000, num_repeats=num_repeats)
        rank, world_size = get_dist_info()
        super().__init__(dataset, num_replicas=world_size, rank=rank, num_repeats=num_repeats, shuffle=shuffle)
        self.seed = sync_random_seed() if seed is None else seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(self.seed + epoch)  # timm draws the order of an epoch from this number
