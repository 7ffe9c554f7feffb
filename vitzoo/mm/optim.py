"""Layer-wise learning rate decay for any model that contains a timm model."""
from mmengine.optim import DefaultOptimWrapperConstructor
from timm.optim import param_groups_layer_decay
from torch import nn

from vitzoo.arguments import as_type
from vitzoo.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayConstructor(DefaultOptimWrapperConstructor):
    """`optim_wrapper=dict(constructor='vitzoo.LayerDecayConstructor', paramwise_cfg=dict(layer_decay=0.8), optimizer=...)`.

    The learning rate of a timm model's blocks falls by the factor `layer_decay` a block from the last to the stem, as its `group_matcher`
    numbers them; necks and heads have the full one. Biases, norms and other vectors, and what a model lists in `no_weight_decay()`, have
    no weight decay. `layer_decay=1.0` leaves that rule alone.
    """

    def add_params(self, params: list[dict], module: nn.Module, **kwargs) -> None:
        layer_decay = as_type('layer_decay', self.paramwise_cfg.get('layer_decay', 1.0), float)
        unknown = set(self.paramwise_cfg) - {'layer_decay'}
        if unknown or not 0 < layer_decay <= 1:
            raise ValueError(f'paramwise_cfg holds layer_decay, above 0 and up to 1, got {self.paramwise_cfg}')
        taken = set()
        for part in module.modules():
            if hasattr(part, 'group_matcher') and not taken & {id(p) for p in part.parameters()}:
                groups = param_groups_layer_decay(
                    part, self.base_wd, getattr(part, 'no_weight_decay', set)(), layer_decay=layer_decay)
                params += [dict(params=group['params'], lr=self.base_lr * group['lr_scale'], weight_decay=group['weight_decay'])
                           for group in groups]
                taken |= {id(p) for p in part.parameters()}
        if layer_decay < 1 and not taken:
            raise ValueError(f'layer_decay={layer_decay} needs a timm model with a group_matcher inside {type(module).__name__}')
        others = [p for p in module.parameters() if p.requires_grad and id(p) not in taken]
        for weight_decay, group in ((self.base_wd, [p for p in others if p.ndim > 1]), (0., [p for p in others if p.ndim <= 1])):
            if group:
                params.append(dict(params=group, lr=self.base_lr, weight_decay=weight_decay))
