"""File names of images: names of splits, lists in text files, walking a folder, hashes."""

import csv
import io
import os
import os.path as osp
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from itertools import islice

import numpy as np
from mmengine.logging import MMLogger

from mmpatchmix.datasets.decode_image import EXTENSIONS
from mmpatchmix.files import LOCK

NUM_SAMPLED = 100  # first lines, which decide about the separator and the column of paths

NUMBERED_PART = re.compile(
    r'(part|shard|chunk|batch|block|bucket|dir|disk|folder|fold|set|split|vol|volume)s?[-_. ]?\d+',
    re.IGNORECASE,
)
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
ENDINGS = (*EXTENSIONS, '.npy', '.dcm')


def find_split(name: str) -> str | None:
    """Return 'train' or 'val' for names such as 'Train', 'train2017' and 'held-out', else None."""
    return next((split for split, form in SPLITS.items() if form.fullmatch(_letters(name))), None)


def find_class_folders(root: str, paths: Counter, classes: Sequence[str]) -> tuple[bool, str]:
    """Return whether the top-level folders of images are classes, and the reason.

    They are if every image lies exactly one level down, in two or more folders that are not named
    like splits or numbered parts, or at any depth in folders that ``classes`` names. ``paths`` are
    those of all folders with images, '' or with '/' at the end.
    """
    folders = sorted({path.partition('/')[0] for path in paths})
    listed = ', '.join(folders[:4]) + (' ...' if len(folders) > 4 else '')
    depths = sorted({path.count('/') for path in paths})
    if depths[0] and set(folders) <= set(classes):
        return True, f'{listed} are folders of the given classes'
    if depths == [0]:
        reason = 'images lie in no folder'
    elif len(folders) < 2:
        reason = f'all images lie in {listed}'
    elif len(depths) > 1:
        reason = 'images lie at several depths'
    elif depths != [1]:
        reason = f'images lie {depths[0]} folders deep; data_root is not the folder of classes'
    elif (splits := {*map(find_split, folders)}) >= {'train', 'val'} or None not in splits:
        reason = f'{listed} are splits'
        MMLogger.get_current_instance().warning(
            f'{root} holds {listed}: read as one unlabelled set. Use one of them with '
            "data_prefix='train'; labels=True makes them classes"
        )
    elif all(NUMBERED_PART.fullmatch(name) for name in folders):
        reason = f'{listed} are numbered parts; labels=True makes them classes'
    else:
        numbered = all(name.isdecimal() for name in folders)
        note = '  <- only numbered: labels=False if they are not classes' if numbered else ''
        return True, f'{len(folders)} folders are classes: {listed}{note}'
    return False, f'none: {reason}'


def is_list(path: str) -> bool:
    """Return whether a path has the ending of a list and is not a folder."""
    return path.lower().endswith(('.csv', '.tsv', '.txt')) and not osp.isdir(path)


def read_image_list(path: str) -> tuple[list[str], list[str] | None, list[str] | None, str]:
    """Read paths and, if there are any, labels and splits ('train' or 'val') of a list.

    Paths are the column of existing files. A first line without a file is a header; without one,
    the columns are path, label and split. The separator is a comma, semicolon, tab or bar, the
    encoding UTF-8, UTF-16 or Latin-1. The fourth value describes the columns.
    """
    if not osp.isfile(path):
        raise FileNotFoundError(f'ImageFolder: there is no list {path}')
    text, encoding = _decode(path)
    folder = osp.dirname(path)

    def spell(cell: str) -> str:
        """Return a path as it is on this disk; names of Windows and in Latin-1 are tried."""
        if encoding != 'latin-1' and '\\' not in cell:
            return cell
        spellings = [cell, cell.replace('\\', '/')]
        if encoding == 'latin-1':
            spellings.insert(0, os.fsdecode(cell.encode(encoding)))
        return next((each for each in spellings if osp.exists(osp.join(folder, each))), cell)

    def is_file(cell: str) -> bool:
        return cell != '' and osp.isfile(osp.join(folder, spell(cell)))

    try:
        separator, place = _find_paths(path, text, is_file)
        lines = list(_parse(text, separator))
    except csv.Error as error:
        raise ValueError(f'ImageFolder: {path} is not a CSV file: {error}') from error
    header = ()
    if lines and not any(is_file(c) or c.lower().endswith(ENDINGS) for c in lines[0][1:]):
        _, *header = lines.pop(0)
    if not lines:
        raise ValueError(f'ImageFolder: the list {path} names no image')
    if place is None:
        raise ValueError(
            f'ImageFolder: none of the first lines of {path} names an existing file, such as '
            f'column 1 of line {lines[0][0]}, {lines[0][1]!r}. Paths are relative to the list, or '
            'absolute'
        )
    width = max(map(len, lines))
    lines = [line + ('',) * (width - len(line)) for line in lines]
    # Faster than zip(*lines), whose million iterators the garbage collector tracks.
    numbers, *table = ([line[n] for line in lines] for n in range(width))
    names = [f'{n + 1} ({header[n]})' if n < len(header) else f'{n + 1}' for n in range(len(table))]
    label, split = _find_columns(header, table, place)
    used = dict(path=place, label=label, split=split)
    used = {kind: n for kind, n in used.items() if n is not None}
    for kind, n in used.items():
        for row, cell in enumerate(table[n]):
            if not cell or '\n' in cell:
                fault = ('an open quote in', 'close it') if cell else ('no', 'fill it in')
                raise ValueError(
                    f'ImageFolder: line {numbers[row]} of {path} has {fault[0]} {kind} in column '
                    f'{names[n]}: {fault[1]}, or remove the line or the column'
                )
    splits = None
    if split is not None:
        # Of a column such as is_valid, the cells are true or false.
        kind = find_split(_letters(header[split]).removeprefix('is')) if header else None
        other = 'train' if kind == 'val' else 'val'
        values = dict.fromkeys(TRUE, kind) | dict.fromkeys(FALSE, other)
        splits = [values.get(cell.lower()) if kind else find_split(cell) for cell in table[split]]
        if None in splits:
            row = splits.index(None)
            raise ValueError(
                f'ImageFolder: line {numbers[row]} of {path} has the split '
                f'{table[split][row]!r} in column {names[split]}; it must be train, val, test or '
                'another name of these'
            )
    note = ', '.join(f'{kind}s {names[n]}' for kind, n in used.items())
    unused = [names[n] for n, cells in enumerate(table) if n not in used.values() and any(cells)]
    if unused:
        note += f'; not used: {", ".join(unused)} (name a column label or split to use it)'
    labels = None if label is None else table[label]
    return [spell(cell) for cell in table[place]], labels, splits, note


def _letters(name: str) -> str:
    return re.sub(r'[\W\d_]', '', name.lower())


def _decode(path: str) -> tuple[str, str]:
    """Return text and encoding of a list."""
    with open(path, 'rb') as file:
        content = file.read()
    encoding = 'utf-8-sig'
    if content.startswith((b'\xff\xfe', b'\xfe\xff')):
        encoding = 'utf-16'
    elif b'\0' in content[:2]:
        encoding = 'utf-16-be' if content[:1] == b'\0' else 'utf-16-le'
    try:
        return content.decode(encoding), encoding
    except UnicodeDecodeError:
        return content.decode('latin-1'), 'latin-1'


def _parse(text: str, separator: str | None) -> Iterator[tuple]:
    """Yield number and cells of each line; None stands for :data:`TEXT_LINE`.

    In flat tuples of texts, which the garbage collector does not track.
    """
    if separator is None:
        for number, line in enumerate(io.StringIO(text, newline=None), 1):
            if line.strip() and not line.startswith('#'):
                path, after_tab, whole = TEXT_LINE.fullmatch(line.strip()).groups()
                yield number, path, after_tab or whole or ''
        return
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=separator, skipinitialspace=True)
    for row in reader:
        if any(cells := [cell.strip() for cell in row]):
            yield reader.line_num, *cells


def _find_paths(
    path: str, text: str, is_file: Callable[[str], bool]
) -> tuple[str | None, int | None]:
    """Return the separator with most files in a column, and the first with nearly as many."""
    separators = [None, *',;\t|'] if path.lower().endswith('.txt') else [*',;\t|']
    hits = Counter()
    for separator in separators:
        for _, *cells in islice(_parse(text, separator), NUM_SAMPLED):
            hits.update((separator, place) for place, cell in enumerate(cells) if is_file(cell))
    if not hits:
        return separators[0], None
    (separator, _), most = hits.most_common(1)[0]
    columns = [n for (s, n), num in hits.items() if s == separator and 10 * num >= 9 * most]
    return separator, min(columns)


def _find_columns(
    header: list[str], table: Sequence[Sequence[str]], place: int
) -> tuple[int | None, int | None]:
    """Return the columns of labels and of splits, if any."""
    others = [n for n, column in enumerate(table) if n != place and any(column)]
    if header:
        names = {n: _letters(header[n]) for n in others if n < len(header)}
        label = next((n for n, name in names.items() if LABEL_COLUMN.fullmatch(name)), None)
        # Numbered folds do not say which one is held out.
        splits = [
            n
            for n, name in names.items()
            if SPLIT_COLUMN.fullmatch(name) and not all(map(str.isdecimal, table[n]))
        ]
        splits += [n for n, name in names.items() if find_split(name.removeprefix('is'))]
        return label, next((n for n in splits if n != label), None)
    split = next((n for n in others if all(map(find_split, table[n]))), None)
    label = next((n for n in others if n != split), None)
    third = next((n for n in others if n != label and any(map(find_split, table[n]))), None)
    return label, third if split is None else split


def walk(
    root: str, left_out: dict, folder: str = '', above: tuple = ()
) -> Iterator[tuple[str, list[str]]]:
    """Yield relative paths of all folders, '' or with '/' at the end, and the names of their files.

    Hidden ones, folders of the system, work dirs of runs, pipes and devices are added to the lists
    of ``left_out``, by kind. Links to folders are followed, except to a folder above (a cycle).
    """
    status = os.stat(osp.join(root, folder))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    files, folders, num_runs = [], [], 0
    with os.scandir(osp.join(root, folder)) as entries:
        for entry in entries:
            if not entry.name.startswith('.') and entry.is_file(follow_symlinks=False):
                files.append(entry.name)
                continue
            is_dir = osp.isdir(entry.path)
            if kind := _find_kind(entry, is_dir):
                left_out.setdefault(kind, []).append(folder + entry.name)
                num_runs += kind == WORK_DIR
            else:
                (folders if is_dir else files).append(entry.name)
    if files or folders or not num_runs:  # a folder of runs alone is not an empty class
        yield folder, files
    for name in folders:
        yield from walk(root, left_out, f'{folder}{name}/', (*above, here))


def _find_kind(entry: os.DirEntry, is_dir: bool) -> str | None:
    """Return the kind of a file or folder that is never data; None for data."""
    if entry.name.startswith('.'):
        return 'hidden'
    if is_dir:
        if SYSTEM_FOLDER.fullmatch(entry.name):
            return 'system folders'
        return WORK_DIR if is_work_dir(entry.path) else None
    return 'pipes or devices' if is_special_file(entry.path) else None


def is_special_file(path: str) -> bool:
    """Return whether a path is a pipe, socket or device, which can block whoever opens it.

    A link that leads nowhere is none: it is counted as unreadable.
    """
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


def hash_names(names: Sequence[bytes]) -> np.ndarray:
    """Return hashes of names, (N,) uniform in [0, 2**64) and the same on every machine."""
    digests = b''.join([blake2b(name, digest_size=8).digest() for name in names])
    return np.frombuffer(digests, '>u8')
