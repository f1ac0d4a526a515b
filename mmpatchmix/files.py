"""Files and folders: atomic replacement, the lock of a folder, and the shipped configs by name."""

import difflib
import errno
import fcntl
import os
import socket
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TextIO

# The shipped configs: in an installed package, where mmpretrain has its own, or in a clone.
PACKAGE = Path(__file__).parent
FOLDERS = (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs')

LOCK = '.lock'
_IN_USE = (errno.EACCES, errno.EAGAIN)  # errors of a lock that another process holds
_held: dict[Path, TextIO] = {}
os.register_at_fork(after_in_child=_held.clear)  # a forked process does not hold its parent's locks


def move_into_place(written: str | Path, path: str | Path) -> None:
    """Rename a synchronised file; after a loss of power the old or the new one is there."""
    os.replace(written, path)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def printable(name: str) -> str:
    """Return a file name with line breaks and bytes that are not UTF-8 escaped."""
    return name.encode(errors='backslashreplace').decode().replace('\n', '\\n')


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new version of a file, which replaces the old one once it is on the disk."""
    partial = f'{path}.{os.getpid()}.partial'
    with open(partial, 'wb') as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    move_into_place(partial, path)


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as file:
        file.write(text.encode())


def lock_folder(folder: str | Path, wait: bool = False) -> None:
    """Lock a folder until this process ends; do nothing if this process holds the lock already.

    The lock is on the file ``.lock``, which stays. It belongs to the process, so data workers that
    outlive it do not hold it. On file systems without locks there is a warning and no lock. A
    missing folder is created. If another process holds the lock, ``ValueError`` names its host, ID,
    start and command, or ``wait`` waits for it; then a read-only folder is not locked.
    """
    path = Path(folder).resolve() / LOCK
    if path in _held and path.exists():  # a notebook may have removed it
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if wait and not os.access(path.parent, os.W_OK):
        return
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115  open as long as the lock is held
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or 'another process'
        file.close()
        if error.errno not in _IN_USE:
            warnings.warn(f'{path} cannot be locked ({error}): a second process is not kept out.')
            return
        raise ValueError(
            f'{folder} is in use by {holder}. Wait until it ends, stop it, or choose another '
            'folder (of a run: --work-dir DIR).'
        ) from None
    file.truncate(0)
    started = datetime.now().astimezone().isoformat(' ', 'seconds')
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since {started}: ')
    file.write(f'{" ".join(sys.argv)}\n')
    file.flush()
    _held[path] = file


@contextmanager
def locked(folder: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder, see :func:`lock_folder`, in a ``with`` block."""
    path = Path(folder).resolve() / LOCK
    is_held_before = path in _held
    lock_folder(folder, wait)
    try:
        yield
    finally:
        if not is_held_before and path in _held:
            _held.pop(path).close()


def is_in_use(folder: str | Path) -> bool:
    """Return whether any process, this one included, holds the lock of a folder."""
    path = Path(folder).resolve() / LOCK
    if path in _held:  # to open and close the file would release the lock
        return True
    try:
        with open(path, encoding='utf-8') as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in _IN_USE
    return False


def list_recipes() -> dict[str, Path]:
    """Return the shipped configs by name, such as ``linear/vit-s_in1k``."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1])
    files = sorted(folder.rglob('*.py'))
    names = {file.relative_to(folder).with_suffix('').as_posix(): file for file in files}
    return {name: file for name, file in names.items() if not name.startswith('_base_')}


def find_config(name: str) -> Path:
    """Return the file of a config, given by its path or as the name of a shipped one.

    ``FileNotFoundError`` with similar names if it is neither.
    """
    if Path(name).is_file():
        return Path(name)
    recipes = list_recipes()
    if name in recipes:
        return recipes[name]
    wanted = name.removesuffix('.py').removeprefix('configs/')
    near = [recipe for recipe in recipes if recipe.rpartition('/')[2] == wanted]
    near = near or difflib.get_close_matches(wanted, recipes, n=3)
    raise FileNotFoundError(
        f'there is no config {name}, neither a file nor a recipe'
        + (f'; did you mean {" or ".join(near)}?' if near else f': {", ".join(recipes)}.')
    )
