"""Read checkpoint files without running what is in them.

A torch file is a pickle, and a pickle is a program. ``weights_only=True`` runs
none of it but needs to know every class in the file. Our own checkpoints carry
mmengine's training history beside the weights; mmengine's way to read them
(``get_torch_safe_globals``) allows ``getattr``, with which a file could reach
anything, and numpy's own unpickling, which trusts what a file says about memory. Here
the history and plain arrays of numbers are read by code of ours that takes nothing but
numbers; what else training scripts leave behind becomes None. Nothing of that is needed
to use the weights or to resume.

:mod:`mmpatchmix.compat.safe_loading` makes mmengine's Runner, and all that loads through
mmengine, read files in this way.
"""

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpatchmix.checkpoints.sealing import find_damage

# Key of the metadata of files we write: a JSON object.
METADATA_KEY = 'mmpatchmix'
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


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        state_dict: Parameters and buffers, as named in the file.
        meta: What the file says about itself: mmengine's ``meta``, and under ``'mmpatchmix'``
            the metadata of files we wrote.
    """

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a file safely.

    Args:
        path: A torch file (mmengine's, a plain ``state_dict``, or a dict with one under
            ``state_dict`` or ``model``, or several under ``student`` and ``teacher``), a
            ``.safetensors`` file, or a folder of Hugging Face ``transformers``.

    Returns:
        Checkpoint: Tensors on the CPU, and what is known about them.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds Python objects beyond tensors, is damaged, or holds no
            weights. The message says how to go on.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {path}.')
    if path.suffix == '.safetensors':
        return _read_safetensors(path)
    content = load_torch(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a state_dict.')
    inner = (content.get(key) for key in ('state_dict', 'model'))
    state = next((value for value in inner if isinstance(value, dict)), None)
    state = state or _join_networks(content) or content
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f'{path} holds no tensors; its keys are {list(content)[:10]}.')
    meta = content.get('meta')
    return Checkpoint(state, dict(meta) if isinstance(meta, dict) else {})


def _join_networks(content: dict) -> dict[str, Any]:
    """Put the networks of DINO, iBOT and DINOv2 into one state: ``teacher.backbone...``."""
    networks = {name: content.get(name) for name in ('student', 'teacher')}
    return {
        f'{name}.{key.removeprefix("module.")}': value
        for name, state in networks.items()
        if isinstance(state, dict)
        for key, value in state.items()
    }


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


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, 'pt') as file:
            meta = dict(file.metadata() or {})
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if METADATA_KEY in meta:
            meta[METADATA_KEY] = json.loads(meta[METADATA_KEY])
    except (SafetensorError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({error}). Copy it again.') from error
    return Checkpoint(state, meta)


def _read_folder(folder: Path) -> Checkpoint:
    """Read a model of Hugging Face transformers: weights beside ``config.json``."""
    files = [folder / 'config.json', folder / 'model.safetensors']
    if not all(file.is_file() for file in files):
        raise FileNotFoundError(
            f'{folder} is a folder without {" and ".join(file.name for file in files)}; name a '
            'checkpoint file, or the folder of a model of Hugging Face transformers.'
        )
    state, meta = _read_safetensors(files[1])
    names = {'transformers': files[0], 'preprocessor': folder / 'preprocessor_config.json'}
    for name, file in names.items():
        try:
            meta |= {name: json.loads(file.read_text())} if file.is_file() else {}
        except ValueError as error:
            raise ValueError(f'{file} is damaged ({error}). Copy it again.') from error
    return Checkpoint(state, meta)
