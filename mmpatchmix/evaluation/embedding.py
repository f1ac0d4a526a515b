"""Features of many images, written row by row to disk; an interrupted run can continue.

An embedding is a folder that numpy and pandas read without this package::

    features = numpy.load('OUT/features.npy', mmap_mode='r')  # (M, D) float32
    files = pandas.read_csv('OUT/files.csv')  # row m: name of image m, and whether it was readable

``patch_tokens.npy``, ``(M, T, D)`` float16, is written on request; ``about.json`` describes the
images and the network. Until it is complete the folder is called ``OUT.partial``.
"""

import contextlib
import csv
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine import dist
from mmengine.logging import print_log
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from mmpatchmix.engine.ranks import call_on_first_rank
from mmpatchmix.evaluation.features import evaluation_mode, feature_function, iterate_features
from mmpatchmix.files import write_text
from mmpatchmix.models import unwrap_model

FEATURES, PATCH_TOKENS, FILES, ABOUT = 'features.npy', 'patch_tokens.npy', 'files.csv', 'about.json'
# One byte per image: 0 until its row is on the disk.
_STATES, _DONE, _UNREADABLE = 'states.npy', 1, 2
# Rows of at most so many seconds are computed again after a loss of power.
_SYNC_SECONDS = 20


class Embedding(NamedTuple):
    """Content of a folder of :func:`embed`."""

    features: np.ndarray  # (M, D) float32, mapped from the disk; NaN where an image was unreadable
    files: list[str]  # M names, below about['root']
    readable: np.ndarray  # (M,) bool
    about: dict[str, Any]  # content of about.json


def read_embedding(folder: str | Path) -> Embedding:
    """Open an embedding; the features stay on the disk. ``FileNotFoundError`` unless finished."""
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        begun = f': {_partial(folder)} is not finished' if _partial(folder).is_dir() else ''
        raise FileNotFoundError(
            f'there is no embedding {folder}{begun}; "mmpatchmix embed ... --out {folder}" writes '
            'and continues it.'
        )
    with open(folder / FILES, encoding='utf-8', errors='surrogateescape', newline='') as file:
        _, *rows = csv.reader(file)
    return Embedding(
        np.load(folder / FEATURES, mmap_mode='c'),  # torch warns about read-only memory
        [name for name, _ in rows],
        np.array([readable == '1' for _, readable in rows]),
        json.loads((folder / ABOUT).read_text(encoding='utf-8')),
    )


def embed(
    model: nn.Module,
    dataloader: DataLoader,
    folder: str | Path,
    about: Mapping[str, Any],
    patch_tokens: bool = False,
) -> int:
    """Write the features of all images of a data set; ranks share the images and the folder.

    Rows that an interrupted run has left in ``folder.partial`` are kept, on any number of ranks, if
    ``about`` is the same, else ``ValueError``: everything that determines the features, such as
    :func:`~mmpatchmix.evaluation.feature_cache.feature_key`, on the first rank. The sampler of the
    loader is not used. For ``patch_tokens`` the backbone is a ViT of mmpretrain, which returns all
    tokens afterwards, too. ``FileExistsError`` if the folder exists. Returns the number of
    unreadable images, whose rows are NaN.
    """
    folder, dataset = Path(folder), dataloader.dataset
    forward, num_extra = feature_function(model), 0
    if patch_tokens:
        num_extra = _output_tokens(unwrap_model(model))
        forward = feature_function(model, num_axes=3)
    with evaluation_mode(unwrap_model(model)):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            shape = forward(dataloader.collate_fn([dataset[0]])).shape[1:]  # (D,) or (T, D)
        call_on_first_rank(_prepare, folder, dataset, shape, num_extra, about)
        states = np.load(_partial(folder) / _STATES)
        dist.barrier()  # before any rank writes
        remaining = np.flatnonzero(states == 0)
        if num_done := len(states) - len(remaining):
            print_log(f'{num_done:,} images are done already', 'current')
        # A memoryview holds 8 bytes per index and gives Python's integers.
        mine = memoryview(remaining[dist.get_rank() :: dist.get_world_size()].copy())
        batches = BatchSampler(mine, dataloader.batch_size, drop_last=False)
        names = ('num_workers', 'collate_fn', 'worker_init_fn', 'pin_memory')
        options = {name: getattr(dataloader, name) for name in names}
        loader = DataLoader(dataset, batch_sampler=batches, **options)
        outputs = iterate_features(loader, batches, forward, 'embedding', len(remaining))
        _write(_partial(folder), dataset, outputs, num_extra)
    dist.barrier()  # all ranks have written
    num_unreadable = int((np.load(_partial(folder) / _STATES) == _UNREADABLE).sum())
    dist.barrier()  # all ranks have read
    call_on_first_rank(_finish, folder, dataset)
    return num_unreadable


def _partial(folder: Path) -> Path:
    return folder.with_name(f'{folder.name}.partial')


def _output_tokens(model: nn.Module) -> int:
    """Set a ViT to return all tokens; return how many precede those of the patches."""
    vits = [module for module in model.modules() if hasattr(module, 'num_extra_tokens')]
    if not vits:
        raise ValueError(f'{type(model).__name__} has no ViT of mmpretrain: no patch tokens.')
    for vit in vits:
        if vit.out_type == 'avg_featmap':
            raise ValueError('features are means of patch tokens, which have a norm of their own')
        vit.out_type = 'raw'
    return vits[0].num_extra_tokens


def _prepare(
    folder: Path, dataset: Dataset, shape: tuple, num_extra: int, about: Mapping[str, Any]
) -> None:
    """Create the folder and its empty files, or check existing ones."""
    partial, size = _partial(folder), len(dataset)
    if folder.exists():
        raise FileExistsError(f'{folder} exists already; remove it or choose another name.')
    num_tokens = shape[0] - num_extra if num_extra else 0
    own = dict(num_images=size, width=shape[-1], root=_root(dataset), patch_tokens=num_tokens)
    about = {**about, **own}
    if (partial / ABOUT).is_file():
        former = json.loads((partial / ABOUT).read_text(encoding='utf-8'))
        if changed := [name for name in about if former.get(name) != about[name]]:
            raise ValueError(
                f'{partial} was begun with other {", ".join(changed)}: remove it to begin anew, or '
                'choose another name.'
            )
        return
    partial.mkdir(parents=True, exist_ok=True)
    files = {FEATURES: ((size, shape[-1]), np.float32), _STATES: ((size,), np.uint8)}
    if num_extra:
        files[PATCH_TOKENS] = ((size, num_tokens, shape[-1]), np.float16)
    needed = sum(math.prod(sizes) * np.dtype(kind).itemsize for sizes, kind in files.values())
    if needed > (free := shutil.disk_usage(partial).free):
        gib = needed / 2**30, free / 2**30
        raise ValueError(f'{folder} would take {gib[0]:.1f} GiB, and {gib[1]:.1f} GiB are free.')
    for name, (sizes, kind) in files.items():
        np.lib.format.open_memmap(partial / name, mode='w+', dtype=kind, shape=sizes)
    write_text(partial / ABOUT, json.dumps(about, indent=2) + '\n')  # last: now it can continue


def _write(folder: Path, dataset: Dataset, outputs: Iterator[tuple], num_extra: int) -> None:
    """Write the rows of this rank; mark an image as done only once its row is on the disk."""
    pending, synced = {}, time.monotonic()
    names = (_STATES, FEATURES, PATCH_TOKENS) if num_extra else (_STATES, FEATURES)
    with contextlib.ExitStack() as stack:
        states, *files = (_Rows(folder / name, stack) for name in names)

        def sync() -> None:
            for file in files:
                file.sync()
            for index in list(pending):
                states.write(index, pending.pop(index))
            states.sync()

        stack.callback(sync)  # after Ctrl-C, too
        for indices, rows, samples in outputs:
            for index, row, sample in zip(indices, rows, samples, strict=True):
                # The data set returns another image in place of an unreadable one.
                found = sample.get('img_path') if hasattr(sample, 'get') else None
                readable = found is None or str(found) == _path(dataset, index)
                row = row if readable else row * math.nan  # (D,) or (T, D)
                parts = (row[0], row[num_extra:]) if num_extra else (row,)
                for file, part in zip(files, parts, strict=True):
                    file.write(index, part)
                pending[index] = _DONE if readable else _UNREADABLE
            if time.monotonic() - synced > _SYNC_SECONDS:
                sync()
                synced = time.monotonic()


class _Rows:
    """Write rows of an ``.npy`` file; a mapping would count the whole file as memory in use."""

    def __init__(self, path: Path, stack: contextlib.ExitStack) -> None:
        mapped = np.load(path, mmap_mode='r')
        self.start, self.dtype, self.num_bytes = mapped.offset, mapped.dtype, mapped[0].nbytes
        self.file = stack.enter_context(path.open('r+b'))

    def write(self, index: int, row: Any) -> None:
        self.file.seek(self.start + index * self.num_bytes)
        self.file.write(np.asarray(row, self.dtype).tobytes())

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def _path(dataset: Dataset, index: int) -> str:
    """Return the path of an image, empty where it has no file of its own."""
    get_info = getattr(dataset, 'get_data_info', None)
    return str(get_info(index).get('img_path') or '') if get_info else ''


def _root(dataset: Dataset) -> str:
    prefix = getattr(dataset, 'img_prefix', '')
    return os.path.abspath(prefix) if prefix else ''


def _finish(folder: Path, dataset: Dataset) -> None:
    """Write the names, and rename the folder."""
    partial, root = _partial(folder), _root(dataset)
    states = np.load(partial / _STATES)
    if num_left := int((states == 0).sum()):
        raise ValueError(f'{partial}: {num_left} images are missing; call again to continue.')
    text = dict(encoding='utf-8', errors='surrogateescape', newline='')
    with open(partial / FILES, 'w', **text) as file:
        csv.writer(file).writerow(['file', 'readable'])
        for index, state in enumerate(states):
            name = getattr(dataset, 'name_sample', lambda row: _path(dataset, row))(index)
            name = os.path.relpath(name, root) if name and root else name
            csv.writer(file).writerow([name, int(state == _DONE)])
    (partial / _STATES).unlink()
    partial.rename(folder)
