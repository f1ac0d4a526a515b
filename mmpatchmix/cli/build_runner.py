"""Build the Runner that a config describes."""

import torch
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

import mmpatchmix.registry  # noqa: F401  before mmengine looks anything up
from mmpatchmix.cli.console import with_concise_console
from mmpatchmix.cli.freed_memory import keep_freed_memory
from mmpatchmix.engine.augment_place import place_augmentation


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Build the Runner, of the class that ``runner_type`` names.

    Args:
        cfg: The config.
        verbose: Whether the console shows all that the log file has.

    Raises:
        ValueError: If ``runner_type`` is not registered.
    """
    if not torch.accelerator.is_available():
        keep_freed_memory()
    prepare_processes(cfg)
    place_augmentation(cfg)
    name = cfg.get('runner_type', 'Runner')
    runner_class = RUNNERS.get(name)
    if runner_class is None:
        raise ValueError(
            f'runner_type={name!r}: no Runner of this name is registered; name its module in '
            'custom_imports=dict(imports=[...]).'
        )
    return (runner_class if verbose else with_concise_console(runner_class)).from_cfg(cfg)


def prepare_processes(cfg: Config) -> None:
    """Let ``--launcher pytorch`` work without GPUs, over gloo.

    mmengine would call ``torch.cuda.set_device`` and give DDP device ids. Torch's
    SyncBatchNorm needs a GPU, so without one each rank normalises by itself.

    Args:
        cfg: The config; changed where there is no GPU.
    """
    if cfg.get('launcher') != 'pytorch' or torch.cuda.is_available():
        return
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
    cfg.sync_bn = None
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
