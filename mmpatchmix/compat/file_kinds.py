"""Reason: torch calls every file that it cannot read corrupt, also a web page or an archive.

:func:`find_other_kind` names the kind of such a file, and the way to its weights.
"""

import os
import zipfile
from pathlib import Path

_UNPACK = 'Unpack it and name the file inside.'
_AGAIN = 'Download the file itself; pages of GitHub and Hugging Face have a link to it.'
_OTHER_LIBRARY = 'Save the weights with torch.save() or as .safetensors.'
# First bytes, in lower case and without white space before them: the kind and the remedy.
_BEGINNINGS = {
    b'version https://git-lfs': ('a pointer of Git LFS to the file', 'Fetch it: git lfs pull.'),
    b'<': ('a web page (HTML or XML), saved in place of the file', _AGAIN),
    b'{': ('a JSON file', 'Name the file with the weights, or its folder.'),
    b'\x1f\x8b': ('a gzip archive', _UNPACK),
    b'bzh': ('a bzip2 archive', _UNPACK),
    b'\xfd7zxz': ('an xz archive', _UNPACK),
    b'\x28\xb5\x2f\xfd': ('a Zstandard archive', _UNPACK),
    b'7z\xbc\xaf': ('a 7-Zip archive', _UNPACK),
    b'\x89hdf': ('an HDF5 file (Keras, TensorFlow)', _OTHER_LIBRARY),
    b'gguf': ('a GGUF file', _OTHER_LIBRARY),
}
# The number with which torch.save() without an archive (torch before 1.6) begins.
_MAGIC_NUMBER = (0x1950A86A20F9469CFC6C).to_bytes(10, 'little')


def is_safetensors(path: str | Path) -> bool:
    """Return whether a file begins as ``.safetensors`` does: a length and a JSON object."""
    with open(path, 'rb') as file:
        length, brace = int.from_bytes(file.read(8), 'little'), file.read(1)
    return brace == b'{' and length < os.path.getsize(path)


def find_other_kind(path: str | Path) -> tuple[str, str] | None:
    """Return the kind of a file that is no torch file, and the remedy; None for all others."""
    with open(path, 'rb') as file:
        head = file.read(512)
    if is_safetensors(path):
        return 'a safetensors file', 'Rename it to end in .safetensors.'
    if head[257:262] == b'ustar':
        return 'a tar archive', _UNPACK
    if head[:1] == b'\x80' and _MAGIC_NUMBER not in head:
        return 'a pickle that torch.save() did not write', _OTHER_LIBRARY
    if not head.startswith(b'PK'):
        start = head.removeprefix(b'\xef\xbb\xbf').lstrip().lower()
        return next((kind for key, kind in _BEGINNINGS.items() if start.startswith(key)), None)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None  # damaged
    endings = {name.partition('/')[2] for name in names}
    if 'constants.pkl' in endings:
        return 'a TorchScript archive, a program', (
            'If you trust it, save its weights: python -c "import torch; '
            """torch.save(torch.jit.load('FILE', 'cpu').state_dict(), 'weights.pth')"."""
        )
    if 'data.pkl' in endings:
        return None
    if 'archive_format' in endings:
        return 'a program of torch.export', 'Name the checkpoint that it was exported from.'
    return f'a zip archive of other files ({", ".join(names[:3]) or "none"})', _UNPACK
