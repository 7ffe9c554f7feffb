"""Hooks of mmengine's Runner: a progress bar for people, and training that repeats, so that a resumed run does what the uninterrupted one
would have done.
"""
import atexit
import logging
import random
import sys

import numpy as np
import torch
from mmengine.dist import get_rank, master_only
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitzoo.registry import FUNCTIONS, HOOKS

__all__ = ['ProgressBarHook', 'ReseedHook', 'keep_worker_seed']


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Iterations done, loss, time gone and time left while training; nothing where the output is not a terminal."""
    priority = 'VERY_LOW'

    @master_only
    def before_train(self, runner) -> None:
        self.progress = Progress(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
            console=Console(file=sys.stdout))
        if not self.progress.console.is_terminal:
            self.progress.disable = True
            return
        self.task = self.progress.add_task('training', total=runner.max_iters, completed=runner.iter)
        self.progress.start()
        atexit.register(self.progress.stop)  # gives the cursor back when training ends with an exception
        # rich prints above the bar what goes through sys.stdout while it shows; the logger holds on to the stream from before
        self.streams = []
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self.streams.append((handler, handler.setStream(sys.stdout)))

    @master_only
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.progress.disable:
            loss = (outputs or {}).get('loss')
            text = 'training' if loss is None else f'training, loss {loss:.3f}'
            self.progress.update(self.task, completed=runner.iter + 1, description=text)

    @master_only
    def after_train(self, runner) -> None:
        if not self.progress.disable:
            self.progress.stop()
            for handler, stream in self.streams:
                handler.setStream(stream or sys.stdout)


@HOOKS.register_module()
class ReseedHook(Hook):
    """Every iteration draws from a random stream of its own, a function of seed, process and iteration.

    mmengine restores weights, optimizer and the order of the data, but not the random states behind augmentation, drop path and sampling of
    proposals, nor could it: they depend on everything that was drawn before. With this hook nothing needs to be restored. It holds
    from any checkpoint of a loop by iterations, and from the end of an epoch in a loop by epochs; with the same seed, which mmengine takes
    from the checkpoint, but too late for the order of the data: start both runs with it (tools/train.py does).
    """
    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner) -> None:
        loop = runner.train_loop
        if isinstance(loop, IterBasedTrainLoop):
            loop.dataloader_iterator = _reseeded(loop.dataloader_iterator, runner.seed)
        else:
            _reseed(runner.seed, runner.epoch, 0)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        _reseed(runner.seed, runner.iter, 1)


def _reseeded(batches, seed: int):
    """The same batches, each drawn from its own stream. A resumed loop skips by reading them, so that their number stays right."""
    iteration = 0
    while True:
        _reseed(seed, iteration, 2)
        yield next(batches)
        iteration += 1


def _reseed(*key: int) -> None:
    streams = np.random.SeedSequence([*key, get_rank()]).generate_state(3)
    random.seed(int(streams[0]))
    np.random.seed(streams[1])
    torch.manual_seed(int(streams[2]))


@FUNCTIONS.register_module()
def keep_worker_seed(worker_id: int) -> None:
    """`worker_init_fn=dict(type='vitzoo.keep_worker_seed')`: workers draw from what PyTorch seeds them with, anew in each epoch.

    mmengine gives them the same seeds at the start of every epoch.
    """
