"""Reason: OpenCV applies the EXIF orientation of JPEG, PNG and TIFF files, but not that of WebP."""

import io
from contextlib import suppress
from types import SimpleNamespace

import cv2
import numpy as np
from mmcv.image import io as mmcv_io
from PIL import ExifTags, Image, features
from PIL.WebPImagePlugin import WebPImageFile

ORIENTATION = ExifTags.Base.Orientation  # the same number in EXIF and TIFF


def install() -> None:
    """Replace the decoder of mmcv's OpenCV backend, unless a later OpenCV needs none."""
    if not features.check('webp'):  # Pillow reads no WebP
        return
    probe, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = 6
    Image.new('RGB', (2, 1)).save(probe, 'WEBP', exif=exif)
    if len(mmcv_io.imfrombytes(probe.getvalue(), backend='cv2')) == 1:  # not turned
        mmcv_io.cv2 = SimpleNamespace(**vars(cv2) | dict(imdecode=_decode))


def _decode(content: np.ndarray, flag: int) -> np.ndarray | None:
    img = cv2.imdecode(content, flag)
    ignores = flag < 0 or flag & cv2.IMREAD_IGNORE_ORIENTATION
    if img is None or ignores or bytes(content[:4]) != b'RIFF':
        return img
    with suppress(Exception):  # a damaged header
        img = rotate(img, read_orientation(WebPImageFile(io.BytesIO(content))))
    return np.ascontiguousarray(img)


def read_orientation(header: Image.Image) -> int:
    """Return the EXIF orientation of a file that Pillow has opened, 1 to 8; 1 if there is none.

    As in OpenCV, not that of XMP or text chunks, which ``header.getexif()`` also reads.
    """
    exif = Image.Exif()
    with suppress(Exception):  # damaged metadata: Pillow has no common error
        exif.load(header.info.get('exif'))
        return exif.get(ORIENTATION, 1)
    return 1


def rotate(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation, 1 to 8, to (H, W) or (H, W, C)."""
    values = values.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else values
    values = values[:, ::-1] if orientation in (2, 3, 6, 7) else values
    return values[::-1] if orientation in (3, 4, 7, 8) else values
