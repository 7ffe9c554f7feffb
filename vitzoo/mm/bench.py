"""The dense bench: micro backbones at equal budget on digit scenes, one row of a CSV a (model, task, seed).

`run` trains what is missing, each row in a process of its own (`python -m vitzoo.mm.bench MODEL TASK SEED ...`), and `report` turns the
rows into tables and a plot. All models of a task share one recipe: the shipped micro config, in which `set_backbone` puts another model.
"""
import contextlib
import csv
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

from vitzoo.extras import require
from vitzoo_runtime.files import replacing

SCENE = (128, 160)
# What the bench calls a model: what it is built from. Swin and ResNet are timm's, narrowed to the multiply-adds of svit_micro.
MODELS: dict[str, tuple[str, dict]] = {
    'svit_micro': ('svit_micro', {}),
    'stvit_micro': ('stvit_micro', {}),
    'biformer_micro': ('biformer_micro', {}),
    'vz_davit_micro': ('vz_davit_micro', {}),
    'lookupvit_micro': ('lookupvit_micro', dict(img_size=SCENE, compressed_size=(8, 10))),  # of a scene's 16x20 lookup tokens
    'timm_swin': ('swin_tiny_patch4_window7_224', dict(embed_dim=24, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8))),
    'timm_resnet': ('resnet18', dict(layers=(2, 2, 2, 2), channels=(24, 48, 88, 144), stem_type='deep', stem_width=16)),
}
FAMILIES = tuple(name for name in MODELS if not name.startswith('timm_'))
BASELINE = 'timm_resnet'


@dataclass(frozen=True)
class Task:
    """`metrics`: column of the CSV to name in the Runner's evaluation; the first is the one that is drawn and has to reach `bar`.

    `iterations`: None for the recipe's.
    """
    config: str
    title: str
    metrics: dict[str, str]
    bar: float
    digits: int
    iterations: int | None = None


TASKS = {
    'detection': Task('detection/mask-rcnn_svit_micro_digits', 'Mask R-CNN, box mAP50',
                      {'box_mAP50': 'coco/bbox_mAP_50', 'box_mAP': 'coco/bbox_mAP', 'mask_mAP': 'coco/segm_mAP'}, 0.7, 3,
                      iterations=700),  # the recipe's 800 would bring a seed of all rows to an hour on two cores
    'segmentation': Task('segmentation/upernet_svit_micro_digits', 'UPerNet, mIoU %', {'mIoU': 'mIoU'}, 45, 1),
    'classification': Task('classification/svit_micro_digits', 'classification, top-1 %', {'top1': 'top1'}, 90, 1,
                           iterations=1600),  # the recipe's 1300 keep svit_micro under three minutes; others learn more slowly
}
METRICS = [metric for task in TASKS.values() for metric in task.metrics]
# params and macs are those of the backbone on a scene, or of the classifier on a crop: `input` says which
COLUMNS = ['model', 'task', 'seed', *METRICS, 'params', 'macs', 'input', 'total_params', 'iterations', 'batch', 'cpu_seconds',
           'wall_seconds', 'vitzoo', 'torch', 'timm']
Key = tuple[str, str, int]
START, END = '<!-- results -->', '<!-- end of results -->'


# ---- rows -------------------------------------------------------------------------------------------------------------------------------

def read_rows(path: str | Path) -> list[dict[str, str]]:
    """Rows of the CSV, as text; none if there is no file. ValueError if its columns are others."""
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames != COLUMNS:
        raise ValueError(f'{path} has the columns {reader.fieldnames}, expected {COLUMNS}; move it away or choose another file')
    return rows


def row_key(row: dict) -> Key:
    return row['model'], row['task'], int(row['seed'])


def append_row(path: str | Path, row: dict) -> None:
    """Add a row, in the place of one with the same key. Several processes may do so at once; readers see a whole file at any time."""
    import fcntl
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f'.{path.name}.lock').open('w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released with the process, however it ends
        rows = [r for r in read_rows(path) if row_key(r) != row_key(row)] + [row]
        with replacing(path) as temporary, temporary.open('w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
            writer.writeheader()
            writer.writerows(rows)


def select(models: Sequence[str] = (), tasks: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Key]:
    """The rows of that choice, seed by seed; nothing chosen means all models, all tasks, seeds 0 to 2. ValueError for an unknown name."""
    for what, chosen, there in ('models', models, MODELS), ('tasks', tasks, TASKS):
        if unknown := [name for name in chosen if name not in there]:
            raise ValueError(f'{what}: {", ".join(map(repr, unknown))} unknown; expected some of {", ".join(map(repr, there))}')
    if any(seed < 0 for seed in seeds):
        raise ValueError(f'seeds: expected integers from 0 on, got {list(seeds)}')
    keys = itertools.product(dict.fromkeys(seeds or range(3)), dict.fromkeys(models or MODELS), dict.fromkeys(tasks or TASKS))
    return [(model, task, seed) for seed, model, task in keys]


# ---- training ---------------------------------------------------------------------------------------------------------------------------

def row_config(model: str, task: str, *, seed: int = 0, work_dir: str | Path | None = None, iterations: int | None = None):
    """The config of a row, ready for the Runner; `iterations` other than the task's."""
    from mmengine.config import Config

    from .config import config_path, set_backbone, setup
    name, kwargs = MODELS[model]
    cfg = Config.fromfile(config_path(TASKS[task].config))
    if task == 'classification':  # where maps are smaller
        kwargs = {key: value for key, value in kwargs.items() if key != 'compressed_size'}
        if name.startswith(('swin', 'lookupvit')):  # built for one size: timm's Swin cuts its windows to it, LookupViT has a table
            kwargs['img_size'] = cfg.train_dataloader.dataset.input_size
    set_backbone(cfg, name, **kwargs)
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


def train_row(key: Key, work_dir: Path, iterations: int | None, advance: Callable[[int], None]) -> dict:
    """Train and evaluate; `advance` is told how many iterations are done. DIGIT_SCENES says where the data is."""
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
    # where nothing at all was found, the evaluation of detectors has no figures
    metrics = {column: round(float(watch.metrics.get(name, 0)), 4) for column, name in TASKS[task].metrics.items()}
    return {'model': model, 'task': task, 'seed': seed, **metrics, **cost(model, task),
            'total_params': sum(p.numel() for p in runner.model.parameters()), 'iterations': runner.max_iters,
            'batch': cfg.train_dataloader.batch_size, 'cpu_seconds': round(watch.seconds[0], 1), 'wall_seconds': round(watch.seconds[1], 1),
            **{name: version(name) for name in ('vitzoo', 'torch', 'timm')}}


def _child(model: str, task: str, seed: str, work_dir: str, path: str, iterations: str) -> None:
    """One row in a process of its own: iterations done go to stdout, a line each; all else to stderr."""
    import torch
    warnings.simplefilter('ignore')
    torch.set_flush_denormal(True)  # the masked attention weights of timm's Swin are subnormal, which is slow on CPUs
    stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        row = train_row((model, task, int(seed)), Path(work_dir), json.loads(iterations), lambda done: print(done, file=stdout, flush=True))
        append_row(path, row)


def _run_child(key: Key, work_dir: Path, path: Path, iterations: int | None, advance: Callable[[int], None]) -> None:
    """Run one row and wait for it. RuntimeError if it fails."""
    model, task, seed = key
    log = work_dir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = {name: '1' for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
    # glibc gives the activations' memory back after each iteration and faults it in anew in the next, unless told to keep it
    keep = {'MALLOC_MMAP_THRESHOLD_': str(1 << 30), 'MALLOC_TRIM_THRESHOLD_': str(1 << 32), 'MALLOC_TOP_PAD_': str(1 << 26)}
    command = [sys.executable, '-m', 'vitzoo.mm.bench', model, task, str(seed), str(work_dir), str(path), json.dumps(iterations)]
    with log.open('w', encoding='utf-8') as stream, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env={**os.environ, **threads, **keep}) as process:
        for line in process.stdout:
            advance(int(line))
    if process.returncode:
        last = log.read_text(encoding='utf-8').strip().splitlines() or ['']
        raise RuntimeError(f'exit code {process.returncode}, {last[-1][:200]} ({log})')


def run(keys: Iterable[Key], path: str | Path, *, data: str | Path, out: str | Path, jobs: int | None = None, iterations: int | None = None,
        preset: str = 'standard', run_row: Callable = _run_child) -> dict[Key, str]:
    """Train the rows that the CSV lacks, `jobs` at a time (default: a process a core) with one thread each.

    Args:
        keys: what `select` gives.
        path: the CSV.
        data: folder of the digit scenes; built if needed.
        out: folder for logs and weights.
        iterations: other than the tasks' (the rows then belong into a file of their own).
        preset: of the digit scenes.
        run_row: stands for the process of a row in tests.

    Returns:
        Of the rows that failed, why.

    Raises:
        ValueError: the CSV is no such table, or has a wanted row of another number of iterations.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from vitzoo.datasets import digit_scenes

    path, out = Path(path).resolve(), Path(out).resolve()
    keys = list(keys)
    if jobs is not None and jobs < 1:
        raise ValueError(f'jobs={jobs}: expected at least 1')
    budget = {task: row_config('svit_micro', task, iterations=iterations).train_cfg.max_iters for task in {task for _, task, _ in keys}}
    there = {row_key(row): int(row['iterations']) for row in read_rows(path)}
    for key in keys:
        if there.get(key, budget[key[1]]) != budget[key[1]]:
            raise ValueError(f'{path} has {key} after {there[key]} iterations, and {budget[key[1]]} were asked for: delete the row, or '
                             'choose another file')
    todo, failures = [key for key in keys if key not in there], {}
    console = Console(stderr=True)
    console.print(f'{len(keys)} rows, {len(keys) - len(todo)} of them finished')
    if not todo:
        return failures
    os.environ['DIGIT_SCENES'] = str(digit_scenes.build(data, preset).root.resolve())

    columns = TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    # an iteration counts as a share of its row: those of one task take much longer than those of another
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=1800) as progress:
        bar = progress.add_task('rows', total=len(todo))
        shares = dict.fromkeys(todo, 0.)

        def advance(key, share):
            shares[key] = share
            progress.update(bar, completed=sum(shares.values()), description=f'{sum(s == 1 for s in shares.values())}/{len(todo)} rows')

        def work(key):
            start, name = time.perf_counter(), ', '.join(map(str, key))
            try:
                run_row(key, out / f'{key[0]}-{key[1]}-{key[2]}', path, iterations,
                        lambda done: advance(key, min(done / budget[key[1]], 0.99)))
            except Exception as e:  # the others go on
                failures[key] = f'{type(e).__name__}: {e}'
                console.print(f'FAILED {name}: {failures[key]}', markup=False, soft_wrap=True)
            else:
                console.print(f'{name}: {_summary(path, key)} in {time.perf_counter() - start:.0f} s', markup=False, soft_wrap=True)
            advance(key, 1)

        with ThreadPoolExecutor(jobs or os.cpu_count() or 1) as pool:
            list(pool.map(work, todo))
    return failures


def _summary(path: Path, key: Key) -> str:
    row = next(row for row in read_rows(path) if row_key(row) == key)
    return ', '.join(f'{name} {row[name]}' for name in METRICS if row[name])


# ---- report -----------------------------------------------------------------------------------------------------------------------------

def summarise(rows: Iterable[dict[str, str]]) -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """(model, task) to column to median, lowest and highest over the seeds, in the order of `MODELS` and `TASKS`."""
    rows, result = list(rows), {}
    for model, task in itertools.product(MODELS, TASKS):
        mine = [row for row in rows if (row['model'], row['task']) == (model, task)]
        if mine:
            values = {name: [float(row[name]) for row in mine] for name in (*TASKS[task].metrics, 'params', 'macs', 'cpu_seconds')}
            result[model, task] = {name: (median(v), min(v), max(v)) for name, v in values.items()}
            result[model, task]['seeds'] = (len(mine),) * 3
    return result


def table(rows: Iterable[dict[str, str]]) -> str:
    """The results in Markdown: median [lowest, highest] over the seeds, bold where the best median is; one table a task."""
    summary, lines = summarise(rows), []
    for task, spec in TASKS.items():
        models = [model for model in MODELS if (model, task) in summary]
        if not models:
            continue
        what = 'classifier' if task == 'classification' else 'backbone'
        names = ' | '.join(name.replace('_', ' ') for name in spec.metrics)
        lines += [f'**{spec.title}** (bar: {spec.bar:g})', '',
                  f'| model | {names} | seeds | {what} parameters, M | {what} MACs, M | CPU seconds |',
                  f'| --- |{" ---: |" * (len(spec.metrics) + 4)}']
        best = {name: max(summary[model, task][name][0] for model in models) for name in spec.metrics}
        for model in models:
            s = summary[model, task]
            cells = []
            for name in spec.metrics:
                middle, low, high = (f'{v:.{spec.digits}f}' for v in s[name])
                cells.append((f'**{middle}**' if s[name][0] == best[name] else middle) + (f' [{low}, {high}]' if s['seeds'][0] > 1 else ''))
            lines.append(f'| {model} | {" | ".join(cells)} | {s["seeds"][0]:g} | {s["params"][0] / 1e6:.2f} | {s["macs"][0] / 1e6:.1f} | '
                         f'{s["cpu_seconds"][0]:.0f} |')
        lines.append('')
    return '\n'.join(lines)


def verdict(rows: Iterable[dict[str, str]]) -> list[str]:
    """What the bars say, a sentence each; the first word is 'holds', 'fails' or 'open' (not all families have rows)."""
    summary, sentences, wins = summarise(rows), [], []
    for task, spec in TASKS.items():
        metric = next(iter(spec.metrics))
        medians = {model: summary[model, task][metric][0] for model in MODELS if (model, task) in summary}
        low = [f'{model} {medians[model]:.{spec.digits}f}' for model in FAMILIES if model in medians and medians[model] < spec.bar]
        state = 'fails' if low else 'holds' if set(FAMILIES) <= set(medians) else 'open'
        sentences.append(f'{state}: {spec.title} of every family at least {spec.bar:g}' + (f' ({", ".join(low)})' if low else ''))
        wins += [f'{model} in {task}' for model in FAMILIES if medians.get(model, -1) > medians.get(BASELINE, 1e9)]
    sentences.append(f'{"holds" if wins else "open"}: a family above {BASELINE} ({", ".join(wins) or "none so far"})')
    return sentences


def report(path: str | Path, page: str | Path, picture: str | Path) -> list[str]:
    """Write the tables between the markers of a Markdown page (made if there is none) and draw quality against MACs; gives `verdict`.

    Raises ValueError if there is no row, or if the page has no markers.
    """
    from vitzoo.viz.pareto import Point, draw_pareto
    rows, page = read_rows(path), Path(page)
    if not rows:
        raise ValueError(f'{path} has no rows; train some first')
    text = page.read_text(encoding='utf-8') if page.exists() else f'{START}\n{END}\n'
    if not 0 <= text.find(START) < text.find(END):
        raise ValueError(f'{page} has no {START} followed by {END} to write the tables between')
    before, after = text[:text.index(START)], text[text.index(END):]
    with replacing(page) as temporary:
        temporary.write_text(f'{before}{START}\n\n{table(rows)}\n{after}', encoding='utf-8')
    summary, panels = summarise(rows), {}
    for task, spec in TASKS.items():
        metric = next(iter(spec.metrics))
        points = [Point(model, summary[model, task]['macs'][0] / 1e6, *summary[model, task][metric])
                  for model in MODELS if (model, task) in summary]
        size = next((row['input'] for row in rows if row['task'] == task), None)
        if points:
            panels[spec.title, f'MACs of the {"classifier" if task == "classification" else "backbone"} at {size}, M'] = points, spec.bar
    draw_pareto(panels, picture)
    return verdict(rows)


if __name__ == '__main__':
    require('mmengine', 'mm')
    _child(*sys.argv[1:])
