"""Reason: mmengine's checkpoint loaders unpickle what ``weights_only=True`` refuses.

A file could so run any code through ``load_from``, ``resume``, ``init_cfg`` and whatever else
loads through mmengine; one from the net would do so at once. Here all of them read by
:func:`mmpatchmix.checkpoints.reading.load_torch`, which runs nothing.
"""

import hashlib
import logging
import os
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import checkpoint

MARK = b'sha256:'

LENGTH = len(MARK) + 64  # of the comment

END = b'PK\x05\x06'  # 22 bytes begin with it; the last two tell the length of the comment


def find_damage(path: str | Path) -> str | None:
    """Return what is wrong with a torch file; None where nothing is.

    Sealed files are compared with their digest, other archives with the CRC of each member.
    Files of torch before 1.6 are no archives and pass, for there is nothing to compare with.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(4)
        file.seek(max(0, size - 22 - 65535))
        tail = file.read()
        end = tail.rfind(END)
        if end < 0:
            is_old = head[:1] == b'\x80'  # a pickle
            return None if is_old else 'its end is missing' if size else 'it is empty'
        length = int.from_bytes(tail[end + 20 : end + 22], 'little')
        comment = tail[end + 22 :]
        if len(comment) != length:
            return 'its end is cut off or changed'
        if length == LENGTH:
            wanted = MARK + digest(file, size - LENGTH - 2)
            return None if comment == wanted else 'its digest differs'
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        return f'{type(error).__name__}: {error}'
    return member and f'{member} differs from its CRC'


def digest(file, num_bytes: int) -> bytes:
    """Return the SHA-256 of the first bytes of an open file, in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (part := file.read(min(num_bytes, 2**24))):
        digest.update(part)
        num_bytes -= len(part)
    return digest.hexdigest().encode()


_trusted = False


class _Inert:
    """Take the place of an object that nothing here needs; know and do nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __setstate__(self, state) -> None:
        pass


class _DType:
    """What a file says about the type of numbers."""

    def __init__(self, code: str, *flags) -> None:
        self.code = str(code)

    def __setstate__(self, state: tuple) -> None:
        self.code = f'{state[1]}{self.code}'  # the order of bytes

    def to_numpy(self) -> np.dtype | None:
        """Return the type of plain numbers and texts; None for all others."""
        dtype = np.dtype(self.code)
        return dtype if dtype.kind in 'biufcSU' else None


class _Array:
    """An array on its way from a file into memory."""

    value = None

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, data = state
        if (kind := dtype.to_numpy()) is not None:
            flat = np.frombuffer(data, kind).copy()
            self.value = flat.reshape(shape, order='F' if is_fortran else 'C')


class _History(HistoryBuffer):
    """mmengine's history of a logged value, of numbers only."""

    def __setstate__(self, state: dict) -> None:
        names = ('_log_history', '_count_history', 'max_length')
        HistoryBuffer.__init__(self, *(_to_memory(state[name]) for name in names))
        self.__class__ = HistoryBuffer


def _read_array(*args) -> _Array:
    return _Array()


def _read_scalar(dtype: _DType, data: bytes) -> np.generic | None:
    kind = dtype.to_numpy()
    return None if kind is None else np.frombuffer(data, kind)[0]


def _read_bytes(*args) -> bytes:
    return b''  # how an array without numbers is saved


# What stands in for the classes and functions that a file may name beside torch's.
_STAND_INS = [
    (_History, 'mmengine.logging.history_buffer.HistoryBuffer'),
    (_DType, 'numpy.dtype'),
    (_Array, 'numpy.ndarray'),
    *((_read_scalar, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')),
    *((_read_array, f'numpy.{core}.multiarray._reconstruct') for core in ('core', '_core')),
    (_read_bytes, 'builtins.bytes'),
    *((_Inert, name) for name in ('builtins.getattr', 'argparse.Namespace')),
]


def trust_checkpoints() -> None:
    """Read everything in torch files from now on, in this process: they may run any code."""
    global _trusted
    _trusted = True


def load_torch(file: Any, map_location: Any = 'cpu') -> Any:
    """Read a torch file as ``torch.load`` does, without running anything of it.

    Args:
        file: A path, or a file open for reading.
        map_location: See ``torch.load``.

    Returns:
        What was saved. Tensors, plain Python values, numpy's arrays and numbers, and mmengine's
        ``HistoryBuffer`` are what they were; objects of training scripts are None.

    Raises:
        ValueError: If the file holds other Python objects, or is damaged.
    """
    name = file if isinstance(file, str | Path) else getattr(file, 'name', 'the file')
    if name is file and (damage := find_damage(file)):
        raise ValueError(f'{file} is damaged ({damage}). Copy or download it again.')

    def read(weights_only: bool) -> Any:
        return torch.load(file, map_location=map_location, weights_only=weights_only)

    return load_safely(read, name)


def load_safely(read: Callable[[bool], Any], name: Any) -> Any:
    """Read by any function that ends in ``torch.load(..., weights_only=...)``.

    Args:
        read: Takes ``weights_only``.
        name: What is read, for messages: a path where it is one.

    Returns:
        See :func:`load_torch`.

    Raises:
        ValueError: See :func:`load_torch`.
    """
    if _trusted:
        print_log(f'--trust-checkpoint: {name} may run code', 'current', logging.WARNING)
        return read(False)
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            content = _to_memory(read(True))
    except OSError:  # of the disk
        raise
    except Exception as error:  # a damaged pickle may raise any: KeyError, UnicodeDecodeError ...
        names = _foreign_objects(name, error)
        if not names:
            raise ValueError(
                f'{name} is damaged or no torch file. Copy or download it again.'
            ) from error
        raise ValueError(
            f'{name} is not a file of weights only: it holds Python objects '
            f'({", ".join(names[:5])}), a pickled model perhaps. Reading them would run code from '
            'the file, so it is refused. Where you trust the file, save its weights alone with '
            'the code that made it, and use these:\n'
            """  python -c "import torch; model = torch.load('FILE', weights_only=False); """
            """torch.save(model.state_dict(), 'weights.pth')"\n"""
            'or call the tool with --trust-checkpoint, which lets the file do as it likes.'
        ) from error
    # mmengine's Runner.resume() *runs* this text as a config. What it saves itself is 'cfg'.
    if isinstance(content, dict) and isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def _to_memory(node: Any) -> Any:
    """Replace the stand-ins in what was read by what they stand for; None where by nothing."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            node[key] = _to_memory(value)
    elif type(node) is tuple:
        return tuple(map(_to_memory, node))
    elif isinstance(node, _Array):
        return node.value
    elif isinstance(node, _Inert | _DType | _History):
        return None
    return node


def _foreign_objects(name: Any, error: Exception) -> list[str]:
    """Name the classes and functions in a file that are not read."""
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(name))
    except Exception:  # damaged, or no path: then the error says what was in the way
        names = set(re.findall(r'GLOBAL ([\w.]+)', str(error)))
    return sorted(names - {known for _, known in _STAND_INS})


def install() -> None:
    """Replace the two functions that mmengine's loaders read by; repeated calls change nothing."""
    checkpoint._safe_torch_load = _load_file
    checkpoint.load_url = _load_url


def _load_file(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:

    return load_torch(file, map_location)


def _load_url(url: str, **options: Any) -> Any:

    def read(weights_only: bool) -> Any:
        return torch.hub.load_state_dict_from_url(url, weights_only=weights_only, **options)

    return load_safely(read, url)
