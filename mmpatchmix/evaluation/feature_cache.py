"""Cache of features on disk, used again only for the same checkpoint, model, data and transform."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset

from mmpatchmix.engine.ranks import call_on_first_rank
from mmpatchmix.evaluation.features import Features

_KEY = 'key'


def feature_key(checkpoint: str | Path, model: Mapping, dataset: Mapping, data: Dataset) -> dict:
    """Return digests of everything that determines features.

    These are ``checkpoint`` (the content of the file), ``model``, ``transform`` (the pipeline of
    the config ``dataset``), ``dataset`` (the rest of it), and ``images`` of the data set ``data``.
    """
    rest = {name: value for name, value in dataset.items() if name != 'pipeline'}
    parts = dict(model=model, transform=dataset.get('pipeline'), dataset=rest)
    dumps = {name: json.dumps(part, sort_keys=True, default=repr) for name, part in parts.items()}
    return dict(
        checkpoint=hashlib.sha256(np.memmap(checkpoint, mode='r')).hexdigest(),
        **{name: hashlib.sha256(text.encode()).hexdigest() for name, text in dumps.items()},
        images=_digest_images(data),
    )


def cached_features(
    path: str | Path, key: Mapping[str, str], compute: Callable[[], Features]
) -> Features:
    """Read features from a ``.safetensors`` file with the same key, else compute and store them.

    ``compute`` is called on all ranks or on none. The result is the same on every rank.
    """
    path = Path(path)
    # Ranks may see different disks: the first one decides for all.
    reason = call_on_first_rank(_compare, path, key)
    if not reason:
        print_log(f'features read from {path}', 'current')
        tensors = call_on_first_rank(load_file, path)
        return Features(tensors['features'], tensors.get('labels'))
    print_log(f'features of {path.stem}: {reason}', 'current')
    features = compute()
    if dist.is_main_process():
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: value for name, value in features._asdict().items() if value is not None}
        partial = path.with_suffix('.partial')
        save_file(tensors, partial, {_KEY: json.dumps(dict(key))})
        partial.replace(path)
    return features


def _compare(path: Path, key: Mapping[str, str]) -> str:
    """Return why the file cannot be used; an empty string if it can."""
    if not path.is_file():
        return f'computing, {path} is not there yet'
    try:
        with safe_open(path, 'pt') as file:
            stored = json.loads((file.metadata() or {}).get(_KEY, '{}'))
    except (SafetensorError, ValueError):
        return f'computing again, {path} is damaged'
    changed = [name for name in key if stored.get(name) != key[name]]
    return f'computing again, other {", ".join(changed)} than in {path}' if changed else ''


def _digest_images(data: Dataset) -> str:
    """Digest labels, and pixels in memory or paths, sizes and times of files."""
    digest = hashlib.sha256(str(len(data)).encode())
    get_info = getattr(data, 'get_data_info', None)
    for index in range(len(data) if get_info else 0):
        info = get_info(index)
        for name in sorted(info):
            value, text = info[name], f'{name}{info[name]!r}'
            if isinstance(value, (torch.Tensor, np.ndarray)):
                digest.update(np.asarray(value).tobytes())
                continue
            if name == 'img_path':
                path = Path(value.removeprefix('shard://'))
                file = next((one for one in (path, path.parent) if one.is_file()), None)
                text = f'{value}{(file.stat().st_size, file.stat().st_mtime_ns) if file else None}'
            digest.update(text.encode(errors='surrogateescape'))
    return digest.hexdigest()
