"""Logs figures as long as the disk takes them."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.runner import LogProcessor, Runner

from mmpatchmix.registry import HOOKS, LOG_PROCESSORS


@HOOKS.register_module()
class SafeLoggerHook(LoggerHook):
    """mmengine's ``LoggerHook``; on a full or failing disk it warns, and the run goes on."""

    _failed = False

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Log as the base class does."""
        with self._surviving(runner):
            super().after_train_iter(runner, *args, **kwargs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Log as the base class does."""
        with self._surviving(runner):
            super().after_val_epoch(runner, metrics)

    def after_run(self, runner: Runner) -> None:
        """Close the files as the base class does."""
        with self._surviving(runner):
            super().after_run(runner)

    @contextmanager
    def _surviving(self, runner: Runner) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failed:
                runner.logger.error(f'Figures are not written any more ({error}); the run goes on.')
            self._failed = True


@LOG_PROCESSORS.register_module()
class ShortLogProcessor(LogProcessor):
    """mmengine's ``LogProcessor``, whose line leaves some figures of training out.

    All of them reach ``scalars.json``, TensorBoard and other back ends as before.

    Args:
        hidden: Regular expression of names to leave out.
        **kwargs: Those of mmengine's ``LogProcessor``.
    """

    def __init__(self, hidden: str = r'health/|kl_|grad_norm', **kwargs) -> None:
        super().__init__(**kwargs)
        self.hidden = re.compile(hidden)

    def get_log_after_iter(self, runner: Runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Return all figures, and the line for those that are shown."""
        figures, line = super().get_log_after_iter(runner, batch_idx, mode)
        parts = line.split('  ')  # of which mmengine makes it
        return figures, '  '.join(part for part in parts if not self.hidden.match(part))
