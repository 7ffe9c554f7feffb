"""`vitzoo.Backbone`: the dense backbone as a module of MMEngine."""
from collections.abc import Sequence

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from vitzoo.arguments import check_types, show
from vitzoo.dense import DenseBackbone
from vitzoo.registry import MODELS
from vitzoo.weights import load_checkpoint, rename_published

from .safe_load import read_content


@MODELS.register_module()
class Backbone(DenseBackbone, BaseModule):
    """`DenseBackbone` plus `init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`; maps come as a tuple.

    The checkpoint is a path, `hf-hub:ORG/REPO[/FILE]` or an address that mmengine can load: a classifier in any published layout, or a
    whole detector or segmentor, whose part under `prefix` is taken ('backbone.' if there is one and nothing is said). It is read when the
    Runner initialises weights before training, not when a trained model is built for testing. Weights loaded by `pretrained` or
    `checkpoint_path` stay as they are.
    """

    @check_types
    def __init__(self, model_name: str, out_indices: Sequence[int] = (0, 1, 2, 3), *, init_cfg: dict | None = None, **kwargs):
        if init_cfg is not None and (init_cfg.get('type') != 'Pretrained' or not init_cfg.get('checkpoint')):
            raise ValueError(f"init_cfg is dict(type='Pretrained', checkpoint=..., prefix=...) or None, got {show(init_cfg)}; "
                             'the models initialise themselves')
        super().__init__(model_name, out_indices, **kwargs)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        if self.init_cfg is not None and not self.is_init:
            source = self.init_cfg['checkpoint']
            report = load_checkpoint(self, read_content(source), prefix=self.init_cfg.get('prefix'))
            dropped = report.dropped[:len(report.dropped) - report.num_others]
            print_log(f'{type(self).__name__} {self.model_name}: {len(report.loaded)} entries loaded from {source}, {len(report.new)} new, '
                      f'{report.num_others} of other modules left out, {len(dropped)} dropped ({", ".join(dropped[:3]) or "none"})',
                      logger='current')
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        """torch and mmengine call this of every module that gets weights, so that a detector with a published backbone can be given to
        whatever loads a checkpoint (`Runner(load_from=...)`, the inferencers). What is left over or missing they only warn of.
        """
        rename_published(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(super().forward(x))
