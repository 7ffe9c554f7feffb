"""The training of one row. `python -m benchmarks.dense.train MODEL TASK SEED WORK_DIR CSV ITERATIONS` is the process of one."""
import contextlib
import json
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from .plan import MODELS, SCENE, TASKS, Key
from .rows import append_row, is_tested, read_rows, row_key


def row_config(model: str, task: str, *, seed: int = 0, work_dir: str | Path | None = None, iterations: int | None = None):
    """The config of a row, ready for the Runner; `iterations` other than the task's."""
    from mmengine.config import Config

    from vitzoo.mm import config_path, set_backbone, setup
    cfg = set_backbone(Config.fromfile(config_path(TASKS[task].config)), MODELS[model])
    if iterations is None:
        iterations = TASKS[task].iterations
    cfg = setup(cfg, work_dir=work_dir, seed=seed, cfg_options={} if iterations is None else {'train_cfg.max_iters': iterations})
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook.type != 'vitzoo.ProgressBarHook']
    cfg.default_hooks.checkpoint = dict(
        type='CheckpointHook', by_epoch=False, interval=cfg.train_cfg.max_iters, save_optimizer=False, save_param_scheduler=False)
    return cfg


def cost(model: str, task: str) -> dict[str, int | str]:
    """Parameters and multiply-adds of the backbone on a scene or, for classification, of the classifier on a crop."""
    import torch

    from vitzoo import registry
    from vitzoo.dense import DenseBackbone
    from vitzoo.profiling import count_macs, on_meta
    cfg = row_config(model, task)
    if task == 'classification':
        size, module = (cfg.train_dataloader.dataset.input_size,) * 2, registry.MODELS.build(cfg.model).model
    else:
        size, module = SCENE, DenseBackbone(**{key: value for key, value in cfg.model.backbone.items() if key != 'type'})
    return {'params': sum(p.numel() for p in module.parameters()), 'input': 'x'.join(map(str, size)),
            'macs': count_macs(on_meta(module), torch.empty(1, 3, *size, device='meta'))}


def weights_of(work_dir: str | Path, iterations: int) -> Path:
    """Where a row of that many iterations has left its weights."""
    return Path(work_dir) / f'iter_{iterations}.pth'


def _figures(task: str, metrics: dict, prefix: str = '') -> dict[str, float]:
    """Columns of the CSV from an evaluation; where nothing at all was found, that of detectors has no figures."""
    return {prefix + column: round(float(metrics.get(name, 0)), 4) for column, name in TASKS[task].metrics.items()}


def test_row(row: dict, work_dir: Path) -> dict:
    """A finished row with the figures of the test part as well, from the weights that its training left."""
    from mmengine.runner import Runner
    model, task, seed = row_key(row)
    iterations = int(row['iterations'])
    cfg = row_config(model, task, seed=seed, work_dir=work_dir / 'test', iterations=iterations)
    cfg.experiment_name = '-'.join([model, task, str(seed), 'test'])
    cfg.load_from = str(weights_of(work_dir, iterations))
    return {**row, **_figures(task, Runner.from_cfg(cfg).test(), 'test_')}


def train_row(key: Key, work_dir: Path, iterations: int | None, advance: Callable[[int], None]) -> dict:
    """Train, and evaluate on the validation and the test part.

    `advance` is told how many iterations are done. DIGIT_SCENES says where the data is.
    """
    import torch
    from mmengine.hooks import Hook
    from mmengine.runner import Runner

    class Watch(Hook):
        """Takes the times of training alone, and keeps the metrics."""
        priority = 'VERY_LOW'

        def before_train(self, runner):
            self.start = time.process_time(), time.perf_counter()

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            advance(runner.iter + 1)

        def before_val(self, runner):
            self.seconds = [now - then for now, then in zip((time.process_time(), time.perf_counter()), self.start, strict=True)]

        def after_val_epoch(self, runner, metrics=None):
            self.metrics = metrics

    model, task, seed = key
    shutil.rmtree(work_dir, ignore_errors=True)
    cfg = row_config(model, task, seed=seed, work_dir=work_dir, iterations=iterations)
    cfg.experiment_name = '-'.join([model, task, str(seed)])
    runner, watch = Runner.from_cfg(cfg), Watch()
    if task != 'classification':  # heads of many convolutions, which are quicker in this order on CPUs
        runner.model.to(memory_format=torch.channels_last)
    runner.register_hook(watch)
    runner.train()
    metrics = {**_figures(task, watch.metrics), **_figures(task, runner.test(), 'test_')}
    return {'model': model, 'task': task, 'seed': seed, **metrics, **cost(model, task),
            'total_params': sum(p.numel() for p in runner.model.parameters()), 'iterations': runner.max_iters,
            'batch': cfg.train_dataloader.batch_size, 'cpu_seconds': round(watch.seconds[0], 1), 'wall_seconds': round(watch.seconds[1], 1),
            **{name: version(name) for name in ('vitzoo', 'torch', 'timm')}}


def main(model: str, task: str, seed: str, work_dir: str, path: str, iterations: str) -> None:
    """One row in a process of its own: iterations done go to stdout, a line each; all else to stderr.

    A row that is there already lacks the test part alone.
    """
    import torch
    warnings.simplefilter('ignore')
    torch.set_flush_denormal(True)  # the masked attention weights of timm's Swin are subnormal, which is slow on CPUs
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        key, work_dir = (model, task, int(seed)), Path(work_dir)
        there = next((row for row in read_rows(path) if row_key(row) == key and not is_tested(row)), None)
        append_row(path, test_row(there, work_dir) if there else
                   train_row(key, work_dir, json.loads(iterations), lambda done: print(done, file=stdout, flush=True)))


if __name__ == '__main__':
    main(*sys.argv[1:])
