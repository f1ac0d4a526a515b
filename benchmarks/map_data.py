"""Images of the map of mixing, in memory: digits, CIFAR-10 and its five bands, chest X-rays.

Each function returns ``train``, whose images and labels are also the bank of kNN and train linear
classifiers; ``held_out``, other training images, by which settings are chosen; and ``test``.
"""

import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import harness  # noqa: F401  it removes messages of the packages imported after it
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmpatchmix.datasets import Digits

SIDE = 32
CACHE = Path('work_dirs/map')


class Part(NamedTuple):
    """Images ``(N, C, 32, 32)`` float32 from 0 to 255, and classes ``(N,)``."""

    images: Tensor
    labels: Tensor

    def take(self, rows: slice | Tensor) -> 'Part':
        """Return some of the images."""
        return Part(self.images[rows], self.labels[rows])


def load_digits(folder: Path) -> dict[str, Part]:
    """Return scikit-learn's digits, with the test digits of the demo; a fifth is held out."""
    parts = {}
    for split in ('train', 'test'):
        samples = [*Digits(split=split, image_size=SIDE)]
        images = np.stack([sample['img'] for sample in samples])
        parts[split] = to_part(images, [sample['gt_label'] for sample in samples])
    num = len(parts['train'].labels) * 4 // 5
    # The last ones come from other writers. A run that is evaluated on them must not train on them.
    held_out = parts['train'].take(slice(num, None))
    return parts | dict(held_out=held_out, reduced=parts['train'].take(slice(num)))


def load_cifar10(folder: Path) -> dict[str, Part]:
    """Return photographs from ``cifar10.tar.gz``: train/CLASS/*.jpg and test/CLASS/*.jpg."""
    file = CACHE / 'cifar10.npz'
    if not file.is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = file.with_name('partial.npz')
        np.savez(partial, **read_photographs(folder / 'cifar10.tar.gz'))
        partial.replace(file)
    with np.load(file) as arrays:
        train, test = (to_part(arrays[f'{s}_images'], arrays[f'{s}_labels']) for s in SPLITS)
    parts = dict(train=slice(0, 4_096), held_out=slice(45_000, 48_000))
    parts = {name: train.take(rows) for name, rows in parts.items()}
    return parts | dict(test=test.take(slice(0, 5_000)))


SPLITS = ('train', 'test')


def read_photographs(path: Path) -> dict[str, np.ndarray]:
    """Read images and labels of both splits, shuffled once."""
    found = {split: [] for split in SPLITS}
    with tarfile.open(path) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            split, label, _ = member.name.rsplit('/', 2)
            content = io.BytesIO(archive.extractfile(member).read())
            found[split].append((member.name, label, np.asarray(Image.open(content))))
    arrays, classes = {}, sorted({label for _, label, _ in found['train']})
    for split, rows in found.items():
        rows = sorted(rows, key=lambda row: row[0])
        rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
        arrays[f'{split}_images'] = np.stack([image for *_, image in rows])
        arrays[f'{split}_labels'] = np.array([classes.index(label) for _, label, _ in rows])
    return arrays


def load_bands(folder: Path) -> dict[str, Part]:
    """Return CIFAR-10 as five bands of 12 bits, for which nobody has an augmentation."""
    parts = load_cifar10(folder)
    return {name: part._replace(images=to_bands(part.images)) for name, part in parts.items()}


def to_bands(images: Tensor) -> Tensor:
    """Mix the three channels ``(N, 3, H, W)`` and their gradients to five bands, always alike.

    Each band is a weighted mean with random weights, raised to a random power from 1/2 to 2, of
    4,096 levels.
    """
    generator = torch.Generator().manual_seed(5)
    padded = F.pad(images, (1, 1, 1, 1), 'replicate')
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
    maps = torch.cat([images, across, down], dim=1) / 255  # (N, 9, H, W)
    weights = torch.rand(5, 9, generator=generator)
    weights = weights / weights.sum(1, keepdim=True)
    powers = 4 ** (torch.rand(5, generator=generator) - 0.5)
    bands = torch.einsum('bc,nchw->nbhw', weights, maps) ** powers[:, None, None]
    return (bands * 4095).round() * (255 / 4095)


def load_chest(folder: Path) -> dict[str, Part]:
    """Return MedMNIST's chest X-rays, ``pneumoniamnist.npz``, enlarged from 28 to 32 pixels."""
    with np.load(folder / 'pneumoniamnist.npz') as arrays:
        parts = {
            ours: to_part(arrays[f'{name}_images'][..., None], arrays[f'{name}_labels'][:, 0])
            for ours, name in (('train', 'train'), ('held_out', 'val'), ('test', 'test'))
        }
    for name, part in parts.items():
        large = F.interpolate(part.images, (SIDE, SIDE), mode='bilinear')
        parts[name] = part._replace(images=large)
    return parts


def to_part(images: np.ndarray, labels) -> Part:
    """Return images ``(N, H, W, C)`` and labels as tensors."""
    return Part(torch.from_numpy(images).movedim(-1, 1).float(), torch.as_tensor(labels).long())


RATES = (1e-3, 3e-3, 9e-3)  # per 64 images
STEPS = dict(digits=400, cifar10=4000, bands=4000, chest=1800)  # of a run of 64 images each
LOADERS = dict(digits=load_digits, cifar10=load_cifar10, bands=load_bands, chest=load_chest)
