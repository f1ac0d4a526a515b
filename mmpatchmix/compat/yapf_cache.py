"""Reason: a Runner formats its config with yapf, whose import can meet its cache half written.

yapf puts its grammars into the user's cache folder, and lets others see a file before it is
whole (https://github.com/google/yapf/issues/1204). Ranks that start together on a fresh machine
fail by that, and a full home disk leaves a broken file for good.
"""

import pickle
import time
from importlib import import_module
from pathlib import Path

WAITS = (0.1, 0.4, 1.5)  # seconds; a grammar is written in a tenth of one


def install() -> None:
    """Import yapf; wait for another process that is writing its cache.

    Raises:
        OSError: If the cache is still broken then; says which folder to delete.
    """
    for wait in (*WAITS, None):
        try:
            import_module('yapf')
            return
        except (EOFError, pickle.UnpicklingError) as error:
            if wait is None:
                from platformdirs import user_cache_dir  # yapf's own requirement

                folder = Path(user_cache_dir('YAPF', 'Google'))
                raise OSError(
                    f"{folder}: yapf's cache is broken ({error}), maybe because the disk was full "
                    'when it was written. Delete this folder; it is made again.'
                ) from error
            time.sleep(wait)
