"""Decode a file to all the values it holds: every channel, every bit, nothing converted."""

import io
import logging
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
NPY_START = b'\x93NUMPY'
# By how a file starts; Image.open would try all formats and refuse large images.
HEADER_READERS = {b'\xff\xd8\xff': JpegImageFile, b'\x89PNG': PngImageFile, b'RIFF': WebPImageFile}
MINISWHITE, PALETTE = 0, 3  # of TIFF's tag PhotometricInterpretation
ORIENTATION = ExifTags.Base.Orientation
EXTRA = 'pip install "mmpatchmix[images]"'


class DecodedImage(NamedTuple):
    """What a file holds.

    Attributes:
        values: (H, W, C) of any kind of number, as displayed (turned and mirrored as the file
            says), colours in the order red, green, blue.
        low: Smallest value that its kind of number can have; None where that is no bound, as
            with floating point.
        high: Largest value, likewise.
    """

    values: np.ndarray
    low: float | None
    high: float | None


def decode_image(content: bytes, path: str) -> DecodedImage:
    """Decode a file by what it starts with: TIFF, NumPy array, DICOM, or what OpenCV reads.

    Args:
        content: The whole file.
        path: Its name, for messages.

    Raises:
        OSError: If it is damaged, or holds what is no one image: a movie, a stack of colour
            pages, a palette.
        ValueError: If a package is missing that would read it.
    """
    try:
        if content.startswith(TIFF_STARTS):
            return _decode_tiff(content, path)
        if content.startswith(NPY_START):
            values = np.load(io.BytesIO(content), allow_pickle=False)
            return _finish(values, path)
        if content[128:132] == b'DICM':
            return _decode_dicom(content, path)
        return _decode_with_opencv(content, path)
    except MissingPackageError:
        raise
    except Exception as error:  # what libraries raise at damaged files has no common name
        if isinstance(error, OSError) and path in str(error):
            raise
        raise OSError(f'not an image, or an incomplete one: {path} ({error})') from error


class MissingPackageError(ValueError):
    """A file needs a package that is not installed; says which."""


def _decode_with_opencv(content: bytes, path: str) -> DecodedImage:
    kind = next((kind for start, kind in HEADER_READERS.items() if content.startswith(start)), None)
    orientation = 1
    if kind is not None:
        header = kind(io.BytesIO(content))
        if kind is not PngImageFile or b'eXIf' in content:  # where a PNG has none, all is decoded
            orientation = header.getexif().get(ORIENTATION, 1)
        num_frames = getattr(header, 'n_frames', 1)
        if num_frames > 1 and kind is not JpegImageFile:  # of a JPEG they are previews
            raise OSError(f'holds {num_frames} frames, not one image: {path}')
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise OSError(f'not an image, or an incomplete one: {path}')
    if values.ndim == 3 and values.shape[2] in (3, 4):  # BGR and BGRA
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return _finish(_turn(values, orientation), path)


def _decode_tiff(content: bytes, path: str) -> DecodedImage:
    import tifffile

    logging.getLogger('tifffile').setLevel(logging.CRITICAL)  # it tells what it raises, too
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        series = [
            each
            for each in file.series
            if not (each.keyframe.is_reduced or each.keyframe.is_mask)  # overviews
        ]
        if len(series) != 1:
            shapes = ', '.join(str(each.shape) for each in series)
            raise OSError(f'holds {len(series)} images of shapes {shapes}, not one: {path}')
        (series,) = series
        page = series.keyframe
        if page.photometric == PALETTE:
            raise OSError(f'holds numbers of a palette, not colours: {path}; convert it to RGB')
        # tifffile fills what lies beyond the end of the file with zeros.
        segments = [
            offset + count
            for each in series.pages
            for offset, count in zip(each.dataoffsets, each.databytecounts, strict=True)
        ]
        if max(segments) > len(content):
            raise OSError(f'not an image, or an incomplete one: {path} (it ends too early)')
        try:
            values = series.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            raise MissingPackageError(
                f'{path} is a TIFF with {page.compression.name} compression, which needs the '
                f'package imagecodecs: {EXTRA}'
            ) from error
        values = _move_channels_last(values, series.axes, path)
        orientation = page.tags.valueof(274, 1)
        decoded = _finish(_turn(values, orientation), path, page.bitspersample)
        return _invert(decoded) if page.photometric == MINISWHITE else decoded


def _decode_dicom(content: bytes, path: str) -> DecodedImage:
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise MissingPackageError(
            f'{path} is a DICOM file, which needs the package pydicom: {EXTRA}'
        ) from error
    dataset = pydicom.dcmread(io.BytesIO(content))
    if dataset.PhotometricInterpretation == 'PALETTE COLOR' or 'ModalityLUTSequence' in dataset:
        raise OSError(f'holds numbers of a table, not values: {path}')
    values = pixel_array(dataset)  # colours as RGB
    axes = 'YXS' if dataset.SamplesPerPixel > 1 else 'YX'
    if int(dataset.get('NumberOfFrames') or 1) > 1:
        axes = f'Q{axes}'
    decoded = _finish(_move_channels_last(values, axes, path), path, dataset.BitsStored)
    if dataset.PhotometricInterpretation == 'MONOCHROME1':
        decoded = _invert(decoded)
    slope = float(dataset.get('RescaleSlope', 1))
    intercept = float(dataset.get('RescaleIntercept', 0))
    if (slope, intercept) == (1, 0):
        return decoded
    low, high = sorted(slope * end + intercept for end in (decoded.low, decoded.high))
    return DecodedImage(slope * decoded.values.astype(np.float64) + intercept, low, high)


def _move_channels_last(values: np.ndarray, axes: str, path: str) -> np.ndarray:
    """Return (H, W) or (H, W, C), with whatever axis is neither height nor width as channels."""
    others = [n for n, axis in enumerate(axes) if axis not in 'YX']
    if len(others) > 1 or values.ndim - len(others) != 2:
        raise OSError(f'holds an array of shape {values.shape} ({axes}), not one image: {path}')
    return np.moveaxis(values, others[0], -1) if others else values


def _finish(values: np.ndarray, path: str, num_bits: int | None = None) -> DecodedImage:
    """Add the axis of channels, and the range that the kind of number has."""
    if values.ndim == 2:
        values = values[:, :, None]
    if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in 'buif':
        raise OSError(f'holds {values.dtype} of shape {values.shape}, not an image: {path}')
    if values.dtype.kind == 'b':
        return DecodedImage(values.astype(np.uint8), 0, 1)
    if values.dtype.kind == 'f':
        return DecodedImage(values, None, None)
    num_bits = num_bits or 8 * values.dtype.itemsize
    if values.dtype.kind == 'u':
        return DecodedImage(values, 0, 2**num_bits - 1)
    return DecodedImage(values, -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)


def _invert(decoded: DecodedImage) -> DecodedImage:
    """Make the values grow with brightness where the file has the smallest as white."""
    values, low, high = decoded
    if high is None:
        return decoded
    return decoded._replace(values=(low + high - values.astype(np.int64)).astype(values.dtype))


def _turn(values: np.ndarray, orientation: int) -> np.ndarray:
    """Mirror and turn as EXIF's and TIFF's orientation, 1 to 8, says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
