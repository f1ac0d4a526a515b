"""Reason: ``pip install`` of mmcv yields no ``mmcv._ext``, and mmdet needs it to import.

A wheel of mmcv with compiled ops exists for few versions of torch, and building
one takes long or fails (mmcv 2.3.6 asks for C++17, torch 2.14 for C++20). The
import of ``mmcv._ext`` therefore falls back to
:mod:`mmpatchmix.compat.mmcv_ext`, whose ops call torchvision's compiled kernels,
on CPU and GPU alike. A compiled ``_ext`` that imports always wins.
"""

import ast
import importlib.util
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

NAME = 'mmcv._ext'
STAND_IN = Path(__file__).with_name('mmcv_ext.py')


def install() -> None:
    """Answer imports of ``mmcv._ext`` from now on; does nothing when called again."""
    if any(isinstance(finder, _ExtFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _ExtFinder())
    if 'mmdet' in sys.modules and 'mmcv.ops' not in sys.modules:
        _hand_over_ops()


def _hand_over_ops() -> None:
    """Give modules that were imported before us the ops they could not import.

    Many modules of mmdet wrap ``from mmcv.ops import ...`` in ``try`` and define a function
    that raises in its place. The names they asked for are set to the real ops.
    """
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


class _ExtFinder(MetaPathFinder):
    """Finds a compiled ``mmcv._ext`` that works, and the stand-in otherwise."""

    def find_spec(
        self, fullname: str, path: list[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != NAME:
            return None
        compiled = PathFinder.find_spec(fullname, path)
        # Only running a compiled module shows whether it was built for this torch.
        if compiled is not None and (module := _load(compiled)) is not None:
            compiled.loader = _Loaded(module)
            return compiled
        return importlib.util.spec_from_file_location(fullname, STAND_IN)


class _Loaded(Loader):
    """Hands out a module that was executed while it was looked for."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        pass


def _load(spec: ModuleSpec) -> ModuleType | None:
    """Execute a compiled ``_ext``; None, with one warning, where it does not load."""
    # The shared objects of torch must be in the process before those built on them.
    import torch

    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        warnings.warn(
            f'the compiled ops of mmcv in {spec.origin} do not load with torch '
            f'{torch.__version__} ({error}): most likely they were built for another torch. '
            "torchvision's ops are used in their place. To keep mmcv's own, rebuild it against "
            'this torch: pip install --no-cache-dir --no-build-isolation --force-reinstall '
            '--no-deps onedl-mmcv',
            RuntimeWarning,
            stacklevel=2,
        )
        return None
    return module
