"""Lists of images in a text file: a path, perhaps a label, perhaps the split it belongs to."""

import csv
import hashlib
import os
import os.path as osp
import re
from collections.abc import Iterator
from typing import NamedTuple

LIST_ENDINGS = ('.csv', '.txt')

# Names of columns, where the first line has them, and what they stand for.
COLUMNS = {
    'path': ('path', 'file', 'filename', 'filepath', 'image', 'img_path'),
    'label': ('label', 'class', 'category', 'target'),
    'split': ('split', 'set', 'subset'),
}

SPLITS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation', 'test', 'held-out', 'heldout'), 'val'),
}

# A path; after a tab, or as a whole number after blanks, a label.
TEXT_LINE = re.compile(r'(.+?)(?:\t+(.+)|\s+(\d+))?')


class ImageList(NamedTuple):
    """The lines of a list.

    Attributes:
        paths: As written.
        labels: As written; None where the list has none.
        splits: 'train' or 'val'; None where the list has none.
    """

    paths: list[str]
    labels: list[str] | None
    splits: list[str] | None


def is_list(path: str) -> bool:
    """Tell whether a path is that of a list: it ends like one and is no folder."""
    return path.lower().endswith(LIST_ENDINGS) and not osp.isdir(path)


def read_image_list(path: str) -> ImageList:
    """Read a ``.csv`` (path, label, split, with or without a line of names) or ``.txt``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is empty, or a line lacks what others have; with its number.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'ImageFolder: there is no list {path}')
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
            rows = _read_csv(file) if path.lower().endswith('.csv') else _read_text(file)
    except csv.Error as error:
        raise ValueError(f'ImageFolder: {path} is no CSV: {error}') from error
    if not rows:
        raise ValueError(f'ImageFolder: the list {path} names no image')
    numbers, paths, labels, splits = zip(*rows, strict=True)
    for number, name in zip(numbers, paths, strict=True):
        if not name:
            raise ValueError(f'ImageFolder: line {number} of {path} has no path')
    splits = _complete(path, 'split', numbers, splits)
    for number, split in zip(numbers, splits or (), strict=bool(splits)):
        if split.lower() not in SPLITS:
            raise ValueError(
                f'ImageFolder: line {number} of {path} has the split {split!r}; it is one of '
                f'{", ".join(SPLITS)}'
            )
    return ImageList(
        list(paths),
        _complete(path, 'label', numbers, labels),
        [SPLITS[split.lower()] for split in splits] if splits else None,
    )


def number_labels(labels: list[str]) -> tuple[str, ...]:
    """Return the names of the classes, in order of their numbers, or else of their letters."""
    names = set(labels)
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def _read_csv(file) -> list[tuple[int, str, str, str]]:
    """Return number, path, label and split of each line; '' for what it has not."""
    reader = csv.reader(file)
    places, rows = dict(path=0, label=1, split=2), []
    for row in reader:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        names = [cell.lower() for cell in cells]
        if not rows and any(name in names for name in COLUMNS['path']):
            places = {
                column: next((n for n, name in enumerate(names) if name in known), len(names))
                for column, known in COLUMNS.items()
            }
            continue
        found = (cells[n] if n < len(cells) else '' for n in places.values())
        rows.append((reader.line_num, *found))
    return rows


def _read_text(file) -> list[tuple[int, str, str, str]]:
    rows = []
    for number, line in enumerate(file, 1):
        line = line.strip()
        if line and not line.startswith('#'):
            path, after_tab, whole = TEXT_LINE.fullmatch(line).groups()
            rows.append((number, path, after_tab or whole or '', ''))
    return rows


def _complete(path: str, column: str, numbers: tuple, values: tuple) -> list[str] | None:
    """Return a column that all lines or none have."""
    if not any(values):
        return None
    for number, value in zip(numbers, values, strict=True):
        if not value:
            raise ValueError(
                f'ImageFolder: line {number} of {path} has no {column}, though others have one'
            )
    return list(values)


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
