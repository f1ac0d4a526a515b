"""Tar shards in WebDataset's format: find them, index their images, read one image."""

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
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import BinaryIO

import numpy as np
from mmengine import fileio
from mmengine.fileio import BaseStorageBackend, register_backend
from mmengine.logging import MMLogger

from mmpatchmix.datasets.image_list import find_split, hash_names
from mmpatchmix.files import replacing

# Key and ending of a member are split at the first dot, as in the webdataset library; but see
# _choose_images.
MEMBER = re.compile(r'((?:.*/|)[^.]+)\.([^/]*)', re.DOTALL)
META = '__pack__'  # member of pack-shards; the webdataset library ignores names of this form
RANGE = re.compile(r'\{(\d+)\.\.(\d+)\}')
PREFIX = 'shard://'
VERSION = 2  # of the index: former files are made anew
NUM_THREADS = 16  # for scanning, which is limited by the disk
NUM_OPEN = 128  # shards that a process keeps open; the limit of open files is often 1,024
# hash: of the name, for the split; label: -1 for none
SAMPLE = np.dtype(
    [('hash', 'u8'), ('offset', 'i8'), ('size', 'u4'), ('shard', 'i4'), ('label', 'i4')]
)


def read_index(
    paths: Sequence[str], endings: Sequence[str], cache_dir: str | None = None
) -> tuple[np.ndarray, list[str] | None]:
    """Return the images of shards, (N,) of ``SAMPLE`` in their order, and the packed class names.

    They are read from an index file in ``cache_dir``, or else in the folder that all shards lie in.
    Shards that are new, or whose size or modification time differs, are scanned. ``endings`` are
    those of images, with dots, in lower case.
    """
    _open.cache_clear()  # a shard that was replaced is opened anew
    folder = osp.commonpath([osp.dirname(path) for path in paths])
    names = [osp.relpath(path, folder) for path in paths]
    key = json.dumps([VERSION, list(paths) if cache_dir else names, list(endings)])
    digest = hashlib.blake2b(key.encode(), digest_size=4).hexdigest()
    file = osp.join(cache_dir or folder, f'shards-{digest}.index.npz')
    status = [os.stat(path) for path in paths]
    stamps = [[name, s.st_size, s.st_mtime_ns] for name, s in zip(names, status, strict=True)]
    samples, table = _load(file)
    if [row[:3] for row in table['shards']] == stamps:
        return samples, table['classes']
    rows = table['shards']
    parts = np.split(samples, np.cumsum([row[3] for row in rows], dtype=int)[:-1])
    known = {tuple(row[:3]): part for row, part in zip(rows, parts, strict=False)}
    new = [path for path, s in zip(paths, stamps, strict=True) if tuple(s) not in known]
    classes = table['classes'] if len(new) < len(paths) else None
    MMLogger.get_current_instance().info(f'scanning {len(new)} of {len(paths)} shards')
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(lambda path: scan_shard(path, endings), new)
        scanned = dict(zip(new, found, strict=True))
    parts = []
    for number, (path, stamp) in enumerate(zip(paths, stamps, strict=True)):
        part, meta = scanned.get(path) or (known[tuple(stamp)], {})
        part['shard'] = number
        parts.append(part)
        own = meta.get('classes')
        if own and classes and own != classes:
            raise ValueError(
                f'{path} was packed with other classes than the shards before it, so labels '
                'disagree. Use shards of one folder of images'
            )
        classes = own or classes
    rows = [[*stamp, len(part)] for stamp, part in zip(stamps, parts, strict=True)]
    samples, table = np.concatenate(parts), {'shards': rows, 'classes': classes}
    try:
        with replacing(file) as content:
            np.savez(content, samples=samples, table=np.array(json.dumps(table)))
    except OSError as error:
        MMLogger.get_current_instance().warning(
            f'the index of the shards cannot be saved ({error}), so every start scans all of '
            'them. Set cache_dir to a folder, or set PATCHMIX_CACHE'
        )
    return samples, classes


def _load(file: str) -> tuple[np.ndarray, dict]:
    """Return the samples and the table of an index file; empty ones if it is missing or invalid."""
    try:
        with np.load(file) as content:
            samples, table = content['samples'], json.loads(str(content['table']))
        if samples.dtype == SAMPLE and sum(row[3] for row in table['shards']) == len(samples):
            return samples, table
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return np.empty(0, SAMPLE), {'shards': [], 'classes': None}


def scan_shard(path: str, endings: Sequence[str]) -> tuple[np.ndarray, dict]:
    """Return the images of an uncompressed tar file and the notes of ``pack-shards``, if any.

    ``ValueError``, with the member or byte, if the shard is damaged or refused.
    """
    rows, keys, meta = [], [], {}
    try:
        with tarfile.open(path, 'r:') as shard:
            for key, members in groupby(_list_members(shard), itemgetter(0)):
                files = {}
                for _, ending, member in members:
                    if ending in files:
                        raise ValueError(f'{member.name} comes twice')
                    files[ending] = member
                if key == META:
                    meta = json.load(shard.extractfile(files['']))
                    continue
                chosen = _choose_images(files, endings)
                if not chosen and 'cls' in files and files.keys() <= {'cls', 'json', 'txt'}:
                    raise ValueError(f'{key}.cls is not beside its image: use tar --sort=name')
                for stem, image in chosen.items():
                    file = files.get(f'{stem}.cls') or files.get('cls')
                    label = shard.extractfile(file).read().strip() if file else b'-1'
                    if file and not label.isdigit():
                        raise ValueError(f'a .cls file holds {label[:20]!r}, not a number >= 0')
                    rows.append((0, image.offset_data, image.size, 0, int(label)))
                    keys.append(f'{key}.{stem}' if stem else key)
            # tarfile reads a damaged header as the end of the archive.
            shard.fileobj.seek(shard.offset)
            if shard.fileobj.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
                last = shard.members[-1].name if shard.members else 'none'
                raise ValueError(f'cut or damaged at byte {shard.offset}, after the member {last}')
        samples = np.array(rows, SAMPLE)
        names = meta.get('sources', keys)
        if len(names) != len(keys):
            found = f'{len(keys)} members end in {", ".join(sorted(endings))}'
            raise ValueError(
                f'pack-shards wrote {len(names)} images, {found}: set extensions to all'
            )
        samples['hash'] = hash_names([name.encode(errors='surrogateescape') for name in names])
    except (tarfile.TarError, ValueError, KeyError, OverflowError) as error:
        raise ValueError(
            f'the shard {path} is refused: {error}. Make or copy it again; shards are '
            'uncompressed tar files in the format of webdataset'
        ) from error
    return samples, meta


def _choose_images(
    files: dict[str, tarfile.TarInfo], endings: Sequence[str]
) -> dict[str, tarfile.TarInfo]:
    """Return the images among the members of one key, by the part between key and ending."""
    # KEY.jpg, without others such as KEY.mask.png; else KEY.1.jpg, KEY.2.jpg, one sample each.
    chosen = [ending for ending in files if f'.{ending}' in endings]
    chosen = chosen or [each for each in files if f'.{each.rpartition(".")[2]}' in endings]
    stems, kinds = ({each.rpartition('.')[part] for each in chosen} for part in (0, 2))
    if len(stems) < len(chosen) or len(kinds) > 1:
        names = ' and '.join(files[each].name for each in chosen)
        raise ValueError(f'{names} are one sample: set extensions to one ending')
    return {each.rpartition('.')[0]: files[each] for each in chosen}


def _list_members(shard: tarfile.TarFile) -> Iterator[tuple[str, str, tarfile.TarInfo]]:
    """Yield key, ending in lower case, and member of all files with an ending."""
    while (member := shard.next()) is not None:
        # Nothing is unpacked here, but other programs unpack shards.
        if member.name.startswith('/') or '..' in member.name.split('/'):
            raise ValueError(f'the name {member.name!r} leads out of the archive')
        if member.isdir():
            continue
        if not member.isreg() or member.issparse():
            raise ValueError(f'{member.name!r} is not a plain file (a link?): pack the file itself')
        split = MEMBER.fullmatch(member.name)
        if member.name == META:
            yield META, '', member
        elif split:
            yield split[1], split[2].lower(), member


@register_backend('shard', prefixes='shard')
class ShardBackend(BaseStorageBackend):
    """Read ``shard://SHARD/OFFSET+SIZE``, the bytes of an image, as any ``img_path``."""

    def get(self, filepath: str) -> bytes:
        """Read the bytes of a path; OSError if the shard is missing or too short."""
        path, _, part = filepath.removeprefix(PREFIX).rpartition('/')
        offset, size = map(int, part.split('+'))
        file = _open(path)  # or another thread could close it before it is read
        content = os.pread(file.fileno(), size, offset)
        if len(content) < size:
            raise OSError(f'{path} ends before byte {offset + size}: it was cut')
        return content

    get_text = None  # abstract in mmengine; images are not text


@lru_cache(NUM_OPEN)
def _open(path: str) -> BinaryIO:
    return open(path, 'rb', buffering=0)  # closed when the cache drops it


def list_shards(location: str) -> list[str]:
    """Return absolute paths, or URLs, of the shards at a location.

    A location is a folder of tar files, or the path or URL of one, with ranges
    (``train-{000000..000009}.tar``) or, for local ones, wildcards (``train-*.tar``).
    """
    is_remote = '://' in location
    if is_remote and not location.endswith('.tar'):
        raise ValueError(
            f'the shards of {location} cannot be listed: name them, such as '
            f'{location.rstrip("/")}/train-{{000000..000009}}.tar'
        )
    if osp.isdir(location):
        folder, location = location, osp.join(glob.escape(location), '*.tar')
        words = (re.split(r'[-_.\d]+', osp.basename(path)) for path in glob.glob(location))
        splits = [{*map(find_split, each)} - {None} for each in words]
        if {'train'} in splits and {'val'} in splits:
            raise ValueError(
                f'{folder} has shards for training and for validation: name both, such as '
                f"--data-root '{folder}/train-*.tar' --val-root '{folder}/val-*.tar'"
            )
    names = _expand(location)
    if is_remote:
        return names
    lists = [sorted(glob.glob(name)) if glob.has_magic(name) else [name] for name in names]
    paths = [path for found in lists for path in found]
    missing = [path for path in paths if not osp.isfile(path)]
    if missing or not paths:
        more = f' and {len(missing) - 1} more' if missing[1:] else ''
        raise FileNotFoundError(
            f'there is no shard {missing[0] if missing else location}{more}. Set data_root to '
            'a folder of tar files, or name them: shards/train-{000000..000009}.tar'
        )
    return [osp.abspath(path) for path in paths]


def _expand(pattern: str) -> list[str]:
    """Expand ranges such as ``{000..009}``."""
    before, *numbers = RANGE.split(pattern, maxsplit=1)
    if not numbers:
        return [pattern]
    first, last, after = numbers
    return [
        path
        for number in range(int(first), int(last) + 1)
        for path in _expand(f'{before}{number:0{len(first)}d}{after}')
    ]


def fetch_shards(urls: Sequence[str], cache_dir: str, backend_args: dict | None) -> list[str]:
    """Copy remote shards to folders in ``cache_dir``, unless they are there; return their paths.

    mmengine's file backends read whole files, so a shard has to fit into memory.
    """
    paths = []
    for number, url in enumerate(urls, 1):
        folder, _, name = url.rpartition('/')
        digest = hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()
        path = osp.join(cache_dir, digest, name)
        paths.append(path)
        if osp.isfile(path):
            continue
        note = f'copying shard {number} of {len(urls)}: {url} to {path}'
        MMLogger.get_current_instance().info(note)
        os.makedirs(osp.dirname(path), exist_ok=True)
        try:
            content = fileio.get(url, backend_args=backend_args)
        except OSError as error:
            raise ConnectionError(f'the shard {url} cannot be read: {error}') from error
        with replacing(path) as file:
            file.write(content)
    return paths
