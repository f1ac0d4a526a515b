"""What the command-line tools share: configs, options, processes, and the Runner."""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.runner import Runner

from mmpatchmix.cli.describe_machine import cores_per_process
from mmpatchmix.cli.freed_memory import keep_freed_memory

# Records the Runner writes at start-up and every epoch that a reader of the console
# does not need; the log file keeps them.
FILE_ONLY = (
    '\n------------------------------------------------------------\nSystem environment',
    'Config:\n',
    'Hooks will be executed',
    'Exp name:',
    'Distributed training is not used',
    'LR is set based on batch size',
    'Checkpoints will be saved to',
    'Saving checkpoint at',
    'paramwise_options',
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    'The length of test_evaluator',
)


class ConciseRunner(Runner):
    """mmengine's Runner with a console for people; the log file stays complete."""

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build the logger; its console leaves out what is in ``FILE_ONLY``."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                handler.addFilter(lambda record: not str(record.msg).startswith(FILE_ONLY))
        return logger


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that ``tools/train.py`` and ``tools/test.py`` have in common."""
    parser.add_argument('config', help='config file, e.g. configs/patchmix_vit-s_in1k.py')
    parser.add_argument('--work-dir', help='where to write; work_dirs/CONFIG by default')
    parser.add_argument(
        '--data-root', help='folder of the images, for training and evaluation alike'
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='change config values, e.g. train_dataloader.batch_size=64',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument('--verbose', action='store_true', help='print all that the log file has')
    # torch.distributed.launch passes it; torchrun sets LOCAL_RANK instead.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the common arguments.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    if not Path(args.config).is_file():
        raise FileNotFoundError(
            f'there is no config {args.config}; those of this project are in configs/.'
        )
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    cfg.launcher = args.launcher
    cfg.work_dir = (
        args.work_dir or cfg.get('work_dir') or str(Path('work_dirs') / Path(args.config).stem)
    )
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def set_data_root(cfg, data_root: str) -> None:
    """Point every data set below a config node to one folder.

    Annotation files that evaluators name below the former folder move along.
    """
    former: set[str] = set()
    for node in _dicts(cfg):
        if 'data_root' in node:
            former.add(str(node['data_root']).rstrip('/') + '/')
            node['data_root'] = data_root
    for node in _dicts(cfg):
        path = node.get('ann_file')
        root = next((root for root in former if isinstance(path, str) and path.startswith(root)), 0)
        if root:
            node['ann_file'] = str(Path(data_root) / path.removeprefix(root))


def set_precision(cfg: Config, amp: bool | None) -> None:
    """Turn ``--amp`` or ``--no-amp`` into a config; None leaves it to the config.

    Args:
        cfg: The config; changed in place.
        amp: Whether to train under bfloat16 autocast.
    """
    if amp or (amp is False and 'enabled' in cfg.optim_wrapper):
        cfg.optim_wrapper.update(type='mmpatchmix.BF16OptimWrapper', enabled=amp)


def _dicts(node) -> Iterator:
    """All dicts of a config, at any depth."""
    if isinstance(node, dict | Config):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _dicts(value)


def prepare_processes(cfg: Config) -> None:
    """Let ``--launcher pytorch`` work without GPUs, over gloo.

    mmengine would call ``torch.cuda.set_device`` and give DDP device ids. Torch's
    SyncBatchNorm needs a GPU, so without one each rank normalises by itself.

    Args:
        cfg: The config; changed where there is no GPU.
    """
    if cfg.launcher != 'pytorch' or torch.cuda.is_available():
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


def fit_loaders(cfg) -> None:
    """Keep data loaders below a config node within what this machine has.

    Workers are capped at the cores per process, since more only take turns, and
    memory is pinned only where there is an accelerator to copy to.
    """
    num_cores = cores_per_process()
    for node in _dicts(cfg):
        if 'num_workers' in node:
            node['num_workers'] = min(node['num_workers'], num_cores)
        if node.get('pin_memory') and not torch.accelerator.is_available():
            node['pin_memory'] = False


def build_runner(cfg: Config, verbose: bool = False) -> Runner:
    """Fit the config to the machine, start the processes' communication, build the Runner."""
    if not torch.accelerator.is_available():
        keep_freed_memory()
    prepare_processes(cfg)
    fit_loaders(cfg)
    return (Runner if verbose else ConciseRunner).from_cfg(cfg)


def earlier_run(work_dir: str | Path) -> list[Path]:
    """Files and folders that a run of the Runner has left in a folder."""
    work_dir = Path(work_dir)
    found = [path for pattern in ('*.pth', 'last_checkpoint') for path in work_dir.glob(pattern)]
    return found + [path.parent for path in work_dir.glob('*/vis_data')]


def clear_earlier_run(work_dir: str | Path) -> None:
    """Remove exactly what :func:`earlier_run` lists."""
    for path in earlier_run(work_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def exit_on_user_error(verbose: bool = False) -> Iterator[None]:
    """End a tool with one message, without a traceback, for what its user can mend.

    Args:
        verbose: Let the traceback through.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        if verbose:
            raise
        sys.exit(f'\n{type(error).__name__}: {error}\n(--verbose shows where it came from)')
