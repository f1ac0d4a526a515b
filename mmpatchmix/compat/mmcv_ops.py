"""Reason: ``pip install`` of mmcv yields no ``mmcv._ext``, without which mmdet cannot be imported.

Wheels of mmcv with compiled ops exist for few versions of torch, and building one takes long or
fails (mmcv 2.3.6 sets C++17, torch 2.14 needs C++20). Where no compiled ``mmcv._ext`` can be
loaded, :mod:`mmpatchmix.compat.mmcv_ext` takes its place.
"""

import ast
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import torch  # a compiled _ext needs torch's shared objects in the process

NAME = 'mmcv._ext'
REPLACEMENT = Path(__file__).with_name('mmcv_ext.py')


def install() -> None:
    """Import ``mmcv._ext``, compiled or replaced; repeated calls change nothing."""
    if NAME in sys.modules:
        return
    import mmcv

    sys.modules[NAME] = mmcv._ext = load_ext(mmcv.__path__)
    if 'mmdet' in sys.modules and 'mmcv.ops' not in sys.modules:
        _set_missing_ops()


def load_ext(folders: Sequence[str]) -> ModuleType:
    """Load the compiled ``mmcv._ext`` in these folders, or the replacement."""
    spec = PathFinder.find_spec(NAME, folders)
    try:
        if spec is not None:
            return _execute(spec)
    except ImportError as error:
        warnings.warn(
            f'the compiled ops of mmcv in {spec.origin} cannot be loaded with torch '
            f'{torch.__version__} ({error}): most likely they were built for another torch. '
            "torchvision's ops replace them. To use mmcv's own, rebuild it: pip install "
            '--no-cache-dir --no-build-isolation --force-reinstall --no-deps onedl-mmcv',
            RuntimeWarning,
            stacklevel=3,
        )
    return _execute(importlib.util.spec_from_file_location(NAME, REPLACEMENT))


def _execute(spec: ModuleSpec) -> ModuleType:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _set_missing_ops() -> None:
    """Set the ops in modules of mmdet that imported ``mmcv.ops`` in a ``try`` statement before."""
    for name, module in list(sys.modules.items()):
        file = getattr(module, '__file__', None) or ''
        if name.split('.')[0] not in ('mmcv', 'mmdet') or not file.endswith('.py'):
            continue
        for attempt in ast.parse(Path(file).read_text(encoding='utf-8')).body:
            for node in attempt.body if isinstance(attempt, ast.Try) else ():
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                    ops = importlib.import_module(node.module)
                    for alias in node.names:
                        setattr(module, alias.asname or alias.name, getattr(ops, alias.name))
