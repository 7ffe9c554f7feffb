"""Schedules of the learning rate in a config: those that cannot be are refused, and their lowest rates follow the rate that is scaled."""
import logging
from collections.abc import Iterator

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

__all__ = ['check_schedules', 'scale_lowest_rates']


def _schedules(cfg: Config) -> Iterator[tuple[str, ConfigDict]]:
    """Each schedule with the name that --cfg-options knows it by; of several optimizers each has its own."""
    def walk(part, name):
        if isinstance(part, dict) and 'type' in part:
            yield name, part
        elif isinstance(part, dict | list | tuple):
            for key, inner in part.items() if isinstance(part, dict) else enumerate(part):
                yield from walk(inner, f'{name}.{key}')
    yield from walk(cfg.get('param_scheduler') or [], 'param_scheduler')


def check_schedules(cfg: Config, num_images: int | None = None) -> None:
    """Refuse schedules that begin when training is over, as mmengine would in the middle of its work, and warn of a warm-up without end:
    of `num_images` pictures in epochs, one that takes more iterations than they make on one device.

    Raises ValueError with the options that would do.
    """
    train_cfg, endless = cfg.get('train_cfg') or {}, []
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    steps = train_cfg['max_epochs'] * -(-num_images // batch) if num_images and batch and train_cfg.get('max_epochs') else None
    for name, schedule in _schedules(cfg):
        unit, limit = _unit(schedule)
        length, begin = train_cfg.get(limit), schedule.get('begin', 0)
        if length is None and unit == 'iteration' and not begin:
            length = steps
        if length is None:  # counted in the other unit, and how many there are depends on the data
            continue
        end, enough = schedule.get('end', length), max(1, length // 10)
        if begin >= end:
            raise ValueError(
                f'{name}: {schedule["type"]} would begin at {unit} {begin} and end at {end}, and training has train_cfg.{limit}={length}: '
                f'expected a shorter warm-up or a longer training, such as --cfg-options {_options(cfg, unit, begin, enough)}, or '
                f'train_cfg.{limit}={10 * max(1, begin)}')
        if schedule['type'] == 'LinearLR' and begin == 0 and end > length:
            endless.append(f'{name}: the warm-up takes {end} {unit}s and training has {length}, so that it never comes to its full rate; '
                           f'--cfg-options {name}.end={enough} makes it shorter')
    for warning in endless:
        print_log(warning, 'current', logging.WARNING)


def _unit(schedule: ConfigDict) -> tuple[str, str]:
    return ('epoch', 'max_epochs') if schedule.get('by_epoch', True) else ('iteration', 'max_iters')


def _options(cfg: Config, unit: str, old: int, new: int) -> str:
    """Those that let begin or end at `new` what does so at `old`."""
    return ' '.join(f'{name}.{key}={new}' for name, schedule in _schedules(cfg) for key in ('end', 'begin')
                    if schedule.get(key) == old and _unit(schedule)[0] == unit)


def scale_lowest_rates(cfg: Config) -> None:
    """Write the lowest rates of schedules as shares of the rate that mmengine fits to the batch. Of a small batch it is below them, so
    that it would rise to them.

    Raises ValueError of a schedule that has no such share.
    """
    rate = ((cfg.get('optim_wrapper') or {}).get('optimizer') or {}).get('lr')
    for name, schedule in _schedules(cfg):
        if not rate or not schedule.get('eta_min') or not schedule['type'].endswith('LR'):
            continue
        if schedule['type'] not in ('CosineAnnealingLR', 'CosineRestartLR'):
            raise ValueError(f'{name}: {schedule["type"]} ends at eta_min={schedule["eta_min"]}, which does not follow a rate that '
                             f'auto_scale_lr fits to the batch; set {name}.eta_min=0, take CosineAnnealingLR, or leave auto_scale_lr off')
        schedule['eta_min_ratio'] = schedule.pop('eta_min') / rate
