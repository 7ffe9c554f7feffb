"""`vitzoo.Backbone`: the dense backbone as a module of MMEngine."""
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.runner import CheckpointLoader
from timm.models._helpers import clean_state_dict
from torch import Tensor

from vitzoo.dense import DenseBackbone
from vitzoo.registry import MODELS
from vitzoo.weights.files import local_file, read_checkpoint, unwrap
from vitzoo.weights.layout import BESIDE_MODEL, convert, strip_prefixes


@MODELS.register_module()
class Backbone(DenseBackbone, BaseModule):
    """`DenseBackbone` plus `init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`; maps come as a tuple.

    The checkpoint is a path, `hf-hub:ORG/REPO[/FILE]` or an address that mmengine can load: a classifier in any published layout, or a
    whole detector or segmentor, whose part under `prefix` is taken ('backbone.' if there is one and nothing is said). It is read when the
    Runner initialises weights before training, not when a trained model is built for testing. Weights loaded by `pretrained` or
    `checkpoint_path` stay as they are.
    """

    def __init__(self, model_name: str, out_indices=(0, 1, 2, 3), *, init_cfg: dict | None = None, **kwargs):
        if init_cfg is not None and (init_cfg.get('type') != 'Pretrained' or not init_cfg.get('checkpoint')):
            raise ValueError(f"init_cfg is dict(type='Pretrained', checkpoint=..., prefix=...) or None, got {init_cfg!r}; "
                             'the models initialise themselves')
        super().__init__(model_name, out_indices, **kwargs)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        if self.init_cfg is not None and not self.is_init:
            source, prefix = self.init_cfg['checkpoint'], self.init_cfg.get('prefix')
            state, num_read = _take_prefix(_read(source), prefix, source)
            report = self.load(state)
            print_log(f'{type(self).__name__} {self.model_name}: {len(report.loaded)} entries loaded from {source}, {len(report.new)} new, '
                      f'{num_read - len(state)} of other modules left out, {len(report.dropped)} dropped '
                      f'({", ".join(report.dropped[:3]) or "none"})', logger='current')
        self._is_init = True

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args) -> None:
        """torch and mmengine call this of every module that gets weights, so that a detector with a published backbone can be given to
        whatever loads a checkpoint (`Runner(load_from=...)`, the inferencers). What is left over or missing they only warn of.
        """
        if self._is_ours:
            inside = strip_prefixes({name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)})
            conversion = convert(inside, self.model)
            if conversion.renamed or conversion.dropped:
                for name in [name for name in state_dict if name.startswith(prefix)]:
                    del state_dict[name]
                for name, value in conversion.state.items():
                    state_dict[prefix + ('' if BESIDE_MODEL.match(name) else self._prefix) + name] = value
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(super().forward(x))


def _read(source: str) -> dict[str, Tensor]:
    if '://' in str(source):
        return unwrap(CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='current'), name=source)
    return read_checkpoint(local_file(source))


def _take_prefix(state: dict[str, Tensor], prefix: str | None, source: str) -> tuple[dict[str, Tensor], int]:
    """The entries below `prefix`, without it, and the number of all."""
    state, num_read = clean_state_dict(state), len(state)
    if prefix is None:
        prefix = 'backbone.' if any(name.startswith('backbone.') for name in state) else ''
    elif not prefix.endswith('.'):
        prefix += '.'
    part = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not part:
        raise ValueError(f'{source} holds nothing under prefix {prefix!r}; its keys start with {list(state)[:3]}')
    return part, num_read
