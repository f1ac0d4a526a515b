"""Keep the console for what a person reads; the log file stays complete."""

import ctypes
import functools
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What the stack says that sounds like an error and is none: it speaks of optional packages that
# nothing of ours uses, or of what the stack does by itself. Exactly these texts are dropped.
# print_log(..., level=DEBUG) without a logger prints all the same:
PRINTED = ('Could not import OneDL', 'Could not import OneDL. Skipping OneDL datasets.')

# Beginnings, as regular expressions, of messages that reach the warnings module.
WARNED = (
    'faster_coco_eval is not installed, metrics will not be computed',
    # mmengine's own doing, in every process of a distributed run.
    'Setting MKL_NUM_THREADS environment variable for each process',
    '`broadcast_buffers` is deprecated',
)

# Beginnings of records the Runner writes at start-up and every epoch.
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
    'Please make sure that the mlflow server is running',  # said of a local file too
)


def quiet_stack() -> None:
    """Drop start-up messages of the stack that mislead, from now on, in this process."""
    import mmengine.logging
    from mmengine.logging import print_log

    if hasattr(print_log, '__wrapped__'):
        return
    logging.raiseExceptions = False  # a traceback for every line, on a full disk
    for message in WARNED:
        warnings.filterwarnings('ignore', message=message)
    # Torch does without by itself; the description of the run speaks of workers and cores.
    warnings.filterwarnings('ignore', message="'pin_memory' argument is set as true but no acc")
    warnings.filterwarnings('ignore', message='This DataLoader will create .* worker processes')

    @functools.wraps(print_log)
    def print_relevant(msg: object, *args: object, **kwargs: object) -> None:
        if msg not in PRINTED:
            print_log(msg, *args, **kwargs)

    # The stack takes print_log from here at the moment it prints.
    mmengine.logging.print_log = print_relevant


def with_concise_console(runner_class: type) -> type:
    """Make a Runner class whose console leaves out what is in ``FILE_ONLY``.

    Args:
        runner_class: mmengine's Runner or another one.
    """

    class ConciseRunner(runner_class):
        def build_logger(self, *args, **kwargs) -> logging.Logger:
            logger = super().build_logger(*args, **kwargs)
            for handler in logger.handlers:
                if not isinstance(handler, logging.FileHandler):
                    handler.addFilter(lambda record: not str(record.msg).startswith(FILE_ONLY))
            return logger

    return ConciseRunner


# What data workers raise arrives as text: "Caught ValueError in DataLoader worker process 0."
WORKER_ERROR = re.compile(r'Caught \w+ in DataLoader worker.*\n\w*(?:Error|Exception): ', re.DOTALL)


@contextmanager
def exit_on_user_error(verbose: bool = False) -> Iterator[None]:
    """Turn errors into one message and an exit status.

    Args:
        verbose: Let the traceback through.
    """
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
        sys.exit(f'\n{message}\n(--verbose shows where it came from)')


def _explain(error: Exception) -> str | None:
    """Say what a user can mend; None where the fault may be in the code."""
    message = f'{type(error).__name__}: {WORKER_ERROR.sub("", str(error))}'
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for frame in reversed(frames):
        where = (frame.f_globals.get('__name__'), frame.f_code.co_name)
        if where == ('mmengine.registry.build_functions', 'build_from_cfg'):
            node = frame.f_locals.get('cfg')
            return f'{message}\nThe fault is in {_find_key(frames, node)} of the config.'
    user_errors = (ValueError, OSError, FloatingPointError, ImportError)
    return message if isinstance(error, user_errors) else None


def _find_key(frames: list, node: Any) -> str:
    """Return the dotted key under which the whole config has a node, and its type.

    The config is that of the command, in the outermost frame with one. On their way to the
    builder some nodes gain or lose arguments; those are found by their type.
    """
    configs = (frame.f_locals.get('cfg') for frame in frames)
    whole = next((cfg for cfg in configs if hasattr(cfg, 'filename')), {})
    name = node.get('type') if isinstance(node, dict) else None
    nodes = list(walk_dicts(whole))
    same = [path for path, other in nodes if repr(other) == repr(node)]
    alike = [path for path, other in nodes if name is not None and other.get('type') == name]
    if not same and len(alike) != 1:
        return f'type={name!r}'
    return (same + alike)[0] + (f' ({name})' if name else '')


def build_runner(cfg: Any, verbose: bool = False) -> Any:
    """Build the Runner, of the class that ``runner_type`` names.

    Args:
        cfg: The config.
        verbose: Whether the console shows all that the log file has.

    Raises:
        ValueError: If ``runner_type`` is not registered, or ranks differ in what they are to do.
        TimeoutError: If a rank is missing.
    """
    # Here, not above: importing takes seconds, and --help is to answer at once.
    import torch
    from mmengine.registry import RUNNERS

    import mmpatchmix.registry  # noqa: F401  before mmengine looks anything up
    from mmpatchmix.engine.ranks import compare_ranks

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


# mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD = -1

M_MMAP_MAX = -4

USERS_OWN_SETTINGS = (
    'GLIBC_TUNABLES',
    'MALLOC_MMAP_MAX_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_TRIM_THRESHOLD_',
)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for this process instead of returning them to the system.

    Torch caches the memory of accelerators but not that of the host. By default glibc returns
    every large block when it is freed, so each training step is given fresh pages and the
    system has to clear them first: about 460 MiB per step of ViT-S with 8 images
    (``benchmarks/freed_memory.py``). The process then stays as large as it once was.

    Whoever has set glibc's own environment variables is left alone, as are systems without
    glibc.

    Returns:
        bool: Whether glibc took the settings.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in USERS_OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:  # musl
        return False
    # Blocks come from the heap, however large, and the heap never shrinks.
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1


def walk_dicts(node: Any, path: str = '') -> Iterator[tuple[str, Any]]:
    """Yield all dicts of a config at any depth, itself included.

    Args:
        node: mmengine's ``Config`` or any part of one.
        path: The key of ``node``.

    Yields:
        Dotted key, as ``--cfg-options`` takes it (``param_scheduler.0``), and dict.
    """
    if hasattr(node, 'items'):
        yield path, node
        items = node.items()
    else:
        items = enumerate(node) if isinstance(node, list | tuple) else ()
    for key, value in items:
        yield from walk_dicts(value, f'{path}.{key}' if path else str(key))
