"""Decode an image file to a NumPy array without loss: all channels and bits, as displayed."""

import io
import logging
from contextlib import suppress
from typing import NamedTuple

import cv2
import numpy as np
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff', '.ppm', '.pgm')
ORIENTATION = ExifTags.Base.Orientation  # the same number in EXIF and TIFF
TIFF_STARTS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+')
NPY_START = b'\x93NUMPY'
# Pillow's readers by the first bytes. Image.open tries all formats and refuses large images.
HEADER_READERS = {b'\xff\xd8\xff': JpegImageFile, b'\x89PNG': PngImageFile, b'RIFF': WebPImageFile}
# TIFF's PhotometricInterpretation; YCbCr that is compressed as JPEG is converted by tifffile.
MINISWHITE, PALETTE, YCBCR, LAB, JPEGS = 0, 3, 6, (8, 9, 10), (6, 7)
INSTALL = 'pip install "mmpatchmix[images]"'


class UnfitImageError(OSError):
    """A readable file does not hold the kind of image that is needed."""


class MissingPackageError(ValueError):
    """A file needs a package that is not installed."""


class DecodedImage(NamedTuple):
    """(H, W, C) values as displayed, colours in RGB order, and the range of the file's type."""

    values: np.ndarray  # any integer or floating-point dtype
    low: float | None  # None for floating point
    high: float | None


def decode_image(content: bytes, path: str) -> DecodedImage:
    """Decode a TIFF, NumPy or DICOM file, or any format of OpenCV, by its first bytes.

    Raises:
        OSError: If the file is damaged, or holds a palette, or several frames (PNG, TIFF, WebP).
        ValueError: If a package is required that is not installed.
    """
    try:
        if content.startswith(TIFF_STARTS):
            return _decode_tiff(content)
        if content.startswith(NPY_START):
            return _add_range(np.load(io.BytesIO(content), allow_pickle=False))
        if content[128:132] == b'DICM':
            return _decode_dicom(content)
        return _decode_with_opencv(content)
    except (UnfitImageError, MissingPackageError) as error:
        raise type(error)(f'{error}: {path}') from None
    except Exception as error:  # the libraries have no common error for damaged files
        reason = f' ({error})' if str(error) else ''
        raise OSError(f'not an image, or an incomplete one: {path}{reason}') from error


def _decode_with_opencv(content: bytes) -> DecodedImage:
    reader = next((r for start, r in HEADER_READERS.items() if content.startswith(start)), None)
    orientation = 1
    if reader is not None:
        header = reader(io.BytesIO(content))
        if reader is PngImageFile and b'eXIf' in content:
            header.load()  # it may follow the pixels
        orientation = read_orientation(header)
        num_frames = getattr(header, 'n_frames', 1)
        if num_frames > 1 and reader is not JpegImageFile:  # further frames of a JPEG are previews
            raise UnfitImageError(f'holds {num_frames} frames, not one image')
    values = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise OSError
    if values.ndim == 3 and values.shape[2] in (3, 4):  # BGR and BGRA
        values = values[:, :, [2, 1, 0, 3][: values.shape[2]]]
    return _add_range(rotate(values, orientation))


def _decode_tiff(content: bytes) -> DecodedImage:
    import tifffile

    logging.getLogger('tifffile').setLevel(logging.CRITICAL)  # its errors are raised as well
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        pages = [(each, each.keyframe) for each in file.series]
        images = [each for each, page in pages if not (page.is_reduced or page.is_mask)]
        if len(images) != 1:
            shapes = ', '.join(str(each.shape) for each in images)
            raise UnfitImageError(f'holds {len(images)} images of shapes {shapes}, not one')
        (image,) = images
        page = image.keyframe
        others = (PALETTE, *LAB) if page.compression in JPEGS else (PALETTE, YCBCR, *LAB)
        if page.photometric in others:
            raise UnfitImageError(f'holds {page.photometric.name.lower()}, not RGB: convert it')
        # tifffile reads zeros beyond the end of the file.
        ends = (np.add(each.dataoffsets, each.databytecounts).max() for each in image.pages)
        if max(ends) > len(content):
            raise OSError('it ends too early')
        try:
            values = image.asarray()
        except ValueError as error:
            if 'imagecodecs' not in str(error):
                raise
            raise MissingPackageError(
                f'TIFF with {page.compression.name} compression needs imagecodecs ({INSTALL})'
            ) from error
        values = rotate(_channels_last(values, image.axes), page.tags.valueof(ORIENTATION, 1))
        decoded = _add_range(values, page.bitspersample)
        return _invert(decoded) if page.photometric == MINISWHITE else decoded


def _decode_dicom(content: bytes) -> DecodedImage:
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise MissingPackageError(f'DICOM needs pydicom ({INSTALL})') from error
    dataset = pydicom.dcmread(io.BytesIO(content))
    if dataset.PhotometricInterpretation == 'PALETTE COLOR' or 'ModalityLUTSequence' in dataset:
        raise UnfitImageError('holds indices of a lookup table, not values')
    groups = (dataset.get(f'{kind}FunctionalGroupsSequence') for kind in ('Shared', 'PerFrame'))
    if any('PixelValueTransformationSequence' in each for group in groups for each in group or ()):
        raise UnfitImageError('rescales its values by frame (an enhanced DICOM)')
    is_movie = int(dataset.get('NumberOfFrames') or 1) > 1
    axes = f'{"Q" * is_movie}YX{"S" * (dataset.SamplesPerPixel > 1)}'
    decoded = _add_range(_channels_last(pixel_array(dataset), axes), dataset.BitsStored)  # RGB
    slope = float(dataset.get('RescaleSlope', 1))
    intercept = float(dataset.get('RescaleIntercept', 0))
    if (slope, intercept) == (1, 0):  # else inverted for display only
        return _invert(decoded) if dataset.PhotometricInterpretation == 'MONOCHROME1' else decoded
    low, high = sorted(slope * end + intercept for end in (decoded.low, decoded.high))
    return DecodedImage(slope * decoded.values.astype(np.float64) + intercept, low, high)


def _channels_last(values: np.ndarray, axes: str) -> np.ndarray:
    """Return (H, W) or (H, W, C): an axis other than height (Y) and width (X) holds channels."""
    others = [n for n, axis in enumerate(axes) if axis not in 'YX']
    if len(others) > 1 or values.ndim - len(others) != 2:
        raise UnfitImageError(f'holds an array of shape {values.shape} ({axes}), not one image')
    return np.moveaxis(values, others[0], -1) if others else values


def _add_range(values: np.ndarray, num_bits: int | None = None) -> DecodedImage:
    """Check the shape, add a missing channel axis, and return the range of the type as well."""
    if values.ndim == 2:
        values = values[:, :, None]
    kind = values.dtype.kind
    if values.ndim != 3 or 0 in values.shape or kind not in 'buif':
        raise UnfitImageError(f'holds {values.dtype} of shape {values.shape}, not an image')
    if kind == 'b':
        return DecodedImage(values.astype(np.uint8), 0, 1)
    if kind == 'f':
        return DecodedImage(values, None, None)
    num_values = 2 ** (num_bits or 8 * values.dtype.itemsize)
    low = 0 if kind == 'u' else -num_values // 2
    return DecodedImage(values, low, low + num_values - 1)


def _invert(decoded: DecodedImage) -> DecodedImage:
    """Make larger values brighter in a file whose smallest value is white."""
    values, low, high = decoded
    if high is not None:
        values = (low + high - values.astype(np.int64)).astype(values.dtype)
    return decoded._replace(values=values)


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
