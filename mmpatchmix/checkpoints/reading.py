"""Read checkpoint files without running what is in them.

A torch file is a pickle, and a pickle is a program. ``weights_only=True`` runs
none of it but needs to know every class in the file. Our own checkpoints carry
mmengine's training history beside the weights; mmengine's way to read them
(``get_torch_safe_globals``) allows ``getattr``, with which a file could reach
anything. Here these objects become inert placeholders instead: nothing of them
is needed to use the weights.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

# Key of the metadata of files we write: a JSON object.
METADATA_KEY = 'mmpatchmix'

# What mmengine, numpy and common training scripts leave in a checkpoint beside
# tensors, none of it weights.
_HISTORY = (
    'builtins.getattr',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'numpy.dtype',
    'numpy.ndarray',
    'numpy.core.multiarray.scalar',
    'numpy.core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    'numpy._core.multiarray._reconstruct',
    *(f'numpy.dtypes.{kind}DType' for kind in ('Bool', 'Int64', 'UInt32', 'Float32', 'Float64')),
    'argparse.Namespace',
)


class Checkpoint(NamedTuple):
    """What a file holds.

    Attributes:
        state_dict: Parameters and buffers, as named in the file.
        meta: What the file says about itself: mmengine's ``meta``, and under ``'mmpatchmix'``
            the metadata of files we wrote.
    """

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]


class _Inert:
    """Take the place of an object of the training history; know and do nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs) -> None:
        pass

    def __setstate__(self, state) -> None:
        pass


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a file safely.

    Args:
        path: A torch file (mmengine's, a plain ``state_dict``, or a dict with one under
            ``state_dict``, ``model`` or ``teacher``), a ``.safetensors`` file, or a folder of
            Hugging Face ``transformers``.

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
    content = _load_torch(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a state_dict.')
    inner = (content.get(key) for key in ('state_dict', 'model', 'teacher'))
    state = next((value for value in inner if isinstance(value, dict)), content)
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not state:
        raise ValueError(f'{path} holds no tensors; its keys are {list(content)[:10]}.')
    meta = content.get('meta')
    return Checkpoint(state, dict(meta) if isinstance(meta, dict) else {})


def _load_torch(path: Path) -> Any:
    stand_ins = [(_Inert, name) for name in _HISTORY]
    try:
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged pickle may raise any: KeyError, UnicodeDecodeError ...
        names = _foreign_objects(path)
        if not names:
            raise ValueError(
                f'{path} is damaged or no torch file. Copy or download it again.'
            ) from error
        raise ValueError(
            f'{path} is not a file of weights only: it holds Python objects '
            f'({", ".join(names[:5])}), a pickled model perhaps. Reading them would run code from '
            'the file, so it is refused. Where you trust the file, save its weights alone with '
            'the code that made it, and use these:\n'
            """  python -c "import torch; model = torch.load('FILE', weights_only=False); """
            """torch.save(model.state_dict(), 'weights.pth')\""""
        ) from error


def _foreign_objects(path: Path) -> list[str]:
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # damaged: then nothing can be said about what is in it
        return []
    return sorted(set(names) - set(_HISTORY))


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
    try:
        return Checkpoint(state, meta | {'transformers': json.loads(files[0].read_text())})
    except ValueError as error:
        raise ValueError(f'{files[0]} is damaged ({error}). Copy it again.') from error
