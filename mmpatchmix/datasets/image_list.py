"""File names of images: lists in text files, walking a folder, the hash that splits images."""

import csv
import hashlib
import os
import os.path as osp
import re
from collections.abc import Iterator
from typing import NamedTuple

LIST_ENDINGS = ('.csv', '.txt')

# Columns of a list, and the names that a header line may have for them.
COLUMNS = {
    'path': ('path', 'file', 'filename', 'filepath', 'image', 'img_path'),
    'label': ('label', 'class', 'category', 'target'),
    'split': ('split', 'set', 'subset'),
}

# Names of splits, of 'val' in order of preference.
TRAIN_NAMES = ('train', 'training')
VAL_NAMES = ('val', 'valid', 'validation', 'test', 'testing')
SPLITS = dict.fromkeys(TRAIN_NAMES, 'train') | dict.fromkeys(VAL_NAMES, 'val')
SPLITS |= {'held-out': 'val', 'heldout': 'val'}

# A path; after a tab, or after blanks if it is a whole number, a label.
TEXT_LINE = re.compile(r'(.+?)(?:\t+(.+)|\s+(\d+))?')


class ImageList(NamedTuple):
    """The columns of a list; ``splits`` are 'train' or 'val'."""

    paths: list[str]
    labels: list[str] | None
    splits: list[str] | None


def is_list(path: str) -> bool:
    """Return whether a path has the ending of a list and is not a folder."""
    return path.lower().endswith(LIST_ENDINGS) and not osp.isdir(path)


def read_image_list(path: str) -> ImageList:
    """Read a ``.csv`` (path, label, split, with or without a header line) or ``.txt``."""
    if not osp.isfile(path):
        raise FileNotFoundError(f'ImageFolder: there is no list {path}')
    try:
        with open(path, encoding='utf-8-sig', errors='surrogateescape', newline='') as file:
            rows = _read_csv(file) if path.lower().endswith('.csv') else _read_text(file)
    except csv.Error as error:
        raise ValueError(f'ImageFolder: {path} is not a CSV file: {error}') from error
    if not rows:
        raise ValueError(f'ImageFolder: the list {path} names no image')
    numbers, *columns = zip(*rows, strict=True)
    for name, column in zip(COLUMNS, columns, strict=True):
        if '' in column and (name == 'path' or any(column)):
            line = numbers[column.index('')]
            raise ValueError(f'ImageFolder: line {line} of {path} has no {name}')
    paths, labels, splits = (list(column) if any(column) else None for column in columns)
    for number, split in zip(numbers, splits or (), strict=bool(splits)):
        if split.lower() not in SPLITS:
            raise ValueError(
                f'ImageFolder: line {number} of {path} has the split {split!r}; it must be one of '
                f'{", ".join(SPLITS)}'
            )
    return ImageList(paths, labels, splits and [SPLITS[split.lower()] for split in splits])


def _read_csv(file) -> list[tuple[int, str, str, str]]:
    """Return line number, path, label and split of each line; '' for missing cells."""
    reader = csv.reader(file)
    places, rows = dict(path=0, label=1, split=2), []
    for row in reader:
        cells = [cell.strip() for cell in row]
        names = [cell.lower() for cell in cells]
        if not rows and any(name in names for name in COLUMNS['path']):
            places = {
                column: next((n for n, name in enumerate(names) if name in known), len(names))
                for column, known in COLUMNS.items()
            }
        elif any(cells):
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


def walk(root: str, folder: str = '', above: tuple = ()) -> Iterator[str]:
    """Yield relative paths of all files and, with '/' at the end, of all folders.

    Hidden ones are left out. Links to folders are followed, except to a folder above (a cycle).
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
            # entry.is_dir() raises for a link to itself.
            if osp.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                yield from walk(root, f'{folder}{entry.name}/', (*above, here))
            else:
                yield folder + entry.name


def hash_name(name: str) -> int:
    """Return a hash of a name, uniform in [0, 2**64) and the same on every machine."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, 'big')
