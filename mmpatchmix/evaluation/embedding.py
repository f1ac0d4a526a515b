"""Features of many images, written row by row: a batch in memory, and a cut run continues.

An embedding is a folder that numpy and pandas read without this package::

    features = numpy.load('OUT/features.npy', mmap_mode='r')  # (M, D) float32
    files = pandas.read_csv('OUT/files.csv')  # row m: name of image m, and whether it was readable

``patch_tokens.npy``, ``(M, T, D)`` float16, is there if it was asked for; ``about.json`` says what
the rows were made of and by. Until it is whole the folder is called ``OUT.partial``.
"""

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
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.evaluation.features import evaluation_mode, feature_function, log_progress
from mmpatchmix.files import write_text
from mmpatchmix.models import unwrap_model

FEATURES, PATCH_TOKENS, FILES, ABOUT = 'features.npy', 'patch_tokens.npy', 'files.csv', 'about.json'
# Of each image: 0 until it is done.
_STATES = 'states.npy'
_DONE, _UNREADABLE = 1, 2
# What was computed since the last time is computed again after a loss of power.
_SYNC_SECONDS = 20


class Embedding(NamedTuple):
    """What is in a folder of :func:`embed`.

    Attributes:
        features: ``(M, D)`` float32, mapped from the disk; NaN where an image was unreadable.
        files: M names, below ``about['root']``.
        readable: ``(M,)`` bool.
        about: What ``about.json`` says.
    """

    features: np.ndarray
    files: list[str]
    readable: np.ndarray
    about: dict[str, Any]


def read_embedding(folder: str | Path) -> Embedding:
    """Open an embedding; the features stay on the disk.

    Raises:
        FileNotFoundError: If there is none, or it is not finished.
    """
    folder = Path(folder)
    if not (folder / ABOUT).is_file():
        begun = f': {_partial(folder)} is not finished' if _partial(folder).is_dir() else ''
        raise FileNotFoundError(
            f'there is no embedding {folder}{begun}; "mmpatchmix embed ... --out {folder}" writes '
            'and continues it.'
        )
    with open(folder / FILES, encoding='utf-8', errors='surrogateescape', newline='') as file:
        rows = list(csv.DictReader(file))
    return Embedding(
        np.load(folder / FEATURES, mmap_mode='c'),  # torch warns of memory it may not write to
        [row['file'] for row in rows],
        np.array([row['readable'] == '1' for row in rows]),
        json.loads((folder / ABOUT).read_text(encoding='utf-8')),
    )


def embed(
    model: nn.Module,
    dataloader: DataLoader,
    folder: str | Path,
    about: Mapping[str, Any],
    patch_tokens: bool = False,
) -> int:
    """Write the features of all images of a data set; ranks share the images.

    All ranks write to the same folder. Whatever a cut run has left in ``folder.partial`` is kept,
    on any number of ranks.

    Args:
        model: See :func:`~mmpatchmix.evaluation.extract_features`. For patch tokens its backbone
            is a ViT of mmpretrain's; it gives tokens afterwards, too.
        dataloader: Its data set, collate function, batch size and workers are used; its sampler
            is not.
        folder: What is written; must not exist.
        about: What decides about the features, such as
            :func:`~mmpatchmix.evaluation.feature_cache.feature_key`. A cut run continues only
            where it is the same. Only that of the first rank counts.
        patch_tokens: Whether to write patch tokens, too.

    Returns:
        int: How many images could not be read; their rows are NaN.

    Raises:
        FileExistsError: If the folder exists.
        ValueError: If the partial folder is of other features, or the disk is too small.
    """
    folder, dataset = Path(folder), dataloader.dataset
    forward, num_extra = feature_function(model), 0
    if patch_tokens:
        num_extra = _ask_for_tokens(unwrap_model(model))
        forward = feature_function(model, num_axes=3)
    with evaluation_mode(unwrap_model(model)), torch.no_grad(), torch.random.fork_rng(devices=[]):
        row = forward(dataloader.collate_fn([dataset[0]]))[0]  # (D,) or (T, D)
        _on_first_rank(_prepare, folder, dataset, row.shape, num_extra, about)
        states = np.load(_partial(folder) / _STATES)
        dist.barrier()  # before anyone writes
        remaining = np.flatnonzero(states == 0)
        if len(remaining) < len(states):
            print_log(f'{len(states) - len(remaining):,} images are done already', 'current')
        batches = _share(remaining, dataloader.batch_size)
        loader = DataLoader(
            dataset,
            batch_sampler=_Lists(batches),
            num_workers=dataloader.num_workers,
            collate_fn=dataloader.collate_fn,
            worker_init_fn=dataloader.worker_init_fn,
            pin_memory=dataloader.pin_memory,
        )
        progress = log_progress(loader, 'embedding', len(remaining))
        outputs = ((forward(batch).float().cpu(), batch) for batch in progress)
        _write(_partial(folder), dataset, zip(batches, outputs, strict=True), num_extra)
    dist.barrier()  # all have written
    num_unreadable = int((np.load(_partial(folder) / _STATES) == _UNREADABLE).sum())
    dist.barrier()  # all have read
    _on_first_rank(_finish, folder, dataset)
    return num_unreadable


def _partial(folder: Path) -> Path:
    return folder.with_name(f'{folder.name}.partial')


def _ask_for_tokens(model: nn.Module) -> int:
    """Let a ViT give all its tokens; return how many precede those of the patches."""
    vits = [module for module in model.modules() if hasattr(module, 'num_extra_tokens')]
    if not vits:
        raise ValueError(f'{type(model).__name__} has no ViT of mmpretrain: no patch tokens.')
    for vit in vits:
        vit.out_type = 'raw'
    return vits[0].num_extra_tokens


def _on_first_rank(function, *args) -> None:
    """Call on the first rank; what it raises is raised on all."""
    fault: list[Exception | None] = [None]
    if dist.is_main_process():
        try:
            function(*args)
        except Exception as error:
            fault[0] = error
    dist.broadcast_object_list(fault)
    if fault[0] is not None:
        raise fault[0]


def _prepare(
    folder: Path, dataset: Dataset, shape: tuple, num_extra: int, about: Mapping[str, Any]
) -> None:
    """Make the folder and its empty files, or check those that are there."""
    partial, size = _partial(folder), len(dataset)
    if folder.exists():
        raise FileExistsError(f'{folder} exists already; remove it or choose another name.')
    about = dict(about, num_images=size, width=shape[-1], root=_root(dataset), patch_tokens=0)
    if num_extra:
        about['patch_tokens'] = shape[0] - num_extra
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
        files[PATCH_TOKENS] = ((size, about['patch_tokens'], shape[-1]), np.float16)
    needed = sum(math.prod(sizes) * np.dtype(kind).itemsize for sizes, kind in files.values())
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise ValueError(
            f'{folder} would take {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free.'
        )
    for name, (sizes, kind) in files.items():
        np.lib.format.open_memmap(partial / name, mode='w+', dtype=kind, shape=sizes)
    write_text(partial / ABOUT, json.dumps(about, indent=2) + '\n')  # last: now it can continue


def _share(indices: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Cut into batches; return those of this rank."""
    num_batches = max(1, math.ceil(len(indices) / batch_size))
    batches = [batch for batch in np.array_split(indices, num_batches) if len(batch)]
    return batches[dist.get_rank() :: dist.get_world_size()]


class _Lists:
    """Give batches as lists, one at a time: data sets want Python's numbers, which are large."""

    def __init__(self, batches: list[np.ndarray]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.tolist() for batch in self.batches)


class _Rows:
    """Write rows of an ``.npy`` file; a mapping would count the whole file as memory in use."""

    def __init__(self, path: Path) -> None:
        mapped = np.load(path, mmap_mode='r')
        self.start, self.dtype, self.num_bytes = mapped.offset, mapped.dtype, mapped[0].nbytes
        self.file = open(path, 'r+b')  # noqa: SIM115

    def write(self, index: int, row: Any) -> None:
        self.file.seek(self.start + int(index) * self.num_bytes)
        self.file.write(np.asarray(row, self.dtype).tobytes())

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def _write(
    folder: Path,
    dataset: Dataset,
    outputs: Iterator[tuple[np.ndarray, tuple[Tensor, dict]]],
    num_extra: int,
) -> None:
    """Write the rows of this rank; note an image as done only once its row is on the disk."""
    names = [FEATURES, PATCH_TOKENS] if num_extra else [FEATURES]
    files = [_Rows(folder / name) for name in names]
    states, pending, synced = _Rows(folder / _STATES), {}, time.monotonic()

    def sync() -> None:
        for file in files:
            file.sync()
        for index, state in pending.items():
            states.write(index, state)
        states.sync()
        pending.clear()

    try:
        for indices, (rows, batch) in outputs:
            samples = batch.get('data_samples') or [None] * len(rows)
            for index, row, sample in zip(indices, rows, samples, strict=True):
                readable = _is_of(sample, dataset, index)
                row = row if readable else row * math.nan
                parts = (row[0], row[num_extra:]) if num_extra else (row,)
                for file, part in zip(files, parts, strict=True):
                    file.write(index, part.numpy())
                pending[index] = _DONE if readable else _UNREADABLE
            if time.monotonic() - synced > _SYNC_SECONDS:
                sync()
                synced = time.monotonic()
    finally:  # after Ctrl-C, too
        sync()
        for file in (*files, states):
            file.file.close()


def _path(dataset: Dataset, index: int) -> str:
    """Return the path of an image, empty where it lies in no file of its own."""
    get_info = getattr(dataset, 'get_data_info', None)
    return str(get_info(int(index)).get('img_path') or '') if get_info else ''


def _is_of(sample: Any, dataset: Dataset, index: int) -> bool:
    """Tell whether a sample is the image asked for, not one in place of an unreadable one."""
    found = sample.get('img_path') if hasattr(sample, 'get') else None
    return found is None or str(found) == _path(dataset, index)


def _root(dataset: Dataset) -> str:
    prefix = getattr(dataset, 'img_prefix', '')
    return os.path.abspath(prefix) if prefix else ''


def _finish(folder: Path, dataset: Dataset) -> None:
    """Write the names, and give the folder its name."""
    partial, root = _partial(folder), _root(dataset)
    states = np.load(partial / _STATES)
    if num_left := int((states == 0).sum()):
        raise ValueError(f'{partial}: {num_left} images are missing; call again to continue.')
    path = partial / FILES
    with open(path, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['file', 'readable'])
        for index, state in enumerate(states):
            name = _path(dataset, index)
            name = os.path.relpath(name, root) if name and root else name
            writer.writerow([name, int(state == _DONE)])
    (partial / _STATES).unlink()
    partial.rename(folder)
