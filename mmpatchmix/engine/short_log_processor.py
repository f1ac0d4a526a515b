"""Keeps the line of a log for what a person reads; the rest is in scalars.json."""

import re

from mmengine.runner import LogProcessor, Runner

from mmpatchmix.registry import LOG_PROCESSORS


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
