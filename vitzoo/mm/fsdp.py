"""Fully sharded data parallel training: each process keeps a share of the weights, their gradients and the optimizer's state."""
import torch
from mmengine._strategy import DDPStrategy
from mmengine.device import get_device
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from vitzoo.arguments import check_types
from vitzoo.registry import STRATEGIES

__all__ = ['FSDPStrategy']


@STRATEGIES.register_module()
class FSDPStrategy(DDPStrategy):
    """`runner_type='FlexibleRunner', strategy=dict(type='vitzoo.FSDPStrategy')` in a config that is run by several processes.

    PyTorch's `fully_shard`: every block (a child of a module called `blocks`, as in our models and timm's) is gathered when it is used,
    what remains with the whole. It keeps names and shapes of parameters, so that optimizer constructors see what they see without it, and
    it runs on CPUs; mmengine's own FSDPStrategy, on PyTorch's first generation, flattens parameters and stops at
    "FSDP needs a non-CPU accelerator device".

    A checkpoint is one file as of mmengine's Runner, with whole weights under their own names. The optimizer's state is stored by parameter
    name: training resumes from it with FSDP alone, on any number of processes. EMAHook copies the model, which sharded ones refuse.

    Args:
        reshard_after_forward: free a block's weights again until the backward pass; False gathers half as often and needs more memory.
        kwargs: go to mmengine's DDPStrategy (`sync_bn`, ...).
    """

    @check_types
    def __init__(self, *, reshard_after_forward: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.reshard_after_forward = reshard_after_forward

    def _wrap_model(self, model: nn.Module) -> nn.Module:
        if not torch.distributed.is_initialized():
            raise ValueError("FSDPStrategy shares a model among processes, got launcher='none'; start with tools/dist_train.sh or torchrun "
                             "and --launcher pytorch")
        device = torch.device(get_device())
        model = self.convert_model(model.to(device))
        for tensor in [*model.parameters(), *model.buffers()]:
            torch.distributed.broadcast(tensor.data, src=0)  # all start as the first
        mesh = init_device_mesh(device.type, (self.world_size,))
        for name, holder in list(model.named_modules()):
            if name.rpartition('.')[2] == 'blocks':
                for block in holder.children():
                    fully_shard(block, mesh=mesh, reshard_after_forward=self.reshard_after_forward)
        return fully_shard(model, mesh=mesh, reshard_after_forward=self.reshard_after_forward)

    def save_checkpoint(self, filename: str, **kwargs) -> None:
        """All processes give their shares, the first one writes.

        Buffers (running statistics) are each process's own; all go on with the first one's, as training that resumes from the file does.
        """
        for buffer in self.model.buffers():
            torch.distributed.broadcast(buffer, src=0)
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        self._gathered = (get_model_state_dict(self.model, options=whole),
                          get_optimizer_state_dict(self.model, self.optim_wrapper.optimizer, options=whole))
        super().save_checkpoint(filename, **kwargs)
        del self._gathered

    def model_state_dict(self) -> dict:
        return self._gathered[0]

    def optim_state_dict(self) -> dict:
        return {**self.optim_wrapper.state_dict(), **self._gathered[1]}  # with what the wrapper adds, such as a loss scale

    def load_model_state_dict(self, state_dict: dict, *, strict: bool = False, revise_keys: list | None = None) -> None:
        state_dict = {name.removeprefix('module.'): value for name, value in state_dict.items()}
        set_model_state_dict(self.model, state_dict, options=StateDictOptions(full_state_dict=True, strict=strict))

    def load_optim_state_dict(self, state_dict: dict) -> None:
        optimizer = self.optim_wrapper.optimizer
        by_name = {key: state_dict[key] for key in ('state', 'param_groups')}
        if not all(isinstance(name, str) for name in by_name['state']):
            raise ValueError('the optimizer state in this checkpoint was saved without FSDP; resume as it was trained, or start from its '
                             'weights with load_from')
        set_optimizer_state_dict(self.model, optimizer, by_name, options=StateDictOptions(full_state_dict=True))
        self.optim_wrapper.load_state_dict({**state_dict, **optimizer.state_dict()})
