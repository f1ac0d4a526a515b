"""Where each image of WebDataset's tar shards lies: found once, then kept in a file."""

import hashlib
import json
import os
import os.path as osp
import re
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np
from mmengine.logging import MMLogger

from mmpatchmix.checkpoints.sealing import move_into_place
from mmpatchmix.datasets.walk_folder import hash_name

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
