"""Reason: torch checks no CRC, and calls every file corrupt that it cannot read, also a web page.

:func:`find_damage` checks a torch file; :func:`find_other_kind` names the kind of any other file.
"""

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

# The comment at the end of a zip archive that mmpatchmix.checkpoints.sealing writes.
MARK = b'sha256:'
LENGTH = len(MARK) + 64
# First bytes of the last 22 of an archive, which end in the length of the comment.
_END = b'PK\x05\x06'
_UNPACK = 'Unpack it and name the file with the weights.'
# First bytes, in lower case and without white space before them: the kind and the remedy.
_BEGINNINGS = {
    b'version https://git-lfs': 'a pointer of Git LFS to the file. Fetch it: git lfs pull.',
    b'<': 'a web page (HTML or XML), saved in place of the file. Download the file itself; pages '
    'of GitHub and Hugging Face have a link to it.',
    b'{': 'a JSON file. Name the file with the weights, or its folder.',
}
_ARCHIVES = (b'\x1f\x8b', b'BZh', b'\xfd7zXZ', b'\x28\xb5\x2f\xfd', b'7z\xbc\xaf')
# The number with which torch.save() without an archive (torch before 1.6) begins.
_MAGIC_NUMBER = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as ``.safetensors`` does: a length and a JSON object."""
    with open(path, 'rb') as file:
        length, brace = int.from_bytes(file.read(8), 'little'), file.read(1)
    return brace == b'{' and length < os.path.getsize(path)


def find_other_kind(path: str | Path) -> str | None:
    """Return the kind of a file that is no torch file, and the remedy; None for all others."""
    with open(path, 'rb') as file:
        head = file.read(512)
    if is_safetensors(path):
        return 'a safetensors file. Rename it to end in .safetensors.'
    if head[257:262] == b'ustar' or head.startswith(_ARCHIVES):
        return f'an archive. {_UNPACK}'
    if head[:1] == b'\x80' and _MAGIC_NUMBER not in head:
        return 'a pickle that torch.save() did not write. Save the weights with torch.save().'
    if not head.startswith(b'PK'):
        start = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
        return next((kind for key, kind in _BEGINNINGS.items() if start.startswith(key)), None)
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.partition('/')[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # damaged
    if 'constants.pkl' in members:
        return (
            'a TorchScript archive, a program. If you trust it, save its weights: python -c '
            """"import torch; torch.save(torch.jit.load('FILE', 'cpu').state_dict(), 'x.pth')"."""
        )
    return None if 'data.pkl' in members else f'a zip archive of other files. {_UNPACK}'


def find_damage(path: str | Path) -> str | None:
    """Return the kind of damage of a torch file by its digest, or by its CRCs; None without.

    Files of torch before 1.6 are no archives and cannot be checked; they pass.
    """
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        start = file.read(20)
        file.seek(max(0, size - 22 - 65535))
        tail = file.read()
        end = tail.rfind(_END)
        if end < 0:
            if start.startswith(b'\x80'):
                return None
            missing = 'its end is missing' if start.startswith(b'PK') else f'it begins with {start}'
            return missing if size else 'it is empty'
        length = int.from_bytes(tail[end + 20 : end + 22], 'little')
        comment = tail[end + 22 :]
        if len(comment) != length:
            return 'its end is cut off or changed'
        if length == LENGTH:
            expected = MARK + digest(file, size - LENGTH - 2)
            return None if comment == expected else 'its digest differs'
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError) as error:
        return f'{type(error).__name__}: {error}'
    return member and f'{member} differs from its CRC'


def digest(file: BinaryIO, num_bytes: int) -> bytes:
    """Return the SHA-256 of the first bytes of an open file, in hexadecimal digits."""
    sha256 = hashlib.sha256()
    file.seek(0)
    while num_bytes and (part := file.read(min(num_bytes, 2**24))):
        sha256.update(part)
        num_bytes -= len(part)
    return sha256.hexdigest().encode()
