"""A hook for mmengine's Runner that shows people what it does, by a bar and tables."""
import contextlib
import math
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop

from .output import Output


class Watch(Hook):
    """Shows how far training or testing is and what validations gave, unless `console`, the file that has all the rest, is None; keeps
    their numbers in any case. Entered as a context, it takes its bar away where the work ends by an exception."""
    priority = 'VERY_LOW'

    def __init__(self, output: Output, console: Path | None):
        self.output, self.console = output, console
        self.iterations, self.seconds = 0, 0.
        self.validations = []  # {'iteration': number, 'metrics': {name: value}}
        self.metrics = {}  # of the test
        self.shown = contextlib.ExitStack()

    def __enter__(self) -> 'Watch':
        return self

    def __exit__(self, *error) -> None:
        self.shown.close()

    def begin(self, doing: str, total: int) -> None:
        self.start = time.monotonic()
        self.advance = self.shown.enter_context(self.output.bar(doing, total)) if self.console else lambda *args, **kwargs: None

    def end(self) -> None:
        self.shown.close()
        self.seconds = time.monotonic() - self.start

    def before_train(self, runner) -> None:
        if self.console:
            self.output.note(f'{runner.max_iters - runner.iter} iterations; the log is {self.console}')
        self.begin('training', runner.max_iters - runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        loss = (outputs or {}).get('loss')
        self.advance('training' if loss is None else f'training, loss {float(loss):.3f}')

    def after_train(self, runner) -> None:
        self.iterations = runner.iter
        self.end()

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.advance(f'validating, {batch_idx + 1} of {len(runner.val_dataloader)}', steps=0)

    def after_val_epoch(self, runner, metrics=None) -> None:
        numbers = numbers_of(metrics)
        before = self.validations[-1]['metrics'] if self.validations else {}
        self.validations.append({'iteration': runner.iter, 'metrics': numbers})
        if self.console:
            epoch = f', epoch {runner.epoch}' if isinstance(runner.train_loop, EpochBasedTrainLoop) else ''
            show(self.output, f'validation after iteration {runner.iter} of {runner.max_iters}{epoch}', numbers, before)

    def before_test(self, runner) -> None:
        self.begin('testing', len(runner.test_dataloader))

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.advance()

    def after_test_epoch(self, runner, metrics=None) -> None:
        self.metrics = numbers_of(metrics)

    def after_test(self, runner) -> None:
        self.end()


def numbers_of(metrics: dict | None) -> dict[str, float]:
    return {name: float(value) for name, value in (metrics or {}).items() if isinstance(value, int | float)}


def show(output: Output, title: str, metrics: dict[str, float], before: dict[str, float] | None = None) -> None:
    """A table of metrics, beside those of the validation before."""
    if not metrics:  # mmdet's evaluators leave them out
        output.note(f'{title}: nothing was found, so there are no metrics')
        return
    columns = ('metric', 'value', *(['before'] if before else []))
    rows = [(name, _digits(value), *([_digits(before.get(name, math.nan))] if before else [])) for name, value in metrics.items()]
    output.table(title, columns, rows, right=columns[1:])


def _digits(value: float) -> str:
    return '-' if math.isnan(value) or value == -1 else f'{value:.4g}'  # -1 is COCO's word for no object of that size
