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
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpatchmix.compat.safe_loading import load_torch

# Key of the metadata of files we write: a JSON object.
METADATA_KEY = 'mmpatchmix'


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
