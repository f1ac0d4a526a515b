"""Logs figures as long as the disk takes them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.runner import Runner

from mmpatchmix.registry import HOOKS


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
