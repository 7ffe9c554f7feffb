"""From a config file to a config that runs on this machine: what every entry point does first."""
import importlib.util
import inspect
import os
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from vitzoo.dense import DenseBackbone

from .classification import Classifier
from .own_data import check_data, set_data
from .schedules import check_schedules, scale_lowest_rates
from .shipped import CONFIGS
from .whole import check_load_from


def set_backbone(cfg: Config, backbone: str | os.PathLike, **model_kwargs) -> Config:
    """Put another model into a config, in place: another backbone, with the channels of neck or heads fitted to it, or another classifier.

    Args:
        cfg: of a detector or segmentor, whose backbone may be anybody's, or of a `vitzoo.Classifier`.
        backbone: name of a model, any of timm's and ours that `DenseBackbone` takes, or a file as in `configs/_base_/backbones`, whose
            `detection`, `segmentation` or `classification` is the name with its options. Of a file that lacks the one that suits the config
            the name alone is taken.
        model_kwargs: go to `vitzoo.Backbone` or `vitzoo.Classifier`, in the place of a file's. Of what the config says of its former model,
            only the wanted levels and, of a classifier, what is not the model's own (number of classes, label smoothing, ...) stay.

    Raises:
        ValueError: no backbone to replace, a file that describes none, or a neck or head that takes another number of maps than there are
            levels.
    """
    model = cfg.model
    if model.get('type') == 'vitzoo.Classifier':
        keep = {'type', 'num_classes', 'in_chans', *inspect.signature(Classifier).parameters} - {'checkpoint_path'}
        kept = {key: value for key, value in model.items() if key in keep}
        cfg.model = {**kept, **_read_backbone(backbone, 'classification'), **model_kwargs}
        return cfg
    if not model.get('backbone'):
        raise ValueError(f'a model of type {model.get("type")!r} has no backbone; expected a detector, a segmentor or vitzoo.Classifier')
    task = 'segmentation' if model.get('decode_head') else 'detection'
    options = {'out_indices': tuple(model.backbone.get('out_indices', (0, 1, 2, 3))), **_read_backbone(backbone, task), **model_kwargs}
    with torch.device('meta'):
        weightless = {key: value for key, value in options.items() if key not in ('pretrained', 'checkpoint_path', 'init_cfg')}
        channels = DenseBackbone(**weightless).out_channels
    for name in ['neck'] if model.get('neck') else ['decode_head', 'auxiliary_head', 'panoptic_head', 'bbox_head', 'rpn_head']:
        part = model.get(name) or []
        for module in (part[:1] if name == 'neck' else part) if isinstance(part, list) else [part]:
            _fit_in_channels(module, list(channels), name)
    model.backbone = dict(type='vitzoo.Backbone', **options)
    return cfg


def _is_file(backbone: str | os.PathLike) -> bool:
    return Path(backbone).suffix == '.py'


def _read_backbone(backbone: str | os.PathLike, task: str) -> dict:
    """`model_name` and, from a file, the options that the model has in this task."""
    if not _is_file(backbone):
        return dict(model_name=backbone)
    if not Path(backbone).is_file():
        raise ValueError(f'{backbone} is no file; expected the name of a model, or a file as in {CONFIGS / "_base_" / "backbones"}')
    content = Config.fromfile(backbone)
    tasks = {name: content[name] for name in ('detection', 'segmentation', 'classification') if name in content}
    if not tasks or not all(options.get('model_name') for options in tasks.values()):
        raise ValueError(f'{backbone} describes no backbone: expected detection, segmentation or classification, each a dict with a '
                         'model_name')
    return dict(tasks[task]) if task in tasks else dict(model_name=next(iter(tasks.values())).model_name)


def _fit_in_channels(module: ConfigDict, channels: list[int], name: str) -> None:
    """Of a neck or head that takes maps of the backbone."""
    old, index = module.get('in_channels'), module.get('in_index')
    if isinstance(old, int):
        module.in_channels = channels[-1 if index is None else index]
        if module.get('num_convs') == 0 and module.get('channels') == old:  # MMSegmentation's linear layer: nothing between
            module.channels = module.in_channels
    elif old is not None:
        if len(old) != len(index or channels):
            raise ValueError(f'{name} takes {len(old)} maps, the backbone gives {len(channels)}; set out_indices or in_channels to fit')
        module.in_channels = [channels[i] for i in index or range(len(channels))]


def setup(
        config: str | os.PathLike | Config,
        *,
        backbone: str | os.PathLike | None = None,
        cfg_options: dict | None = None,
        work_dir: str | os.PathLike | None = None,
        launcher: str = 'none',
        seed: int | None = None,
        amp: bool = False,
        auto_scale_lr: bool = False,
        load_from: str | os.PathLike | None = None,
) -> Config:
    """Read a config, put own data in, apply overrides and fit it to this machine. `Runner.from_cfg` takes the result.

    `own_data = dict(classes=..., train=..., val=...)` in a config goes to `set_data`.

    Without a GPU: plain instead of mixed precision, plain instead of synchronised batch norm, and, with a launcher, gloo instead of NCCL;
    the process group is then made here, since mmengine would ask for a GPU.

    Args:
        config: path, or a Config to be changed in place.
        backbone: model to put in, a name or a file, see `set_backbone`; overrides come after it.
        cfg_options: dotted names to values ('train_cfg.max_iters': 100).
        work_dir: for logs and checkpoints; else the config's own, else work_dirs/ and the name of the config (and of `backbone`).
        launcher: 'none', or 'pytorch' under torchrun ('slurm' and 'mpi' with GPUs).
        seed: else the config's own, else 0, so that a resumed run sees the data in the order of the first.
        amp: train in mixed precision.
        auto_scale_lr: fit the learning rate to the batch, in proportion to the `auto_scale_lr.base_batch_size` of the config. Where this is
            on, here or in the config, the lowest rates of its schedules (`eta_min`) follow, which mmengine would leave.
        load_from: file to take the weights of a whole model from, before training; instead of the config's own.

    Raises:
        ImportError: setuptools is too new for mmengine.
        ValueError: class names that differ from the number of classes or from the files, see `check_data`; a launcher that needs GPUs; an
            optimizer that has no mixed precision; no batch that the learning rate is meant for; a schedule that begins when training is
            over, or whose lowest rate cannot follow; a `load_from` without anything for neck and heads (that of the config if it is a file,
            the one given here always).
    """
    if importlib.util.find_spec('pkg_resources') is None:
        raise ImportError("mmengine finds configs such as 'mmdet::...' through pkg_resources, which setuptools dropped in version 82 and "
                          'new virtual environments lack: pip install "setuptools<82"')
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    if backbone is not None:
        set_backbone(cfg, backbone)
    options = cfg_options or {}
    cfg.merge_from_dict({name: value for name, value in options.items() if name.split('.')[0] == 'own_data'})
    if own_data := cfg.pop('own_data', None):
        try:
            set_data(cfg, **own_data)
        except TypeError as e:  # Python's, of names that are missing or unknown
            raise ValueError(f'own_data: {e}; expected classes, train, val and, where wanted, test, image_suffix, map_suffix') from e
    cfg.merge_from_dict({name: value for name, value in options.items() if name.split('.')[0] != 'own_data'})
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        parts = [Path(cfg.filename).stem]
        if backbone is not None:
            parts.append(Path(backbone).stem if _is_file(backbone) else backbone)
        cfg.work_dir = str(Path('work_dirs', '-'.join(parts)))
    randomness = dict(cfg.get('randomness') or {})
    cfg.randomness = dict(randomness, seed=randomness.get('seed') or 0 if seed is None else seed)
    cfg.launcher = launcher
    num_images = check_data(cfg)
    if amp:
        _use_mixed_precision(cfg)
    if auto_scale_lr:
        _enable_auto_scale(cfg)
    if (cfg.get('auto_scale_lr') or {}).get('enable'):
        scale_lowest_rates(cfg)
    check_schedules(cfg, num_images)
    if load_from is not None:
        cfg.load_from = str(load_from)
    if load_from is not None or os.path.isfile(cfg.get('load_from') or ''):  # whoever does not train need not have the file
        check_load_from(cfg)
    if not torch.cuda.is_available():
        _fit_to_cpu(cfg)
    return cfg


def _use_mixed_precision(cfg: Config) -> None:
    wrapper = cfg.get('optim_wrapper') or {}
    if wrapper.get('type', 'OptimWrapper') not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(f'amp: the optim_wrapper of the config is of type {wrapper.type!r}; expected OptimWrapper or AmpOptimWrapper')
    cfg.merge_from_dict({'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': wrapper.get('loss_scale', 'dynamic')})


def _enable_auto_scale(cfg: Config) -> None:
    if not (cfg.get('auto_scale_lr') or {}).get('base_batch_size'):
        raise ValueError('auto_scale_lr: the config does not say for how many images a step its learning rate is meant; set '
                         'auto_scale_lr.base_batch_size to that')
    cfg.auto_scale_lr.enable = True


def _fit_to_cpu(cfg: Config) -> None:
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if optim_wrapper.get('type') == 'AmpOptimWrapper':
        optim_wrapper.type = 'OptimWrapper'
        for name in ('dtype', 'loss_scale', 'use_fp16'):
            optim_wrapper.pop(name, None)
        print_log('No GPU: training in plain float32 instead of the mixed precision of the config', 'current')
    if cfg.launcher == 'none':
        return  # mmengine reverts synchronised batch norm by itself
    if cfg.launcher != 'pytorch':
        raise ValueError(f"launcher={cfg.launcher!r} needs GPUs, and none was found; use torchrun and 'pytorch'")
    _replace_sync_batch_norm(cfg.model)
    cfg.pop('sync_bn', None)
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
