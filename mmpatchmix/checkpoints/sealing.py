"""Checkpoint files that are whole or not there, and that tell when they are damaged.

A torch file is a zip archive, which may end in a comment. A sealed one ends in the SHA-256 of all
bytes before the comment; torch and everybody else read it as before.
"""

import hashlib
import os
import re
import struct
import zipfile
import zlib
from pathlib import Path

MARK = b'sha256:'
LENGTH = len(MARK) + 64  # of the comment
END = b'PK\x05\x06'  # 22 bytes begin with it; the last two tell the length of the comment


def seal(path: str | Path) -> None:
    """Append the digest of a torch file that has just been written, and bring it to the disk."""
    with open(path, 'rb+') as file:
        digest = _digest(file, os.path.getsize(path) - 2)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack('<H', LENGTH) + MARK + digest)
        file.flush()
        os.fsync(file.fileno())


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


def find_damage(path: str | Path) -> str | None:
    """Return what is wrong with a torch file; None where nothing is.

    Sealed files are compared with their digest, other archives with the CRC of each member.
    Files of torch before 1.6 are no archives and pass, for there is nothing to compare with.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        head = file.read(4)
        file.seek(max(0, size - 22 - 65535))
        tail = file.read()
        end = tail.rfind(END)
        if end < 0:
            is_old = head[:1] == b'\x80'  # a pickle
            return None if is_old else 'its end is missing' if size else 'it is empty'
        length = int.from_bytes(tail[end + 20 : end + 22], 'little')
        comment = tail[end + 22 :]
        if len(comment) != length:
            return 'its end is cut off or changed'
        if length == LENGTH:
            wanted = MARK + _digest(file, size - LENGTH - 2)
            return None if comment == wanted else 'its digest differs'
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (
        zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, ValueError,
    ) as error:  # fmt: skip
        return f'{type(error).__name__}: {error}'
    return member and f'{member} differs from its CRC'


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a work dir to resume from, the best choice first.

    That is the one ``last_checkpoint`` names, then the others from the newest on.
    """
    folder = Path(folder)
    pattern = re.compile(r'(epoch|iter)_\d+\.pth')
    found = [path for path in folder.glob('*.pth') if pattern.fullmatch(path.name)]
    found.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    try:
        named = Path((folder / 'last_checkpoint').read_text(encoding='utf-8').strip())
    except (OSError, UnicodeDecodeError):
        return found
    # The work dir may have been moved since.
    first = named if named.is_file() else folder / named.name
    if not first.is_file():
        return found
    return [first, *(path for path in found if path.resolve() != first.resolve())]


def find_good_checkpoint(folder: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the first of :func:`find_checkpoints` that is whole, and the damaged before it."""
    damaged: dict[Path, str] = {}
    for path in find_checkpoints(folder):
        damage = find_damage(path)
        if damage is None:
            return path, damaged
        damaged[path] = damage
    return None, damaged


def _digest(file, num_bytes: int) -> bytes:
    digest = hashlib.sha256()
    file.seek(0)
    while num_bytes and (part := file.read(min(num_bytes, 2**24))):
        digest.update(part)
        num_bytes -= len(part)
    return digest.hexdigest().encode()
