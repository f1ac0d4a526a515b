"""Checkpoint files that are whole or not there, and that tell when they are damaged.

A torch file is a zip archive, which may end in a comment. A sealed one ends in the SHA-256 of all
bytes before the comment; torch and everybody else read it as before.
"""

import os
import re
import struct
from pathlib import Path

from mmpatchmix.compat.safe_loading import LENGTH, MARK, digest, find_damage


def seal(path: str | Path) -> None:
    """Append the digest of a torch file that has just been written, and bring it to the disk."""
    with open(path, 'rb+') as file:
        digest_ = digest(file, os.path.getsize(path) - 2)
        file.seek(-2, os.SEEK_END)
        file.write(struct.pack('<H', LENGTH) + MARK + digest_)
        file.flush()
        os.fsync(file.fileno())


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
