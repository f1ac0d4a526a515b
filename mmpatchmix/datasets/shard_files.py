"""Files of tar shards: which ones a pattern names, copies of remote ones, one image of one."""

import fcntl
import glob
import hashlib
import os
import os.path as osp
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import BinaryIO

from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import MMLogger

from mmpatchmix.checkpoints.sealing import move_into_place

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
