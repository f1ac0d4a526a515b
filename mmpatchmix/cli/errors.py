"""End a command with one message for what its user can mend, and without a traceback."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmpatchmix.cli.walk_config import walk_dicts

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
