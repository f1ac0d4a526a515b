"""Reason: importing mmpretrain's models or yapf fails, or takes seconds more than needed.

mmpretrain imports its vision-language models whenever transformers is installed. transformers 5
removed functions that these imports need, so that base classes are None and the import ends in
"NoneType takes no arguments". It also imports all models of mmdet where that is installed, 5 of the
12 s before a run starts, to define one layer of a ResNet.

A Runner formats its config with yapf, the same text up to seven times and at every checkpoint: 0.3
s each, here once. yapf writes its grammars into the user's cache folder under their final names
(https://github.com/google/yapf/issues/1204). Ranks that start together on a new machine can read
an incomplete file, and a full disk leaves one behind.
"""

import functools
import pickle
import sys
import time
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

RETRY_SECONDS = (0.1, 0.4, 1.5)  # a grammar is written within 0.1 s
LAYER = 'mmpretrain.models.utils.res_layer_extra_norm'


def install() -> None:
    """Prepare both imports; repeated calls change nothing."""
    prepare_mmpretrain()
    import_yapf()


def prepare_mmpretrain() -> None:
    """Let mmpretrain's models be as without mmdet, unless that is imported, and transformers 5.

    Models that need them are then the placeholders of mmpretrain, which raise when they are built.
    """
    if not {'mmdet', LAYER} & {*sys.modules}:
        sys.modules[LAYER] = ModuleType(LAYER)
        sys.modules[LAYER].ResLayerExtraNorm = None
    try:
        major = int(version('transformers').split('.')[0])
    except PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False


def import_yapf() -> None:
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
