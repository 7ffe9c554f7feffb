"""From a config file to a config that runs on this machine: what every entry point does first."""
import importlib.util
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict

import vitzoo

CONFIGS = Path(vitzoo.__file__).parents[1] / 'configs'


def config_path(name: str) -> Path:
    """The shipped config of that name, such as 'detection/mask-rcnn_svit_micro_digits'; ValueError with the names there are otherwise."""
    path = CONFIGS / (name if name.endswith('.py') else f'{name}.py')
    if not path.is_file():
        names = sorted(p.relative_to(CONFIGS).with_suffix('').as_posix() for p in CONFIGS.glob('[!_]*/*.py'))
        raise ValueError(f'no config {name!r}; there are {", ".join(names)}' if names else
                         f'{CONFIGS} does not exist: the configs come with a clone of the repository, not with the installed package')
    return path


def setup(
        config: str | os.PathLike | Config,
        *,
        cfg_options: dict | None = None,
        work_dir: str | os.PathLike | None = None,
        launcher: str = 'none',
        seed: int | None = None,
) -> Config:
    """Read a config, apply overrides and fit it to this machine. `Runner.from_cfg` takes the result.

    Without a GPU: plain instead of mixed precision, plain instead of synchronised batch norm, and, with a launcher, gloo instead of NCCL;
    the process group is then made here, since mmengine would ask for a GPU.

    Args:
        config: path, or a Config to be changed in place.
        cfg_options: dotted names to values ('train_cfg.max_iters': 100).
        work_dir: for logs and checkpoints; else the config's own, else work_dirs/ and the config's name.
        launcher: 'none', or 'pytorch' under torchrun ('slurm' and 'mpi' with GPUs).

    Raises:
        ImportError: setuptools is too new for mmengine.
        ValueError: a launcher that needs GPUs.
    """
    if importlib.util.find_spec('pkg_resources') is None:
        raise ImportError("mmengine finds configs such as 'mmdet::...' through pkg_resources, which setuptools dropped in version 82 and "
                          'new virtual environments lack: pip install "setuptools<82"')
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    cfg.merge_from_dict(cfg_options or {})
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(cfg.filename).stem))
    if seed is not None:
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    cfg.launcher = launcher
    if not torch.cuda.is_available():
        _fit_to_cpu(cfg)
    return cfg


def _fit_to_cpu(cfg: Config) -> None:
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if optim_wrapper.get('type') == 'AmpOptimWrapper':
        optim_wrapper.type = 'OptimWrapper'
        for name in ('dtype', 'loss_scale', 'use_fp16'):
            optim_wrapper.pop(name, None)
    if cfg.launcher == 'none':
        return  # mmengine reverts synchronised batch norm by itself
    if cfg.launcher != 'pytorch':
        raise ValueError(f"launcher={cfg.launcher!r} needs GPUs, and none was found; use torchrun and 'pytorch'")
    _replace_sync_batch_norm(cfg.model)
    cfg.env_cfg = cfg.get('env_cfg') or {}
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel', 'broadcast_buffers': False, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')


def _replace_sync_batch_norm(cfg) -> None:
    if isinstance(cfg, ConfigDict) and cfg.get('type') == 'SyncBN':
        cfg.type = 'BN'
    for value in cfg.values() if isinstance(cfg, dict) else cfg if isinstance(cfg, list | tuple) else ():
        _replace_sync_batch_norm(value)
