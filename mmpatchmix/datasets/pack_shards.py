"""Pack a folder of images into tar shards, so that a cut run goes on where it was."""

import fcntl
import io
import json
import os
import re
import tarfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.datasets.decode_image import decode_image
from mmpatchmix.datasets.image_folder import EXTENSIONS, ImageFolder
from mmpatchmix.datasets.image_list import hash_name
from mmpatchmix.datasets.load_any_image import UnfitImageError
from mmpatchmix.datasets.shard_index import META, read_index, scan_shard
from mmpatchmix.datasets.skip_unreadable import ERRORS
from mmpatchmix.files import move_into_place, write_text

PLAN = 'pack.json'
DEFAULT_QUALITY = 90  # of JPEGs that are resized
PREFETCH = 16  # images per worker


class Packed(NamedTuple):
    """One image on its way into a shard; without ``content`` it is left out."""

    source: str
    label: int
    content: bytes | None
    ending: str
    reason: str


class Sources(Dataset):
    """Images of a folder, checked and, where asked for, resized and encoded.

    Args:
        folder: The images.
        order: (N,) Which of them comes at which place.
        size: Pixels of the shorter side of larger images; None keeps the size.
        quality: Of the JPEGs; None copies images that need no resizing bit for bit.
    """

    def __init__(
        self, folder: ImageFolder, order: np.ndarray, size: int | None, quality: int | None
    ) -> None:
        self.folder, self.order, self.size, self.quality = folder, order, size, quality

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> Packed:
        path, label = self.folder.data_list[self.order[place]].item()
        source = os.fsdecode(path)
        try:
            content = Path(self.folder.img_prefix, source).read_bytes()
            ending, content = self._encode(source, content)
        except ERRORS as error:
            return Packed(source, label, None, '', f'{type(error).__name__}: {error}')
        return Packed(source, label, content, ending, '')

    def _encode(self, source: str, content: bytes) -> tuple[str, bytes]:
        values, _, high = decode_image(content, source)  # (H, W, C), all that the file holds
        height, width, num_channels = values.shape
        shrink = self.size is not None and min(height, width) > self.size
        if not shrink and self.quality is None:
            return os.path.splitext(source)[1].lower(), content
        if high != 255 or num_channels not in (1, 3):
            raise UnfitImageError(
                f'{num_channels} channel{"" if num_channels == 1 else "s"} of {values.dtype}: no '
                'JPEG holds that; without --size and --quality it is copied'
            )
        image = np.ascontiguousarray(values[:, :, ::-1])  # OpenCV wants BGR
        if shrink:
            scale = self.size / min(height, width)
            new_size = [max(self.size, round(side * scale)) for side in (width, height)]
            image = cv2.resize(image, new_size, interpolation=cv2.INTER_AREA)
        settings = [cv2.IMWRITE_JPEG_QUALITY, self.quality or DEFAULT_QUALITY]
        is_good, encoded = cv2.imencode('.jpg', image, settings)
        if not is_good:
            raise OSError('cannot be written as a JPEG')
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

    The order is that of a hash of the names, so every shard is a mixture of all classes. A shard
    is written aside, brought to the disk, read back and renamed; whole ones of an earlier run
    stay. Images that cannot be read are left out, and so are those that a JPEG would cut.

    Args:
        images: The folder, as :class:`ImageFolder` understands it.
        out: Where to; made if need be. Shards are named after the folder of images.
        size: Pixels of the shorter side of larger images; None keeps the size.
        quality: Of JPEGs, 1 to 100; None copies images that need no resizing bit for bit.
        per_shard: Images per shard.
        num_workers: Processes that read and encode.
        say: Takes the lines of the progress.

    Returns:
        dict[str, str]: Images of this run that were left out, and why.

    Raises:
        ValueError: If an argument is out of its range, ``out`` holds something else or another
            packing, or no image can be read.
        OSError: If a shard reads back differently from how it was written.
    """
    for name, value, is_good in (
        ('size', size, size is None or size >= 1),
        ('quality', quality, quality is None or 1 <= quality <= 100),
        ('per_shard', per_shard, per_shard >= 1),
        ('num_workers', num_workers, num_workers >= 0),
    ):
        if not is_good:
            raise ValueError(f'pack-shards: {name}={value} is out of its range')
    folder = ImageFolder(str(images))
    names = [os.fsdecode(path) for path in folder.data_list['path']]
    num_images = len(names)
    order = np.argsort(np.array([hash_name(name) for name in names], np.uint64), kind='stable')
    plan = {
        'name': re.sub(r'[^\w-]', '_', os.path.basename(os.path.abspath(images)), flags=re.ASCII)
        or 'images',
        'num_images': num_images,
        'image_names': blake2b(folder.data_list.tobytes(), digest_size=8).hexdigest(),
        'classes': folder.metainfo.get('classes'),
        'size': size,
        'quality': quality,
        'per_shard': per_shard,
    }
    starts = range(0, num_images, per_shard)
    out = Path(out)
    paths = [out / f'{plan["name"]}-{number:06d}.tar' for number in range(len(starts))]
    with _alone(out):
        _take_plan(out / PLAN, plan)
        todo = {
            path: range(start, min(start + per_shard, num_images))
            for path, start in zip(paths, starts, strict=True)
            if not path.exists()
        }
        sources = Sources(folder, order, size, quality)
        skipped = _write_all(todo, sources, plan['classes'], num_workers, say)
        index = read_index([str(path.absolute()) for path in paths], EXTENSIONS)
    if len(index.samples) == 0:
        reason = next(iter(skipped.items()), None)
        named = f', such as {reason[0]} ({reason[1]})' if reason else ''
        raise ValueError(f'none of the {num_images} images in {images} can be packed{named}')
    say(
        f'{len(index.samples):,} of {num_images:,} images are in {len(paths)} shards in {out}, '
        f'{len(paths) - len(todo)} of them from an earlier run'
    )
    return skipped


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Refuse a second process that packs into the same folder, which is made if need be."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / '.lock', 'w') as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # data workers do not inherit it
        except BlockingIOError:
            raise ValueError(f'another process is packing into {out}') from None
        yield


def _take_plan(file: Path, plan: dict) -> None:
    """Write what is to be packed, or compare it with what an earlier run wrote."""
    plan = json.loads(json.dumps(plan))
    if not file.exists():
        if any(not path.name.startswith('.') for path in file.parent.iterdir()):
            raise ValueError(f'{file.parent} holds other files, and no {PLAN}: give a new folder')
        write_text(file, json.dumps(plan, indent=1))
        return
    former = json.loads(file.read_text(encoding='utf-8'))
    changed = [key for key in plan if former.get(key) != plan[key]]
    if changed:
        lines = [
            f'  {key}' + ('' if key == 'classes' else f': {former.get(key)} then, {plan[key]} now')
            for key in changed
        ]
        raise ValueError(
            f'{file.parent} holds shards of another packing:\n' + '\n'.join(lines) + '\nGo on '
            'with the same images and settings, give a new folder, or delete this one'
        )


def _write_all(
    todo: dict[Path, range],
    sources: Sources,
    classes: Sequence[str] | None,
    num_workers: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Write the shards that are missing; return the images that cannot be read, and why."""
    places = [place for part in todo.values() for place in part]
    loader = DataLoader(
        sources,
        batch_size=None,
        sampler=places,
        num_workers=num_workers,
        prefetch_factor=PREFETCH if num_workers else None,
        worker_init_fn=lambda worker: cv2.setNumThreads(0),
    )
    images = iter(loader)
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
    """Write one shard, whole or not at all.

    Args:
        path: Of the shard.
        images: With the number of each, which becomes its key.
        classes: Names of the classes, if there are any.

    Returns:
        dict[str, str]: Images that cannot be read, and why.

    Raises:
        OSError: If what is read back is not what was written.
    """
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
        # So that reading it back asks the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if list(_read_back(written)) != expected:
        raise OSError(f'{written} reads back differently from how it was written: check the disk')
    move_into_place(written, path)
    return skipped


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o444
    shard.addfile(member, io.BytesIO(content))


def _read_back(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the label and the CRC of each image."""
    samples, _ = scan_shard(str(path), EXTENSIONS)
    with open(path, 'rb') as file:
        for sample in samples:
            content = os.pread(file.fileno(), int(sample['size']), int(sample['offset']))
            yield int(sample['label']), zlib.crc32(content)
