"""File names of images: names of splits, lists in text files, walking a folder, hashes."""

import csv
import hashlib
import io
import os
import os.path as osp
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from mmpatchmix.datasets.decode_image import EXTENSIONS
from mmpatchmix.files import LOCK

LIST_ENDINGS = ('.csv', '.tsv', '.txt')
NUM_SAMPLED = 100  # first lines, which decide about the separator and the column of paths

# A path; after a tab, or after blanks if it is a whole number, a label.
TEXT_LINE = re.compile(r'(.+?)(?:\t+(.+)|\s+(\d+))?')

# Names of splits, and of columns in a header line: of their letters, in lower case.
AROUND = '(?:images?|imgs?|pictures?|data|sets?|splits?|mini)*'
SPLITS = {
    'train': re.compile(f'{AROUND}(?:train(?:ing|val|valid)?|trn?){AROUND}'),
    'val': re.compile(
        f'{AROUND}(?:va(?:l(?:id(?:ation)?)?)?|dev|eval(?:uation)?|h[eo]ldout|te(?:st(?:ing|dev)?)?)'
        f'{AROUND}'
    ),
}
LABEL_COLUMN = re.compile(
    '(?:gt|true|image)?(?:label|class|category|target|y)+(?:e?s|ies)?(?:name|id|idx|index)?s?'
)
SPLIT_COLUMN = re.compile('(?:data)?(?:split|(?:sub)?set|folds?|partition|phase|usage)(?:name)?')
TRUE, FALSE = ('true', 't', 'yes', '1'), ('false', 'f', 'no', '0')  # of columns such as is_valid

SYSTEM_FOLDER = re.compile(r'__.*|[@$#~].*|lost\+found|System Volume Information|Recycled|Recycler')
RUN_FOLDER = re.compile(r'\d{8}_\d{6}')
WORK_DIR = 'work dirs of runs'


class ImageList(NamedTuple):
    """The columns of a list; ``splits`` are 'train' or 'val', ``note`` says what they are."""

    paths: list[str]
    labels: list[str] | None
    splits: list[str] | None
    note: str


def find_split(name: str) -> str | None:
    """Return 'train' or 'val' for names such as 'Train', 'train2017' and 'held-out', else None."""
    return next((split for split, form in SPLITS.items() if form.fullmatch(_letters(name))), None)


def is_list(path: str) -> bool:
    """Return whether a path has the ending of a list and is not a folder."""
    return path.lower().endswith(LIST_ENDINGS) and not osp.isdir(path)


def read_image_list(path: str) -> ImageList:
    """Read paths and, if there are any, labels and splits of a list.

    Paths are the column of existing files. A first line without a file is a header; without one,
    the columns are path, label and split. The separator is a comma, semicolon, tab or bar, the
    encoding UTF-8, UTF-16 or Latin-1.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'ImageFolder: there is no list {path}')
    text, encoding = _decode(path)
    folder = osp.dirname(path)

    def spell(cell: str) -> str:
        """Return a path as it is on this disk; names of Windows and in Latin-1 are tried."""
        spellings = [cell, cell.replace('\\', '/')]
        if encoding == 'latin-1':
            spellings.insert(0, os.fsdecode(cell.encode(encoding)))
        different = dict.fromkeys(spellings)
        if len(different) == 1:
            return cell
        return next((each for each in different if osp.exists(osp.join(folder, each))), cell)

    def is_file(cell: str) -> bool:
        return cell != '' and osp.isfile(osp.join(folder, spell(cell)))

    try:
        separator, place = _find_paths(path, text, is_file)
        rows = list(_parse(text, separator))
    except csv.Error as error:
        raise ValueError(f'ImageFolder: {path} is not a CSV file: {error}') from error
    is_data = rows and any(
        is_file(cell) or cell.lower().endswith(EXTENSIONS) for cell in rows[0][1]
    )
    header = [] if is_data else [cell.strip() for cell in rows.pop(0)[1]] if rows else []
    if not rows:
        raise ValueError(f'ImageFolder: the list {path} names no image')
    if place is None:
        line, cells = rows[0]
        raise ValueError(
            f'ImageFolder: none of the first lines of {path} names an existing file, such as '
            f'column 1 of line {line}, {cells[0]!r}. Paths are relative to the list, or absolute'
        )
    numbers = [number for number, _ in rows]
    width = max(len(cells) for _, cells in rows)
    table = [[cells[n] if n < len(cells) else '' for _, cells in rows] for n in range(width)]
    names = [f'{n + 1} ({header[n]})' if n < len(header) else f'{n + 1}' for n in range(width)]
    label, split = _find_columns(header, table, place)
    for kind, n in (('path', place), ('label', label), ('split', split)):
        if n is not None and '' in table[n]:
            raise ValueError(
                f'ImageFolder: line {numbers[table[n].index("")]} of {path} has no {kind} in '
                f'column {names[n]}: fill it in, or remove the line or the column'
            )
    splits = None
    if split is not None:
        read = _split_reader(_letters(header[split]) if header else '')
        splits = [read(cell) for cell in table[split]]
        if None in splits:
            row = splits.index(None)
            raise ValueError(
                f'ImageFolder: line {numbers[row]} of {path} has the split '
                f'{table[split][row]!r} in column {names[split]}; it must be train, val, test or '
                'another name of these'
            )
    unused = [names[n] for n in range(width) if n not in (place, label, split) and any(table[n])]
    used = dict(paths=place, labels=label, splits=split)
    note = ', '.join(f'{kind} {names[n]}' for kind, n in used.items() if n is not None)
    if unused:
        note += f'; not used: {", ".join(unused)} (name a column label or split to use it)'
    labels = None if label is None else table[label]
    return ImageList([spell(cell) for cell in table[place]], labels, splits, note)


def _letters(name: str) -> str:
    return re.sub(r'[\W\d_]', '', name.lower())


def _decode(path: str) -> tuple[str, str]:
    """Return text and encoding of a list."""
    with open(path, 'rb') as file:
        content = file.read()
    encodings = ['utf-8-sig', 'latin-1']
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        encodings = ['utf-16']
    elif b'\0' in content[:2]:
        encodings = ['utf-16-be' if content[:1] == b'\0' else 'utf-16-le']
    for encoding in encodings:
        try:
            return content.decode(encoding), encoding
        except UnicodeDecodeError:
            continue
    raise ValueError(
        f'ImageFolder: {path} is not text in UTF-8, UTF-16 or Latin-1: save it as UTF-8'
    )


def _parse(text: str, separator: str | None) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line; None stands for :data:`TEXT_LINE`."""
    if separator is None:
        for number, line in enumerate(io.StringIO(text, newline=None), 1):
            if line.strip() and not line.startswith('#'):
                path, after_tab, whole = TEXT_LINE.fullmatch(line.strip()).groups()
                yield number, [path, after_tab or whole or '']
        return
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator, skipinitialspace=True)
    for row in reader:
        if cells := [cell.strip() for cell in row] if any(map(str.strip, row)) else None:
            yield reader.line_num, cells


def _find_paths(
    path: str, text: str, is_file: Callable[[str], bool]
) -> tuple[str | None, int | None]:
    """Return the separator and the column with most existing files; no column if there are none."""
    separators = [None, *',;\t|'] if path.lower().endswith('.txt') else [*',;\t|']
    hits = Counter()
    for separator in separators:
        for _, cells in islice(_parse(text, separator), NUM_SAMPLED):
            hits.update((separator, place) for place, cell in enumerate(cells) if is_file(cell))
    return hits.most_common(1)[0][0] if hits else (separators[0], None)


def _find_columns(
    header: list[str], table: Sequence[Sequence[str]], place: int
) -> tuple[int | None, int | None]:
    """Return the columns of labels and of splits, if any."""
    others = [n for n, column in enumerate(table) if n != place and any(column)]
    if header:
        names = {n: _letters(header[n]) for n in others if n < len(header)}
        label = next((n for n, name in names.items() if LABEL_COLUMN.fullmatch(name)), None)
        splits = [n for n, name in names.items() if SPLIT_COLUMN.fullmatch(name)]
        splits += [n for n, name in names.items() if find_split(name.removeprefix('is'))]
        # Numbered folds do not say which one is held out.
        folds = [n for n in splits if SPLIT_COLUMN.fullmatch(names[n]) and _are_numbers(table[n])]
        return label, next((n for n in splits if n not in folds and n != label), None)
    split = next((n for n in others if all(map(find_split, table[n]))), None)
    label = next((n for n in others if n != split), None)
    third = next((n for n in others if n != label and any(map(find_split, table[n]))), None)
    return label, split if split is not None else third


def _are_numbers(column: Sequence[str]) -> bool:
    return all(cell.isdecimal() for cell in column)


def _split_reader(name: str) -> Callable[[str], str | None]:
    """Return the function that reads a cell of a split column; 'is_valid' holds true or false."""
    kind = find_split(name.removeprefix('is'))
    if kind is None or SPLIT_COLUMN.fullmatch(name):
        return find_split
    other = 'train' if kind == 'val' else 'val'
    values = dict.fromkeys(TRUE, kind) | dict.fromkeys(FALSE, other)
    return lambda cell: values.get(cell.lower())


def walk(root: str, left_out: dict[str, list[str]]) -> Iterator[str]:
    """Yield relative paths of all files and, with '/' at the end, of all folders.

    Hidden ones, folders of the system, work dirs of runs, pipes and devices are added to
    ``left_out``, by kind. Links to folders are followed, except to a folder above (a cycle).
    """
    return _walk(root, '', (), left_out)


def _walk(root: str, folder: str, above: tuple, left_out: dict) -> Iterator[str]:
    status = os.stat(osp.join(root, folder))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    num_runs = num_others = 0
    with os.scandir(osp.join(root, folder)) as entries:
        for entry in entries:
            name = folder + entry.name
            # entry.is_dir() raises for a link to itself.
            is_dir = osp.isdir(entry.path) if entry.is_symlink() else entry.is_dir()
            if kind := _find_kind(entry, is_dir):
                left_out.setdefault(kind, []).append(name)
                num_runs += kind == WORK_DIR
            elif is_dir:
                num_others += 1
                yield from _walk(root, f'{name}/', (*above, here), left_out)
            else:
                num_others += 1
                yield name
    if folder and (num_others or not num_runs):  # a folder of runs alone is not an empty class
        yield folder


def _find_kind(entry: os.DirEntry, is_dir: bool) -> str | None:
    """Return the kind of a file or folder that is never data; None for data."""
    if entry.name.startswith('.'):
        return 'hidden'
    if is_dir:
        if SYSTEM_FOLDER.fullmatch(entry.name):
            return 'system folders'
        return WORK_DIR if is_work_dir(entry.path) else None
    # A link that leads nowhere is data: it is counted as unreadable.
    is_special = entry.is_symlink() or not entry.is_file()
    return 'pipes or devices' if is_special and is_special_file(entry.path) else None


def is_special_file(path: str) -> bool:
    """Return whether a path is a pipe, socket or device, which can block whoever opens it."""
    return osp.exists(path) and not osp.isfile(path) and not osp.isdir(path)


def is_work_dir(folder: str) -> bool:
    """Return whether a run wrote to a folder: it has our lock, or mmengine's ``TIME/TIME.log``."""
    if osp.exists(osp.join(folder, LOCK)):
        return True
    with os.scandir(folder) as entries:
        return any(
            RUN_FOLDER.fullmatch(entry.name)
            and osp.exists(osp.join(entry.path, f'{entry.name}.log'))
            for entry in entries
        )


def hash_name(name: str) -> int:
    """Return a hash of a name, uniform in [0, 2**64) and the same on every machine."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, 'big')
