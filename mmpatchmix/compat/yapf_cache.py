"""Reason: a Runner formats its config with yapf, whose import fails on a partly written cache.

It formats the same text up to seven times, and at every checkpoint: 0.3 s each, here once.
yapf writes its grammars into the user's cache folder under their final names
(https://github.com/google/yapf/issues/1204). Ranks that start together on a new machine can read
an incomplete file, and a full disk leaves one behind.
"""

import functools
import pickle
import time
from importlib import import_module
from pathlib import Path
from types import ModuleType

RETRY_SECONDS = (0.1, 0.4, 1.5)  # a grammar is written within 0.1 s


def install() -> None:
    """Import yapf; retry while another process writes its cache, then raise ``OSError``."""
    for pause in (*RETRY_SECONDS, None):
        try:
            _format_once(import_module('yapf.yapflib.yapf_api'))
            return
        except (EOFError, pickle.UnpicklingError) as error:
            if pause is None:
                from platformdirs import user_cache_dir  # yapf requires it

                folder = Path(user_cache_dir('YAPF', 'Google'))
                raise OSError(
                    f"{folder}: yapf's cache is broken ({error}), perhaps because the disk was "
                    'full when it was written. Delete this folder; yapf writes it again.'
                ) from error
            time.sleep(pause)


def _format_once(api: ModuleType) -> None:
    """Let ``FormatCode`` keep the last result."""
    if hasattr(api.FormatCode, '__wrapped__'):
        return
    format_code, last = api.FormatCode, []

    @functools.wraps(format_code)
    def format_once(text: str, *args: object, **kwargs: object) -> tuple:
        if last[:1] != [(text, args, kwargs)]:
            last[:] = (text, args, kwargs), format_code(text, *args, **kwargs)
        return last[1]

    api.FormatCode = format_once
