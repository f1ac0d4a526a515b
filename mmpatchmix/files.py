"""A lock on a work dir: two runs that write into one folder would ruin each other."""

import difflib
import errno
import fcntl
import os
import socket
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import TextIO


def move_into_place(written: str | Path, path: str | Path) -> None:
    """Rename a file that is on the disk, so that a loss of power leaves the old or the new one."""
    os.replace(written, path)
    folder = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: str | Path, text: str) -> None:
    """Replace a text file by a whole new one."""
    written = f'{path}.partial'
    with open(written, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    move_into_place(written, path)


NAME = '.lock'

_held: dict[Path, TextIO] = {}


def lock_work_dir(work_dir: str | Path) -> None:
    """Take the lock of a folder until this process ends, however it ends.

    Taking it again in the same process does nothing. The file stays; what counts is the lock on it.

    Args:
        work_dir: Made where it does not exist.

    Raises:
        ValueError: If another process holds it; names its machine, number, start and command.
    """
    path = Path(work_dir).resolve() / NAME
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, 'a+', encoding='utf-8')  # noqa: SIM115  open as long as the lock is held
    try:
        # Of the process, not of the open file: data workers that outlive it do not hold it.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            file.close()
            warnings.warn(f'{path} cannot be locked ({error}): nothing keeps a second run out.')
            return
        file.seek(0)
        holder = file.read().strip() or 'another process'
        file.close()
        raise ValueError(
            f'{work_dir} is in use by {holder}. Wait for it, stop it, or write elsewhere with '
            '--work-dir DIR.'
        ) from None
    file.seek(0)
    file.truncate()
    started = datetime.now().astimezone().isoformat(' ', 'seconds')
    file.write(f'process {os.getpid()} on {socket.gethostname()}, since {started}: ')
    file.write(f'{" ".join(sys.argv)}\n')
    file.flush()
    _held[path] = file


def is_in_use(work_dir: str | Path) -> bool:
    """Tell whether a process, this one or another, holds the lock of a folder."""
    path = Path(work_dir).resolve() / NAME
    if path in _held:  # opening and closing the file would give the lock away
        return True
    try:
        with open(path, encoding='utf-8') as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EAGAIN)
    return False


PACKAGE = Path(__file__).parent

# Of an installed package (put there as mmpretrain does it), and of the repository.
FOLDERS = (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs')


def list_recipes() -> dict[str, Path]:
    """Return the shipped configs by name, such as ``linear/vit-s_in1k``."""
    folder = next((folder for folder in FOLDERS if folder.is_dir()), FOLDERS[-1])
    files = sorted(folder.rglob('*.py'))
    names = {file.relative_to(folder).with_suffix('').as_posix(): file for file in files}
    return {name: file for name, file in names.items() if not name.startswith('_base_')}


def find_config(name: str) -> Path:
    """Return the file of a config.

    Args:
        name: A path, or the name of a shipped recipe.

    Raises:
        FileNotFoundError: If it is neither; near names are listed.
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
