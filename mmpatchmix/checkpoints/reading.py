"""Read weights and metadata of checkpoint files, without running code from them.

A file of the Hugging Face hub is named ``hf:ORG/NAME[@REVISION][:FILE]``.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmpatchmix.checkpoints.key_names import find_roles
from mmpatchmix.compat.file_kinds import is_safetensors
from mmpatchmix.compat.safe_loading import load_torch

# Key of the metadata of files that convert/ writes: a JSON object.
METADATA_KEY = 'mmpatchmix'
# Weights in the folder of a model on the hub, the first kind that there is.
_PATTERNS = ('model*.safetensors*', 'pytorch_model*')
# Files of weights in a folder of Hugging Face transformers.
_WEIGHTS = [
    f'{n}{i}' for n in ('model.safetensors', 'pytorch_model.bin') for i in ('', '.index.json')
]


class Checkpoint(NamedTuple):
    """Content of a file."""

    # Parameters and buffers, as named in the file; after the network's name if it has several.
    state_dict: dict[str, Tensor]
    # mmengine's 'meta'; metadata of files that convert/ wrote under 'mmpatchmix'; configs of a
    # folder under 'transformers' and 'preprocessor'.
    meta: dict[str, Any]
    # Where state_dict holds averages (EMAHook of mmengine, WeightAveraging of Lightning): the raw
    # weights; their names begin with 'raw.'.
    raw: dict[str, Tensor] = {}


def resolve(path: str | Path) -> Path:
    """Return a path, or the local copy of a file or folder of the hub.

    Downloads, cache, tokens and offline mode are those of ``huggingface_hub``. Without FILE,
    configs and weights are downloaded.

    Raises:
        ValueError: If the name is malformed, or its repository is no folder of a model.
        OSError: If there is no such file, or no access to it.
    """
    if not str(path).startswith('hf:'):
        return Path(path)
    from huggingface_hub import hf_hub_download, snapshot_download

    match = re.fullmatch(r'hf:([^/@:]+/[^/@:]+)(?:@([^:]+))?(?::(.+))?', str(path))
    if match is None:
        raise ValueError(f'{path} must be hf:ORG/NAME, hf:ORG/NAME:FILE or hf:ORG/NAME@REVISION.')
    repo, revision, file = match.groups()
    with explain_errors(path):
        if file:
            return Path(hf_hub_download(repo, file, revision=revision))
        for weights in _PATTERNS:
            patterns = ['config.json', 'preprocessor_config.json', weights]
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
            if any(folder.glob(weights)) and (folder / 'config.json').is_file():
                return folder
    raise ValueError(
        f'{path} has no config.json with weights: name a file of it, hf:{repo}:FILE '
        f'(https://huggingface.co/{repo}/tree/main).'
    )


@contextmanager
def explain_errors(name: str | Path) -> Iterator[None]:
    """Raise errors of the hub's client and of the network in one line."""
    try:
        yield
    except Exception as error:
        text = ' '.join(str(error).split())
        raise OSError(f'{name}: {type(error).__name__}: {text}') from error


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights of a file safely, onto the CPU.

    Args:
        path: A torch file (a ``state_dict``, or a dict with one or several of them under any
            keys, such as ``model`` or ``student`` and ``teacher``), a ``.safetensors`` file, or
            a folder of Hugging Face ``transformers`` with one or several files of weights, or the
            name of one of them on the hub, see :func:`resolve`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file holds Python objects beyond tensors, is damaged, or holds no
            weights. The message contains the remedy.
    """
    path = resolve(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f'There is no checkpoint {path}.')
    if is_safetensors(path):
        return _read_safetensors(path)
    content = load_torch(path)
    if isinstance(content, nn.Module):  # with --trust-checkpoint
        content = content.state_dict()
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}, not a state_dict.')
    networks = _find_networks(content)
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    is_mmengine = 'message_hub' in content or 'mmengine_version' in meta
    raw = networks.get('ema_state_dict' if is_mmengine else 'current_model_state', {})
    has_roles = any(any(find_roles(name)) for name in networks)
    if is_mmengine or raw or not has_roles:
        usual = [name for name in ('state_dict', 'model') if name in networks]
        networks = {'': networks[usual[0]]} if usual else networks
    if not networks:
        raise ValueError(
            f'{path} holds no tensors; its keys are {list(content)[:10]}. Those of '
            f'{[key for key in content if content[key] is None]} are empty or Python objects.'
        )
    is_plain = len(networks) == 1 and not any(find_roles(*networks))
    state = {
        key if is_plain else f'{name}.{key}': value
        for name, network in networks.items()
        for key, value in network.items()
    }
    return Checkpoint(state, meta, {f'raw.{key}': value for key, value in raw.items()})


def read_config_text(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read the dict of one variable of the config text in an mmengine checkpoint, may be empty.

    The text is Python, of which only literals and ``dict(...)`` are parsed; all else is None.
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


def _find_networks(content: dict) -> dict[str, dict[str, Tensor]]:
    """Return the states up to three dictionaries deep that are no optimizers or small heads."""
    found, waiting = {}, [('', content)]
    for name, node in waiting:  # grows
        state = {k: v for k, v in node.items() if isinstance(v, Tensor) and isinstance(k, str)}
        if any(value.is_floating_point() for value in state.values()):
            found[name] = state
        for key, value in node.items() if name.count('.') < 2 else ():
            if isinstance(value, nn.Module):  # with --trust-checkpoint
                value = value.state_dict()
            if isinstance(value, dict) and isinstance(key, str) and 'optim' not in key:
                waiting.append((f'{name}.{key}'.lstrip('.'), value))
    dotted = {n: state for n, state in found.items() if any('.' in key for key in state)}
    found = dotted or found  # a queue or the state of a random generator has no such names
    sizes = {name: sum(value.numel() for value in found[name].values()) for name in found}
    largest = max(sizes.values(), default=0)
    if sizes.get('') == largest:  # a state_dict with other entries
        return {'': found['']}
    return {name: found[name] for name in found if name and 2 * sizes[name] >= largest}


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
    weights = next((folder / name for name in _WEIGHTS if Path(folder, name).is_file()), None)
    config = folder / 'config.json'
    missing = [config.name] * (not config.is_file()) + [' or '.join(_WEIGHTS)] * (not weights)
    if missing:
        raise FileNotFoundError(
            f'{folder} is a folder without {" and without ".join(missing)}; name a '
            'checkpoint file, or the folder of a model of Hugging Face transformers.'
        )
    files = [weights]
    if weights.suffix == '.json':
        files = [folder / name for name in sorted(set(_read_json(weights)['weight_map'].values()))]
    state, meta = {}, {}
    for file in files:
        part = read_checkpoint(file)
        state, meta = state | part.state_dict, meta | part.meta
    if 'model_type' in (content := _read_json(config)):
        meta['transformers'] = content
    elif stated := content.get('pretrained_cfg'):  # of timm
        size = stated.get('input_size', [224])[-1] / stated.get('crop_pct', 0.875)
        mean, std = stated.get('mean'), stated.get('std')
        meta['preprocessor'] = dict(image_mean=mean, image_std=std, size=size)
        heads = (content.get('model_args') or {}).get('num_heads')
        meta.setdefault(METADATA_KEY, {'num_heads': heads} if heads else {})
    if (file := folder / 'preprocessor_config.json').is_file():
        meta['preprocessor'] = _read_json(file)
    return Checkpoint(state, meta)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{file} is damaged ({error}). Copy it again.') from error
