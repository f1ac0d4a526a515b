"""The frame of every verb: one-line errors, a quiet console, the Runner, the memory of the host."""

import argparse
import ctypes
import functools
import gc
import itertools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Texts that the stack prints about optional packages that are not used here; dropped if equal.
# print_log(..., level=DEBUG) without a logger prints them at every level.
PRINTED = ('Could not import OneDL', 'Could not import OneDL. Skipping OneDL datasets.')
# Beginnings, as regular expressions, of warnings that need no action by the user.
WARNED = (
    'faster_coco_eval is not installed, metrics will not be computed',
    # mmengine sets them itself, in every process of a distributed run.
    'Setting MKL_NUM_THREADS environment variable for each process',
    '`broadcast_buffers` is deprecated',
    'Default ``avg_non_ignore`` is False',  # as in mmseg's own configs
    'The draw is False, it means that the hook',
)
# Likewise, of every data loader.
WARNED_BY_LOADERS = ("'pin_memory' argument is set as", 'This DataLoader will create .* worker')
# Beginnings of records that go to the log file only.
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
    'Please make sure that the mlflow server is running',  # also logged for a local file
)
# A data worker's error arrives as text: "Caught ValueError in DataLoader worker process 0."
WORKER_ERROR = re.compile(r'(?s)Caught \w+ in DataLoader worker.*\n[\w.]*(?:Error|Exception): ')
USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)
# Functions of mmengine that build a part, and their argument that is its config.
BUILDERS = {'build_from_cfg': 'cfg', 'build_dataloader': 'dataloader'}

RUNNER_NUMBERS = itertools.count()  # of this process

# mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
MALLOC = ('MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')
USERS_OWN_SETTINGS = ('GLIBC_TUNABLES', *MALLOC)


def make_verb(name: str, doc: str, add_arguments: Callable, run: Callable) -> tuple:
    """Return ``parse_args(argv)`` and ``main(argv)`` of a verb, of which ``doc`` is the help.

    ``add_arguments(parser)`` adds its arguments, ``run(args)`` does its work.
    """

    def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
        options = dict(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser = argparse.ArgumentParser(f'mmpatchmix {name}', **options)
        parser.register('type', None, os.path.expanduser)  # of all arguments without a type
        add_arguments(parser)
        about = 'print all records of the log file, and tracebacks'
        parser.add_argument('--verbose', action='store_true', help=about)
        return parser.parse_intermixed_args(argv)  # options may stand between

    def main(argv: Sequence[str] | None = None) -> None:
        args = parse_args(argv)
        with exit_on_user_error(args.verbose):
            run(args)

    return parse_args, main


@contextmanager
def garbage_ignored() -> Iterator[None]:
    """Do not search for garbage, which takes a fifth of the time of importing OpenMMLab."""
    enable = gc.enable if gc.isenabled() else gc.disable  # as before
    gc.disable()
    try:
        yield
    finally:
        enable()


@contextmanager
def exit_on_user_error(verbose: bool = False) -> Iterator[None]:
    """Run a verb with a quiet stack; an error a user can mend ends in one message and status 1.

    With ``verbose`` all errors are raised.
    """
    quiet_stack()
    try:
        yield
    except KeyboardInterrupt as error:
        if int(os.environ.get('RANK', 0)) == 0:
            print(f'\ninterrupted{error}', file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        message = None if verbose else _explain(error)
        if message is None:
            raise
        sys.exit(f'\n{message}\n(--verbose prints the traceback)')


@garbage_ignored()
def quiet_stack() -> None:
    """Drop misleading messages of the stack; call it before its packages are imported."""
    import mmengine.logging
    from mmengine.logging import print_log

    if hasattr(print_log, '__wrapped__'):
        return
    logging.raiseExceptions = False  # no traceback per line on a full disk
    for message in WARNED + WARNED_BY_LOADERS:
        warnings.filterwarnings('ignore', message=message)

    @functools.wraps(print_log)
    def print_relevant(msg: object, *args: object, **kwargs: object) -> None:
        if msg not in PRINTED:
            print_log(msg, *args, **kwargs)

    # The stack imports print_log from this module when it prints.
    mmengine.logging.print_log = print_relevant


def check_config_of_run(cfg: Any, checkpoint: str) -> None:
    """Raise ``ValueError`` if the run of a checkpoint had other heads or another normalisation."""
    from mmpatchmix.checkpoints.vit_spec import compare_with_run

    if difference := compare_with_run(checkpoint, cfg.pretty_text):
        raise ValueError(
            f"{checkpoint} {difference}. Use the copy of the config in the run's folder, or its "
            'model.backbone and model.data_preprocessor, and PATCHMIX_VALUES.'
        )


def build_runner(cfg: Any, verbose: bool = False, *checkpoints: str) -> Any:
    """Build the Runner, of the class that ``runner_type`` names, after the ranks have met.

    Unless ``verbose``, records of ``FILE_ONLY`` are not printed. A classifier gets the number of
    classes of the first of the ``checkpoints`` to evaluate, or of the training images.
    ``ValueError`` if one of them does not pass :func:`check_config_of_run`.
    """
    import torch
    from mmengine.registry import RUNNERS

    import mmpatchmix.registry  # noqa: F401  registers before mmengine's first look-up
    from mmpatchmix.engine.ranks import compare_ranks
    from mmpatchmix.models.classifier import derive_num_classes

    if not torch.accelerator.is_available():
        keep_freed_memory()
    name = cfg.get('runner_type', 'Runner')
    runner_class = RUNNERS.get(name)
    if runner_class is None:
        raise ValueError(f'runner_type={name!r} is not registered: set custom_imports.')
    derive_num_classes(cfg, *checkpoints[:1])
    for checkpoint in checkpoints:
        check_config_of_run(cfg, checkpoint)
    compare_ranks(cfg)

    class ConciseRunner(runner_class):
        def __init__(self, *args, **kwargs) -> None:
            # mmengine keeps loggers and visualizers by name and second of the start.
            if number := next(RUNNER_NUMBERS):
                name = kwargs.get('experiment_name') or Path(cfg.filename or 'run').stem
                kwargs['experiment_name'] = f'{name}-{number}'
            super().__init__(*args, **kwargs)

        def build_logger(self, *args, **kwargs) -> logging.Logger:
            logger = super().build_logger(*args, **kwargs)
            for handler in () if verbose else logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(lambda record: not str(record.msg).startswith(FILE_ONLY))
            return logger

    return ConciseRunner.from_cfg(cfg)


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks, so that a step gets no new pages; the process stays large.

    Returns False without glibc, or if the user has set one of its variables.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in USERS_OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', lambda *setting: 0)  # musl has none
    # All blocks come from the heap, and the heap is never trimmed.
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1


def find_checkpoint(path: str) -> str:
    """Return the path of a checkpoint, or of the last one of a work dir that is not damaged."""
    from mmpatchmix.checkpoints.sealing import find_good_checkpoint

    if os.path.isdir(path):
        last, damaged = find_good_checkpoint(path)
        for each, damage in damaged.items():
            print(f'{each} is damaged ({damage}) and skipped')
        if last is None:
            raise FileNotFoundError(f'there is no good checkpoint in {path}; train first.')
        return str(last)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'there is no checkpoint {path}.')
    return path


def walk_dicts(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield dotted key (``param_scheduler.0``) and value of all dicts in a config or its part."""
    items = enumerate(node) if isinstance(node, list | tuple) else ()
    if hasattr(node, 'items'):
        yield path, node
        items = node.items()
    for key, value in items:
        yield from walk_dicts(value, f'{path}.{key}' if path else str(key))


def _explain(error: Exception) -> str | None:
    """Return the message for an error that a user can mend; None for a fault of the code."""
    message = f'{type(error).__name__}: {WORKER_ERROR.sub("", str(error))}'
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        name = frame.f_code.co_name
        if name in BUILDERS and frame.f_globals.get('__name__', '').startswith('mmengine.'):
            keys = ' or '.join(_find_keys(frames, frame.f_locals.get(BUILDERS[name])))
            return f'{message}\nThe error is in {keys} of the config.'
    return message if isinstance(error, USER_ERRORS) else None


def _find_keys(frames: list, node: Any) -> list[str]:
    """Return the dotted keys at which the config of a verb holds a node, or else its type."""
    configs = (frame.f_locals.get('cfg') for frame in frames)
    nodes = list(walk_dicts(next((cfg for cfg in configs if hasattr(cfg, 'filename')), {})))
    name = node.get('type') if isinstance(node, dict) else None
    keys = [key for key, other in nodes if other == node]
    if name is None and not keys:  # a data loader: ExactTrainLoop replaces its parts
        plain = {key: value for key, value in node.items() if not isinstance(value, dict)}
        keys = [key for key, other in nodes if plain == {k: other.get(k) for k in plain}]
    keys = keys or [key for key, other in nodes if name is not None and other.get('type') == name]
    note = f' ({name})' if name else ''
    return [f'{key}{note}' for key in keys[:3]] or [f'type={name!r}']
