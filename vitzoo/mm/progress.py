"""A progress bar for people, beside mmengine's log."""
import atexit
import logging
import sys

from mmengine.dist import master_only
from mmengine.hooks import Hook
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vitzoo.registry import HOOKS


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
        self.streams = [(h, h.setStream(sys.stdout)) for h in runner.logger.handlers if type(h) is logging.StreamHandler]

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
