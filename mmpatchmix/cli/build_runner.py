"""Build the Runner that a config describes."""

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmpatchmix.registry  # noqa: F401  before mmengine looks anything up
from mmpatchmix.cli.console import with_concise_console
from mmpatchmix.cli.freed_memory import keep_freed_memory
from mmpatchmix.cli.preflight import compare_ranks


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Build the Runner, of the class that ``runner_type`` names.

    Args:
        cfg: The config.
        verbose: Whether the console shows all that the log file has.

    Raises:
        ValueError: If ``runner_type`` is not registered, or ranks differ in what they are to do.
        TimeoutError: If a rank is missing.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    name = cfg.get('runner_type', 'Runner')
    runner_class = RUNNERS.get(name)
    if runner_class is None:
        raise ValueError(
            f'runner_type={name!r}: no Runner of this name is registered; name its module in '
            'custom_imports=dict(imports=[...]).'
        )
    compare_ranks(cfg)
    return (runner_class if verbose else with_concise_console(runner_class)).from_cfg(cfg)
