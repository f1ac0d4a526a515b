"""Where each image of WebDataset's tar shards lies: found once, then kept in a file."""

import fcntl
import glob
import hashlib
import json
import os
import os.path as osp
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO, NamedTuple

import numpy as np
from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import MMLogger

from mmpatchmix.datasets.image_list import hash_name
from mmpatchmix.files import move_into_place

# Key and ending of a member, as the webdataset library splits them: at the first dot.
MEMBER = re.compile(r'((?:.*/|)[^.]+)\.([^/]*)', re.DOTALL)

# Our own member; the webdataset library leaves out names of this form.
META = '__pack__'

SAMPLE = np.dtype(
    [
        ('hash', np.uint64),  # of the name that decides whether it is held out
        ('offset', np.int64),
        ('size', np.uint32),
        ('shard', np.int32),
        ('label', np.int32),  # -1: none
    ]
)

NUM_THREADS = 16  # scanning waits for the disk


class ShardIndex(NamedTuple):
    """All images of some shards, and the names of their classes where they are known.

    Args:
        samples: (N,) of ``SAMPLE``, in the order of the shards and within them.
        classes: Names, or None.
    """

    samples: np.ndarray
    classes: tuple[str, ...] | None


def read_index(
    paths: Sequence[str], endings: Sequence[str], cache_dir: str | None = None
) -> ShardIndex:
    """Return the index of shards, from its file where that is up to date.

    Shards that are new, or whose size or time of change differs, are scanned.

    Args:
        paths: Of the shards.
        endings: Those of images, with dots, in lower case.
        cache_dir: Folder of the index file; None is the one that all shards lie in.

    Raises:
        ValueError: Naming a shard that is damaged or refused.
    """
    folder = osp.commonpath([osp.dirname(path) for path in paths])
    names = [osp.relpath(path, folder) for path in paths]
    key = json.dumps([list(paths) if cache_dir else names, list(endings)])
    digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
    file = osp.join(cache_dir or folder, f'shards-{digest}.index.npz')
    stamps = [[name, *_stamp(path)] for name, path in zip(names, paths, strict=True)]
    samples, table = _load(file)
    if [row[:3] for row in table['shards']] != stamps:
        known = _split(samples, table)
        samples, table = _scan_all(paths, stamps, endings, known, table['classes'])
        _save(file, samples, table)
    classes = table['classes']
    return ShardIndex(samples, None if classes is None else tuple(classes))


def _stamp(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _load(file: str) -> tuple[np.ndarray, dict]:
    """Return the samples and the table of an index file; empty ones if it is of no use."""
    try:
        with np.load(file) as content:
            samples, table = content['samples'], json.loads(str(content['table']))
        if samples.dtype == SAMPLE and sum(row[3] for row in table['shards']) == len(samples):
            return samples, table
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or none of ours
    return np.empty(0, SAMPLE), {'shards': [], 'classes': None}


def _split(samples: np.ndarray, table: dict) -> dict[tuple, np.ndarray]:
    """Return the samples of each shard by its name and stamp."""
    ends = np.cumsum([row[3] for row in table['shards']], dtype=int)
    parts = np.split(samples, ends[:-1]) if len(ends) else []
    return {tuple(row[:3]): part for row, part in zip(table['shards'], parts, strict=True)}


def _scan_all(
    paths: Sequence[str],
    stamps: list[list],
    endings: Sequence[str],
    known: dict[tuple, np.ndarray],
    classes: list[str] | None,
) -> tuple[np.ndarray, dict]:
    """Scan the shards that are not known; return the samples of all and their table."""
    missing = [path for path, s in zip(paths, stamps, strict=True) if tuple(s) not in known]
    MMLogger.get_current_instance().info(
        f'looking through {len(missing)} of {len(paths)} shards, such as {missing[0]}'
        if missing
        else 'fewer shards than before'
    )
    if len(missing) == len(paths):
        classes = None
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        results = pool.map(lambda path: scan_shard(path, endings), missing)
        scanned = dict(zip(missing, results, strict=True))
    parts = []
    for number, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        part, meta = scanned.get(path) or (known[tuple(stamp)], {})
        part['shard'] = number
        parts.append(part)
        own = meta.get('classes')
        if own and classes and own != classes:
            raise ValueError(
                f'{path} was packed with other classes than the shards before it: labels would '
                'mean different things. Use shards of one folder of images'
            )
        classes = own or classes
    table = [[*stamp, len(part)] for stamp, part in zip(stamps, parts, strict=True)]
    return np.concatenate(parts), {'shards': table, 'classes': classes}


def _save(file: str, samples: np.ndarray, table: dict) -> None:
    written = f'{file}.{os.getpid()}.partial'
    try:
        with open(written, 'wb') as content:
            np.savez(content, samples=samples, table=np.array(json.dumps(table)))
            content.flush()
            os.fsync(content.fileno())
        move_into_place(written, file)
    except OSError as error:
        MMLogger.get_current_instance().warning(
            f'the index of the shards cannot be kept ({error}): every start looks through all of '
            'them. Give cache_dir a folder, or set PATCHMIX_CACHE'
        )


def scan_shard(path: str, endings: Sequence[str]) -> tuple[np.ndarray, dict]:
    """Find the images of one shard.

    Args:
        path: Of the shard, an uncompressed tar file.
        endings: Those of images, with dots, in lower case.

    Returns:
        The samples (``SAMPLE``, with 0 as their shard), and what ``pack-shards`` noted: ``{}``
        in other shards.

    Raises:
        ValueError: Naming the shard, and the member or byte where it is damaged or refused.
    """
    rows, keys, meta = [], [], {}
    try:
        with tarfile.open(path, 'r:') as shard:
            for key, members in groupby(_list_members(shard), itemgetter(0)):
                files = dict(_without_repeats(members))
                if key == META:
                    meta = json.loads(_read(shard, files['']))
                    continue
                images = [file for ending, file in files.items() if f'.{ending}' in endings]
                if len(images) > 1:
                    names = ' and '.join(image.name for image in images)
                    raise ValueError(f'{names} are one sample: name one ending in extensions')
                label = _parse_label(_read(shard, files['cls'])) if 'cls' in files else -1
                for image in images:
                    rows.append((0, image.offset_data, image.size, 0, label))
                    keys.append(key)
            _check_end(shard)
        samples = np.array(rows, SAMPLE)
        samples['hash'] = [hash_name(name) for name in meta.get('sources', keys)]
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ValueError(
            f'the shard {path} is refused: {error}. Make or copy it again; shards are '
            'uncompressed tar files in the format of webdataset'
        ) from error
    return samples, meta


def _list_members(shard: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, ending in lower case, and member of all files with an ending.

    Nothing is ever unpacked, so that no name could lead out of a folder here; but whoever made
    such a name may mean others that do unpack.
    """
    while (member := shard.next()) is not None:
        if member.name.startswith('/') or '..' in member.name.split('/'):
            raise ValueError(f'the name {member.name!r} leads out of the archive')
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ValueError(f'{member.name!r} is no plain file (a link?): pack the file itself')
        split = MEMBER.fullmatch(member.name)
        if member.name == META:
            yield META, '', member
        elif split:
            yield split[1], split[2].lower(), member


def _without_repeats(members: Iterator[tuple]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    seen = set()
    for _, ending, member in members:
        if ending in seen:
            raise ValueError(f'{member.name} comes twice')
        seen.add(ending)
        yield ending, member


def _read(shard: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    return shard.extractfile(member).read()


def _parse_label(content: bytes) -> int:
    if not content.strip().isdigit():
        raise ValueError(f'a .cls file holds {content[:20]!r}, not the number of a class from 0')
    return int(content)


def _check_end(shard: tarfile.TarFile) -> None:
    """Raise unless the archive ends as it should: tarfile takes a damaged header for the end."""
    shard.fileobj.seek(shard.offset)
    if shard.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        last = shard.members[-1].name if shard.members else 'none'
        raise ValueError(f'it is cut or damaged at byte {shard.offset}, after the member {last}')


RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')

PREFIX = 'shard://'

# Shards that a process keeps open; its limit of open files is often 1,024.
NUM_OPEN = 128


@register_backend('shard', prefixes='shard')
class ShardBackend(BaseStorageBackend):
    """Read an image out of a shard, so that every transform with an ``img_path`` can.

    Paths are those of :func:`name_part`: mmengine finds this backend by their beginning.
    """

    def get(self, filepath: str) -> bytes:
        """Read the bytes that a path of :func:`name_part` names, in one piece.

        Raises:
            OSError: If the shard is gone or has become shorter.
        """
        path, _, part = filepath.removeprefix(PREFIX).rpartition('/')
        offset, size = map(int, part.split('+'))
        content = os.pread(_open(path).fileno(), size, offset)
        if len(content) < size:
            raise OSError(f'{path} ends before byte {offset + size}: it was cut')
        return content

    def get_text(self, filepath: str, encoding: str = 'utf-8') -> str:
        """Read and decode the same bytes."""
        return self.get(filepath).decode(encoding)


@lru_cache(NUM_OPEN)
def _open(path: str) -> BinaryIO:
    return open(path, 'rb', buffering=0)  # closes itself once the cache has dropped it


def name_part(shard: str, offset: int, size: int) -> str:
    """Return the path that stands for a part of a shard in ``img_path``.

    Args:
        shard: Path of the shard.
        offset: First byte.
        size: Number of bytes.
    """
    return f'{PREFIX}{shard}/{offset}+{size}'


def list_shards(location: str) -> list[str]:
    """Return the shards that a location names, sorted as it says.

    Args:
        location: Folder of tar files, or the path or URL of one, with ranges
            (``train-{000000..000009}.tar``) or, for local ones, wildcards (``train-*.tar``).

    Returns:
        list[str]: Absolute paths, or URLs.

    Raises:
        FileNotFoundError: If there is none, or one of a range is missing.
        ValueError: If it is a URL and no tar file.
    """
    is_remote = '://' in location
    if is_remote and not location.endswith('.tar'):
        raise ValueError(
            f'the shards of {location} cannot be listed from here: name them, such as '
            f'{location.rstrip("/")}/train-{{000000..000009}}.tar'
        )
    if osp.isdir(location):
        location = osp.join(glob.escape(location), '*.tar')
    paths = [
        path
        for name in _expand(location)
        for path in (sorted(glob.glob(name)) if glob.has_magic(name) and not is_remote else [name])
    ]
    if is_remote:
        return paths
    missing = [path for path in paths if not osp.isfile(path)]
    if missing or not paths:
        many = f' and {len(missing) - 1} more' if missing[1:] else ''
        raise FileNotFoundError(
            f'there is no shard {missing[0] if missing else location}{many}. Point data_root at '
            'a folder of tar files, or name them: shards/train-{000000..000009}.tar'
        )
    return [osp.abspath(path) for path in paths]


def _expand(pattern: str) -> list[str]:
    """Write out ranges such as ``{000..009}``."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    numbers = [f'{number:0{len(first)}d}' for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for number in numbers for path in _expand(before + number + after)]


def fetch_shards(urls: Sequence[str], cache_dir: str, backend_args: dict | None) -> list[str]:
    """Copy remote shards, once, with mmengine's file backends.

    A copy is written aside and renamed when it is whole; those that are there are kept. The
    backends read files as a whole, so a shard has to fit into memory.

    Args:
        urls: Of the shards.
        cache_dir: Where the copies go, a folder for each remote folder.
        backend_args: Of the backend; None chooses it by the URL.

    Returns:
        list[str]: Paths of the copies.

    Raises:
        ConnectionError: Naming the shard that could not be copied.
    """
    logger = MMLogger.get_current_instance()
    paths = []
    for number, url in enumerate(urls, 1):
        folder, _, name = url.rpartition('/')
        digest = hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()
        path = osp.join(cache_dir, digest, name)
        paths.append(path)
        if osp.isfile(path):
            continue
        logger.info(f'copying shard {number} of {len(urls)}: {url} to {path}')
        os.makedirs(osp.dirname(path), exist_ok=True)
        try:
            content = fileio.get(url, backend_args=backend_args)
        except OSError as error:
            raise ConnectionError(f'the shard {url} cannot be read: {error}') from error
        with open(f'{path}.partial', 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        move_into_place(f'{path}.partial', path)
    return paths


@contextmanager
def one_at_a_time(folder: str) -> Iterator[None]:
    """Let one process at a time work in a folder; the others wait.

    Where a network disk knows no locks, each works for itself and the last one's files stay.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
