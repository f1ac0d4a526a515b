"""A lock on a work dir: two runs that write into one folder would ruin each other."""

import errno
import fcntl
import os
import socket
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import TextIO

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
