"""Go through folders of files; tell names apart evenly."""

import hashlib
import os
import os.path as osp
from collections.abc import Iterator


def walk(root: str, folder: str = '', above: tuple = ()) -> Iterator[str]:
    """Yield relative paths of all files and, with '/' at the end, of all folders.

    Linked folders are followed, but not back to one that they lie in: that would never end.
    """
    status = os.stat(osp.join(root, folder))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    if folder:
        yield folder
    with os.scandir(osp.join(root, folder)) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            # A link is asked by its path: its entry raises where it leads to itself.
            if osp.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from walk(root, f'{folder}{entry.name}/', (*above, here))
            else:
                yield folder + entry.name


def list_folders(root: str) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones."""
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if osp.isdir(e.path) and e.name[0] != '.')


def hash_name(name: str) -> int:
    """Return a number in [0, 2**64) that depends on the name only, evenly spread over names."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, 'big')
