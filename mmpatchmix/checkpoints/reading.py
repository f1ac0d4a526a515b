"""Read weights and metadata of checkpoint files, without running code from them.

Torch files are read by :func:`mmpatchmix.compat.safe_loading.load_torch`.
"""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmpatchmix.compat.safe_loading import load_torch

# Key of the metadata of files that convert/ writes: a JSON object.
METADATA_KEY = 'mmpatchmix'


class Checkpoint(NamedTuple):
    """Content of a file."""

    state_dict: dict[str, Tensor]  # parameters and buffers, as named in the file
    # mmengine's 'meta'; metadata of files that convert/ wrote under 'mmpatchmix'; configs of a
    # folder under 'transformers' and 'preprocessor'.
    meta: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a file safely.

    Args:
        path: A torch file (mmengine's, a plain ``state_dict``, or a dict with one under
            ``state_dict`` or ``model``, or several under ``student`` and ``teacher``), a
            ``.safetensors`` file, or a folder of Hugging Face ``transformers``.

    Returns:
        Checkpoint: Tensors on the CPU, and the metadata.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds Python objects beyond tensors, is damaged, or holds no
            weights. The message contains the remedy.
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


def read_config_text(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read one dict of the config text in an mmengine checkpoint.

    The text is Python, of which only literals and ``dict(...)`` are parsed; nothing is executed.

    Args:
        meta: mmengine's ``meta``.
        name: Variable of the config, such as ``'model'``.

    Returns:
        dict: Empty without such a variable; values that cannot be parsed are None.
    """
    try:
        statements = ast.parse(meta.get('cfg', '')).body
    except (SyntaxError, TypeError, ValueError):
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            value = _parse(statement.value)
            return value if isinstance(value, dict) else {}
    return {}


def _parse(node: ast.AST) -> Any:
    """Return the value of literals, ``dict(...)`` and lists of them; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _parse(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_parse(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _join_networks(content: dict) -> dict[str, Any]:
    """Join the networks of DINO, iBOT and DINOv2 into one state: ``teacher.backbone...``."""
    return {
        f'{name}.{key.removeprefix("module.")}': value
        for name in ('student', 'teacher')
        if isinstance(content.get(name), dict)
        for key, value in content[name].items()
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
