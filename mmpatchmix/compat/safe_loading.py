"""Reason: mmengine unpickles checkpoint files that ``weights_only=True`` refuses, which runs code.

Here everything that loads through mmengine uses :func:`load_torch`, which calls nothing from the
file. ``weights_only=True`` alone refuses mmengine's own checkpoints, which hold the training
history; mmengine's list of safe classes contains ``getattr``, through which a file could reach any
object, and numpy's unpickling trusts sizes in the file. The history and plain arrays are therefore
rebuilt from numbers here. Files that name a function of Python's library are refused.
"""

import logging
import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import checkpoint

from mmpatchmix.compat.file_kinds import find_damage, find_other_kind

# Modules of Python whose classes start programs or load code.
_STARTERS = ('subprocess', 'multiprocessing', 'importlib', 'ctypes', 'socket', 'code')
_is_trusted = False


def install() -> None:
    """Replace the two functions with which mmengine reads torch files."""
    checkpoint._safe_torch_load = load_torch
    checkpoint.load_url = _load_url


def _load_url(url: str, **options: Any) -> Any:
    def read(weights_only: bool) -> Any:
        return torch.hub.load_state_dict_from_url(url, weights_only=weights_only, **options)

    return _load_safely(read, url)


def trust_checkpoints() -> None:
    """Unpickle torch files without restriction from now on, in this process."""
    global _is_trusted
    _is_trusted = True


def load_torch(file: Any, map_location: Any = 'cpu') -> Any:
    """Read a torch file, a path or open, as ``torch.load`` does, without running code from it.

    Tensors, plain Python values, numpy's arrays and numbers, and mmengine's ``HistoryBuffer`` are
    restored. Objects of other classes (paths, enumerations, arrays of objects) become None, or the
    dict or list that they derive from. ``ValueError`` if the file holds functions, only such
    objects, is damaged or no torch file.
    """
    if isinstance(file, str | Path):
        if kind := find_other_kind(file):
            raise ValueError(f'{file} is no torch file but {kind}')
        if damage := find_damage(file):
            raise ValueError(f'{file} is damaged ({damage}). Copy or download it again.')
        # Opened here, since torch takes every path that ends in .safetensors for such a file.
        with open(file, 'rb') as opened:
            return load_torch(opened, map_location)

    def read(weights_only: bool) -> Any:
        file.seek(0)
        return torch.load(file, map_location=map_location, weights_only=weights_only)

    return _load_safely(read, getattr(file, 'name', 'the file'))


def _load_safely(read: Callable[[bool], Any], name: Any) -> Any:
    """Call ``read(weights_only)``; ``name`` is the path or URL for messages."""
    if _is_trusted:
        print_log(f'--trust-checkpoint: {name} may run code', 'current', logging.WARNING)
        return read(False)
    kinds: dict[str, type] = {}  # by the names of foreign classes
    while True:
        foreign = [(type(known, (kind,), {}), known) for known, kind in kinds.items()]
        try:
            with torch.serialization.safe_globals(_REPLACEMENTS + foreign):
                content = _restore(read(True))
            break
        except OSError:  # of the disk
            raise
        except Exception as error:  # a damaged pickle can raise any: KeyError, UnicodeDecodeError
            found = _foreign_objects(name, error)
            new = dict.fromkeys(found, _Discarded) if all(map(_is_data, found)) else {}
            new |= kinds | {key: _Mapping for key in kinds if f".{key}'>" in str(error)}
            if new == kinds:
                raise _refusal(name, found or list(kinds)) from error
            kinds = new
    if kinds and not _holds_tensors(content):
        raise _refusal(name, list(kinds))
    # Runner.resume() of mmengine runs this text as a config; mmengine itself saves 'cfg'.
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def _refusal(name: Any, names: list[str]) -> ValueError:
    """Return the error for a file with objects of the named classes, if any."""
    if not names:
        return ValueError(f'{name} is damaged or no torch file. Copy or download it again.')
    return ValueError(
        f'{name} is not a file of weights only: it holds Python objects '
        f'({", ".join(names[:5])}), perhaps a pickled model. Reading them would run code from '
        'the file, so it is refused. If you trust the file, save its weights alone with '
        'the code that made it, and use these:\n'
        """  python -c "import torch; x = torch.load('FILE', weights_only=False); """
        """x = x if isinstance(x, dict) else {'model': x}; torch.save({k: v.state_dict() """
        """for k, v in x.items() if hasattr(v, 'state_dict')} or x, 'weights.pth')"\n"""
        'or call the tool with --trust-checkpoint, which lets the file run any code.'
    )


def _foreign_objects(name: Any, error: Exception) -> list[str]:
    """Return the names of the classes and functions in a file that are not read."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(name)
    except Exception:  # damaged, or not a path: the error names the first of them
        found = re.findall(r'GLOBAL ([\w.]+)', str(error))
        names = [known if '.' in known else f'builtins.{known}' for known in found]
    return sorted(set(names) - {known for _, known in _REPLACEMENTS})


def _is_data(name: str) -> bool:
    """Return whether a name is no function of Python's library (``io.open``), which is refused."""
    module, _, attribute = name.rpartition('.')
    module = IMPORT_MAPPING.get(module, module)  # pickles of protocol 2 have Python 2's names
    library = module.partition('.')[0]
    if library in _STARTERS or library not in sys.stdlib_module_names:
        return library not in _STARTERS
    found = vars(sys.modules[module]).get(attribute) if module in sys.modules else None
    return isinstance(found, type) or (found is None and attribute.lstrip('_')[:1].isupper())


def _holds_tensors(node: Any) -> bool:
    if isinstance(node, dict | list | tuple):
        return any(map(_holds_tensors, node.values() if isinstance(node, dict) else node))
    return isinstance(node, torch.Tensor)


# -- replacements of the classes and functions that a file may name beside torch's -------------


class _Discarded(list):
    """Any object of another class, a list if items are appended."""

    __hash__ = object.__hash__

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __setstate__(self, state) -> None:
        pass


class _Mapping:
    """A dictionary of another class."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


class _DType:
    """``numpy.dtype``."""

    def __init__(self, code: str, *flags) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple) -> None:
        self.code = f'{state[1]}{self.code}'  # the order of bytes

    def to_numpy(self) -> np.dtype | None:
        """Return the dtype of plain numbers and texts; None for all others."""
        dtype = np.dtype(self.code)
        return dtype if dtype.kind in 'biufcSU' else None


class _Array:
    """``numpy.ndarray``; ``value`` is None for arrays of objects."""

    value = None

    def __init__(self, *args) -> None:  # of _reconstruct()
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if (kind := dtype.to_numpy()) is not None:
            flat = np.frombuffer(data, kind).copy()
            self.value = flat.reshape(shape, order='F' if is_fortran else 'C')


class _History(HistoryBuffer):
    """mmengine's history of a logged value."""

    def __setstate__(self, state: dict) -> None:
        names = ('_log_history', '_count_history', 'max_length')
        HistoryBuffer.__init__(self, *(_restore(state[name]) for name in names))
        self.__class__ = HistoryBuffer


def _read_scalar(dtype: _DType, data: bytes) -> np.generic | None:
    kind = dtype.to_numpy()
    return None if kind is None else np.frombuffer(data, kind)[0]


_REPLACEMENTS = [
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_DType, 'numpy.dtype'),
    (_Array, 'numpy.ndarray'),
    *((_read_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    *((_Array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    (lambda *_: b'', 'builtins.bytes'),  # the data of an empty array
    (lambda *_: _Discarded, 'builtins.getattr'),  # a class within a class, or a member of an enum
    *((_Discarded, name) for name in ('copyreg._reconstructor', 're._compile')),
]


def _restore(node: Any) -> Any:
    """Exchange the replacements in an object for the values they hold."""
    if isinstance(node, _DType | _History):
        return None
    if isinstance(node, dict | list):
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            node[key] = _restore(value)
            if isinstance(key, _Discarded):
                del node[key]
        return (list(node) or None) if isinstance(node, _Discarded) else node
    if type(node) in (tuple, set):
        return type(node)(_restore(value) for value in node)
    if isinstance(node, _Array):
        return node.value
    is_class = isinstance(node, type) and issubclass(node, _Discarded | _Mapping)
    return None if is_class else node
