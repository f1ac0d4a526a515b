"""Made images of every kind, with known values, as the libraries of cameras write them."""

import io

import cv2
import numpy as np
import tifffile
from PIL import Image


def make_levels(num_levels: int, height: int = 64, width: int = 64) -> np.ndarray:
    """(H, W) uint16 with every level from 0 to ``num_levels`` - 1, in a shuffled order."""
    levels = np.arange(height * width) % num_levels
    return np.random.default_rng(0).permutation(levels).reshape(height, width).astype(np.uint16)


def make_noise(shape: tuple, dtype='uint8', high: int = 256) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, shape).astype(dtype)


def as_tiff(values: np.ndarray, **options) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def as_png(values: np.ndarray) -> bytes:
    """RGB or grey, through OpenCV, which writes BGR."""
    if values.ndim == 3:
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    done, content = cv2.imencode('.png', values)
    assert done
    return content.tobytes()


def as_npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def as_pillow(values: np.ndarray, kind: str, orientation: int | None = None, **options) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(values)
    if orientation:
        options['exif'] = image.getexif()
        options['exif'][0x0112] = orientation
    image.save(file, kind, **options)
    return file.getvalue()
