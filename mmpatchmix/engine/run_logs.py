"""Logger hook, log processor with short lines, and back end for Weights & Biases."""

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from mmengine.config import Config
from mmengine.hooks import LoggerHook
from mmengine.runner import BaseLoop, IterBasedTrainLoop, LogProcessor, Runner
from mmengine.visualization import WandbVisBackend

from mmpatchmix.registry import HOOKS, LOG_PROCESSORS, VISBACKENDS

LINE_WIDTH = 120 - len('11/28 22:04:42 - mmengine - INFO - ')
FORMATS = {
    'loss': 'loss {:.3f}',
    'acc_source': 'acc {:.1%}',
    'base_lr': 'lr {:.1e}',  # 'lr' is that of the first parameters, with layer-wise decay
    'time': '{:.2f} s/it',
}


def _tolerate_disk_errors(method: Callable) -> Callable:
    @wraps(method)
    def call(self: LoggerHook, runner: Runner, *args: Any, **kwargs: Any) -> None:
        try:
            method(self, runner, *args, **kwargs)
        except OSError as error:
            if not self.has_failed:
                runner.logger.error(f'Metrics are no longer written ({error}); the run continues.')
            self.has_failed = True

    return call


@HOOKS.register_module()
class SafeLoggerHook(LoggerHook):
    """mmengine's ``LoggerHook``, except that a failing disk is a warning instead of an error."""

    has_failed = False

    def before_run(self, runner: Runner) -> None:
        """Let runs that count iterations log these; their epoch is always 0."""
        super().before_run(runner)
        if isinstance(runner._train_loop, IterBasedTrainLoop):
            self.log_metric_by_epoch = runner.log_processor.by_epoch = False

    after_train_iter = _tolerate_disk_errors(LoggerHook.after_train_iter)
    after_val_epoch = _tolerate_disk_errors(LoggerHook.after_val_epoch)
    after_run = _tolerate_disk_errors(LoggerHook.after_run)


@VISBACKENDS.register_module()
class WandbBackend(WandbVisBackend):
    """mmengine's ``WandbVisBackend`` without its upload of all Python files below the folder."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Send the config, and no code."""
        self.experiment.config.update(config.to_dict(), allow_val_change=True)


@LOG_PROCESSORS.register_module()
class ShortLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor`` with lines of at most 120 columns for training and validation.

    mmengine's own line, with all values, goes to the log file at level DEBUG.
    """

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Return all values, and a line with place, loss, learning rate, time and memory."""
        values, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode == 'test':
            return values, line
        log_to_files(runner.logger, line)
        shown = {name.removeprefix(f'{mode}/'): value for name, value in values.items()}
        parts = [self._name_place(runner, mode, batch_idx)]
        parts += [form.format(shown[name]) for name, form in FORMATS.items() if name in shown]
        if (eta := runner.message_hub.runtime_info.get('eta')) is not None:
            parts.append(f'ETA {timedelta(seconds=int(eta))}')
        if 'memory' in shown:
            parts.append(f'{shown["memory"] / 1024:.0f} GB')
        return values, '  '.join(parts)

    def get_log_after_epoch(self, runner: Runner, batch_idx: int, mode: str, **kwargs) -> tuple:
        """Return all values, and a line with the first metrics and the best value of the first."""
        values, line = super().get_log_after_epoch(runner, batch_idx, mode, **kwargs)
        if mode == 'test':
            return values, line
        log_to_files(runner.logger, line)
        short = self._name_place(runner, mode)
        for name, value in values.items():
            name = name.removeprefix(f'{mode}/')
            if not isinstance(value, float) or re.search(r'(_k\d+|top5|time)$', name):
                continue  # the suffix _k10 repeats a metric for each number of neighbours
            part = f'  {name} {value:.2f}'
            history = runner.message_hub.log_scalars.get(f'{mode}/{name}')
            if '  ' not in short and history is not None:
                part += f' (best {max(history.data[0]):.2f})'
            if len(short + part) <= LINE_WIDTH:
                short += part
        return values, short

    def _name_place(self, runner: Runner, mode: str, batch_idx: int | None = None) -> str:
        has_loop = isinstance(runner._train_loop, BaseLoop)
        if has_loop and not self.by_epoch and (mode == 'train' or batch_idx is None):
            return f'Iteration {runner.iter + (mode == "train")}/{runner.max_iters}'
        epoch = f'{self._get_epoch(runner, mode)}/{runner.max_epochs}' if has_loop else ''
        size = self._get_dataloader_size(runner, mode)
        done = '' if batch_idx in (None, size - 1) else f' ({(batch_idx + 1) / size:.0%})'
        if mode == 'val' and (done or not has_loop):
            return f'Validation{done}'
        return f'Epoch {epoch}{done}'


def log_to_files(logger: logging.Logger, message: str) -> None:
    """Write a message of level DEBUG to the log files of a logger, whatever their level is."""
    record = logger.makeRecord(logger.name, logging.DEBUG, '', 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.FileHandler):
            handler.handle(record)
