"""Training of all rows that are missing, and the test of those that lack it, in processes side by side."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .plan import Key
from .rows import METRICS, TESTED, is_tested, read_rows, row_key
from .train import row_config, weights_of

ROOT = Path(__file__).parents[2]


def _run_child(key: Key, work_dir: Path, path: Path, iterations: int | None, advance: Callable[[int], None]) -> None:
    """Run one row and wait for it. RuntimeError if it fails."""
    model, task, seed = key
    log = work_dir.with_suffix('.log')
    log.parent.mkdir(parents=True, exist_ok=True)
    modules = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    threads = {name: '1' for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
    # glibc gives the activations' memory back after each iteration and faults it in anew in the next, unless told to keep it
    keep = {'MALLOC_MMAP_THRESHOLD_': str(1 << 30), 'MALLOC_TRIM_THRESHOLD_': str(1 << 32), 'MALLOC_TOP_PAD_': str(1 << 26)}
    env = {**os.environ, **threads, **keep, 'PYTHONPATH': modules}
    command = [sys.executable, '-m', 'benchmarks.dense.train', model, task, str(seed), str(work_dir), str(path), json.dumps(iterations)]
    with log.open('w', encoding='utf-8') as stream, subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stream, text=True, env=env) as process:
        for line in process.stdout:
            advance(int(line))
    if process.returncode:
        last = log.read_text(encoding='utf-8').strip().splitlines() or ['']
        raise RuntimeError(f'exit code {process.returncode}, {last[-1][:200]} ({log})')


def run(keys: Iterable[Key], path: str | Path, *, data: str | Path, out: str | Path, jobs: int | None = None, iterations: int | None = None,
        preset: str = 'standard', run_row: Callable = _run_child) -> dict[Key, str]:
    """Train the rows that the CSV lacks, `jobs` at a time (default: a process a core) with one thread each.

    A row without figures of the test part is tested if its weights are in `out`, else it stays as it is.

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
    rows = {row_key(row): row for row in read_rows(path)}
    there = {key: int(row['iterations']) for key, row in rows.items()}
    for key in keys:
        if there.get(key, budget[key[1]]) != budget[key[1]]:
            raise ValueError(f'{path} has {key} after {there[key]} iterations, and {budget[key[1]]} were asked for: delete the row, or '
                             'choose another file')
    untested = [key for key in keys if key in rows and not is_tested(rows[key])]
    again = [key for key in untested if weights_of(_folder(out, key), there[key]).is_file()]
    todo, failures = [key for key in keys if key not in there or key in again], {}
    console = Console(stderr=True)
    console.print(f'{len(keys)} rows, {len(keys) - len(todo)} of them finished'
                  + (f', {len(untested) - len(again)} without a test and without the weights for one: to test them, delete these rows'
                     if len(untested) > len(again) else ''), soft_wrap=True)
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
                run_row(key, _folder(out, key), path, iterations,
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


def _folder(out: Path, key: Key) -> Path:
    return out / '-'.join(map(str, key))


def _summary(path: Path, key: Key) -> str:
    row = next(row for row in read_rows(path) if row_key(row) == key)
    return ', '.join(f'{name} {row[name]}' for name in (*METRICS, *TESTED) if row[name])
