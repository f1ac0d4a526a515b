"""Pack a folder of images into tar shards; an interrupted run continues after its last shard."""

import io
import json
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.datasets.decode_image import EXTENSIONS, UnfitImageError, decode_image
from mmpatchmix.datasets.image_folder import ImageFolder
from mmpatchmix.datasets.image_list import hash_names
from mmpatchmix.datasets.shard_index import META, read_index, scan_shard
from mmpatchmix.datasets.skip_unreadable import ERRORS
from mmpatchmix.files import locked, move_into_place, write_text

PLAN = 'pack.json'
DEFAULT_QUALITY = 90  # of JPEGs that are resized
PREFETCH = 16  # images per worker


class Packed(NamedTuple):
    """One encoded image, or, without ``content``, the ``reason`` why it is left out."""

    source: str
    label: int
    content: bytes | None = None
    ending: str = ''
    reason: str = ''


@dataclass
class Sources(Dataset):
    """Images of a folder in an order (N,), checked and, if requested, resized and encoded."""

    folder: ImageFolder
    order: np.ndarray
    size: int | None
    quality: int | None

    def __getitem__(self, place: int) -> Packed:
        path, label = self.folder.data_list[self.order[place]].item()
        source = os.fsdecode(path)
        try:
            content = Path(self.folder.img_prefix, source).read_bytes()
            ending, content = self._encode(source, content)
        except ERRORS as error:
            return Packed(source, label, reason=f'{type(error).__name__}: {error}')
        return Packed(source, label, content, ending)

    def _encode(self, source: str, content: bytes) -> tuple[str, bytes]:
        values, _, high = decode_image(content, source)  # (H, W, C)
        height, width, num_channels = values.shape
        shrinks = self.size is not None and min(height, width) > self.size
        if not shrinks and self.quality is None:
            if (ending := os.path.splitext(source)[1].lower()) not in EXTENSIONS:
                raise UnfitImageError(f'shards hold files that end in {", ".join(EXTENSIONS)}')
            return ending, content
        if high != 255 or num_channels not in (1, 3):
            raise UnfitImageError(
                f'{num_channels} channel{"" if num_channels == 1 else "s"} of {values.dtype} '
                'cannot be a JPEG; without --size and --quality the file is copied'
            )
        image = np.ascontiguousarray(values[:, :, ::-1])  # BGR for OpenCV
        if shrinks:
            scale = self.size / min(height, width)
            new_size = [max(self.size, round(side * scale)) for side in (width, height)]
            image = cv2.resize(image, new_size, interpolation=cv2.INTER_AREA)
        settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality or DEFAULT_QUALITY]
        is_encoded, encoded = cv2.imencode('.jpg', image, settings)
        if not is_encoded:
            raise OSError('cannot be encoded as a JPEG')
        return '.jpg', encoded.tobytes()


def pack_shards(
    images: str | Path,
    out: str | Path,
    size: int | None = None,
    quality: int | None = None,
    per_shard: int = 5000,
    num_workers: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, str]:
    """Pack a folder of images into tar shards in the format of the webdataset library.

    Images are ordered by a hash of their names, so every shard mixes all classes. A shard is
    written to a temporary file, synchronised to the disk, read back and renamed; complete shards of
    an earlier run are kept. ``size`` is the shorter side of larger images in pixels, ``quality``
    that of JPEGs, 1 to 100; images that need no resizing are copied bit for bit if it is None.
    Unreadable images, and those that a JPEG cannot hold, are left out, and returned with reasons.

    Raises:
        ValueError: If an argument is out of range, ``out`` holds other files, or no image is read.
        OSError: If a shard reads back differently.
    """
    given = dict(size=size, quality=quality, per_shard=per_shard, num_workers=num_workers)
    smallest = dict(size=1, quality=1, per_shard=1, num_workers=0)
    for name, value in given.items():
        if value is not None and (value < smallest[name] or (name == 'quality' and value > 100)):
            raise ValueError(f'pack-shards: {name}={value} is out of range')
    folder = ImageFolder(str(images))
    if ', splits ' in folder.understood.get('columns', ''):
        raise ValueError(f'pack-shards: {images} has splits: pack a list of each')
    say('\n'.join(f'{topic}: {fact}' for topic, fact in folder.understood.items()))
    order = np.argsort(hash_names(folder.data_list['path'].tolist()), kind='stable')
    name = re.sub(r'[^\w-]', '_', os.path.basename(os.path.abspath(images)), flags=re.ASCII)
    plan = dict(
        name=name or 'images',
        num_images=len(order),
        image_names=blake2b(folder.data_list.tobytes(), digest_size=8).hexdigest(),
        classes=folder.metainfo.get('classes'),
        size=size,
        quality=quality,
        per_shard=per_shard,
    )
    out = Path(out)
    shards = {
        out / f'{plan["name"]}-{number:06d}.tar': range(start, min(start + per_shard, len(order)))
        for number, start in enumerate(range(0, len(order), per_shard))
    }
    with locked(out):
        _check_plan(out / PLAN, plan)
        todo = {path: places for path, places in shards.items() if not path.exists()}
        sources = Sources(folder, order, size, quality)
        skipped = _write_all(todo, sources, plan['classes'], num_workers, say)
        samples, _ = read_index([str(path.absolute()) for path in shards], EXTENSIONS)
    if len(samples) == 0:
        example = next((f', such as {name} ({why})' for name, why in skipped.items()), '')
        raise ValueError(f'none of the {len(order)} images in {images} can be packed{example}')
    say(
        f'{len(samples):,} of {len(order):,} images are in {len(shards)} shards in {out}, '
        f'{len(shards) - len(todo)} of them from an earlier run'
    )
    return skipped


def _check_plan(file: Path, plan: dict) -> None:
    """Save the settings, or compare them with those of an earlier run."""
    plan = json.loads(json.dumps(plan))
    if not file.exists():
        if any(not path.name.startswith('.') for path in file.parent.iterdir()):
            raise ValueError(f'{file.parent} holds other files, and no {PLAN}: use a new folder')
        write_text(file, json.dumps(plan, indent=1))
        return
    former = json.loads(file.read_text(encoding='utf-8'))
    changed = [
        f'  {key}' + ('' if key == 'classes' else f': {former.get(key)} before, {value} now')
        for key, value in plan.items()
        if former.get(key) != value
    ]
    if changed:
        lines = '\n'.join(changed)
        raise ValueError(
            f'{file.parent} holds shards packed differently:\n{lines}\nContinue with the same '
            'images and settings, use a new folder, or delete this one'
        )


def _write_all(
    todo: dict[Path, range], sources: Sources, classes: Sequence[str] | None, num_workers: int, say
) -> dict[str, str]:
    """Write the missing shards; return the images left out, and why."""
    places = [place for part in todo.values() for place in part]
    options = dict(num_workers=num_workers, prefetch_factor=PREFETCH if num_workers else None)
    options['worker_init_fn'] = lambda worker: cv2.setNumThreads(0)
    images = iter(DataLoader(sources, batch_size=None, sampler=places, **options))
    skipped, done, began = {}, 0, time.monotonic()
    for path, part in todo.items():
        skipped |= write_shard(path, zip(part, islice(images, len(part)), strict=True), classes)
        done += len(part)
        rate = done / (time.monotonic() - began)
        left = timedelta(seconds=round((len(places) - done) / rate))
        say(f'{path.name}: {done:,} of {len(places):,} images, {rate:.0f} a second, {left} left')
    return skipped


def write_shard(
    path: Path, images: Iterable[tuple[int, Packed]], classes: Sequence[str] | None
) -> dict[str, str]:
    """Write one shard of numbered images, completely or not at all; return those left out."""
    written = path.with_name(f'{path.name}.partial')
    expected, sources, skipped = [], [], {}
    with open(written, 'wb') as file:
        with tarfile.open(fileobj=file, mode='w', format=tarfile.USTAR_FORMAT) as shard:
            for number, image in images:
                if image.content is None:
                    skipped[image.source] = image.reason
                    continue
                _add(shard, f'{number:09d}{image.ending}', image.content)
                if image.label >= 0:
                    _add(shard, f'{number:09d}.cls', str(image.label).encode())
                expected.append((image.label, zlib.crc32(image.content)))
                sources.append(image.source)
            meta = {'classes': classes, 'sources': sources, 'skipped': skipped}
            _add(shard, META, json.dumps(meta).encode())
        file.flush()
        os.fsync(file.fileno())
        # Drop the page cache, so that reading back reads the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    samples, _ = scan_shard(str(written), EXTENSIONS)
    with open(written, 'rb') as file:
        found = [
            (label, zlib.crc32(os.pread(file.fileno(), size, offset)))
            for _, offset, size, _, label in samples.tolist()
        ]
    if found != expected:
        raise OSError(f'{written} reads back differently from how it was written: check the disk')
    move_into_place(written, path)
    return skipped


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o444
    shard.addfile(member, io.BytesIO(content))
