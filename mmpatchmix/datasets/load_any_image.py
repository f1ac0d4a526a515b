"""Load images of any depth and number of channels without losing either."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio

from mmpatchmix.datasets.decode_image import DecodedImage, decode_image
from mmpatchmix.registry import TRANSFORMS

# Endings of files that it reads.
EXTENSIONS = ('.tif', '.tiff', '.png', '.jpg', '.jpeg', '.bmp', '.webp', '.ppm', '.pgm')
EXTENSIONS += ('.npy', '.dcm')


class UnfitImageError(OSError):
    """A readable image is not what the config says."""


@TRANSFORMS.register_module()
class LoadAnyImage(LoadImageFromFile):
    """Load an image as float32 values from 0 to 255, whatever its depth.

    Reads TIFF (pages or planes are channels), NumPy's ``.npy`` (H x W or H x W x C), DICOM (in
    the units that its rescaling gives) and what OpenCV reads, 16 bits and transparency
    included. Nothing is cut, clipped or converted: an image that does not fit is refused.

    **Required keys**: ``img_path``.

    **Added keys**: ``img``, a float32 array of shape (H, W, C), colours in the order red, green,
    blue; ``img_shape`` and ``ori_shape``, (H, W). On the way to 0-255 every value of up to 24
    bits stays different from every other.

    Args:
        channels: Of every image, at least 1.
        value_range: Which values become 0 and 255.

            - ``(low, high)`` or ``'low,high'``: an image with values outside is refused.
            - ``'dtype'``: what the kind of number can hold, such as 0 to 65535, or what the
              file says, such as 12 bits.
            - ``('percentile', low, high)`` or ``'percentile,low,high'``: those percentiles of
              each channel of each image. Only here values beyond are clipped.
        backend_args: As in mmcv's ``LoadImageFromFile``.

    Raises:
        ValueError: If an argument is out of its range, or a file needs a package that is not
            installed.
        OSError: If a file cannot be read, or does not fit. ``mmpatchmix.ImageFolder`` skips and
            counts it.
    """

    def __init__(
        self,
        channels: int = 3,
        value_range: str | Sequence = 'dtype',
        backend_args: dict | None = None,
    ) -> None:
        super().__init__(color_type='unchanged', backend_args=backend_args)
        if not isinstance(channels, int) or channels < 1:
            raise ValueError(f'LoadAnyImage: channels must be at least 1, got {channels!r}')
        self.channels = channels
        self.kind, self.low, self.high = parse_value_range(value_range)

    def transform(self, results: dict) -> dict:
        """Load ``results['img_path']``; see the class."""
        path = results['img_path']
        decoded = decode_image(fileio.get(path, backend_args=self.backend_args), path)
        try:
            img = self.scale(decoded)
        except UnfitImageError as error:
            raise UnfitImageError(f'{error}: {path}') from None
        shape = img.shape[:2]
        return results | {'img': img, 'img_shape': shape, 'ori_shape': shape}

    def scale(self, decoded: DecodedImage) -> np.ndarray:
        """Map the values of an image to 0 to 255, (H, W, C) float32.

        Raises:
            UnfitImageError: If the image is not what the settings say.
        """
        values = decoded.values
        self._check_kind(values)
        low, high = self._find_ends(decoded)
        # 16 bits and the distances between them are exact in float32.
        kind = np.float32 if values.dtype.itemsize <= 2 else np.float64
        scaled = np.subtract(values, low, dtype=kind)
        scaled *= np.asarray(255 / np.subtract(high, low, dtype=np.float64), kind)
        if self.kind == 'percentile':
            np.clip(scaled, 0, 255, out=scaled)
        return scaled.astype(np.float32, copy=False)

    def _check_kind(self, values: np.ndarray) -> None:
        height, width, num_channels = values.shape
        if num_channels != self.channels:
            raise UnfitImageError(
                f'{num_channels} channel{"" if num_channels == 1 else "s"} of {height} x {width} '
                f'pixels, the config says channels={self.channels}'
            )
        if values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise UnfitImageError('values that are no numbers (NaN or infinite)')

    def _find_ends(self, decoded: DecodedImage) -> tuple:
        """Return what becomes 0 and what becomes 255: numbers, or (C,) float64 each."""
        values = decoded.values
        if self.kind == 'dtype':
            if decoded.low is None:
                raise UnfitImageError(
                    f'{values.dtype} values, which have no range of their own, and the config '
                    "says value_range='dtype'; (low, high) says which values they span"
                )
            return decoded.low, decoded.high
        if self.kind == 'percentile':
            lows, highs = np.percentile(values, (self.low, self.high), axis=(0, 1))
            for channel in np.flatnonzero(lows == highs):
                raise UnfitImageError(
                    f'percentiles {self.low:g} and {self.high:g} of channel {channel} are both '
                    f'{lows[channel]:g}: nothing to spread'
                )
            return lows, highs
        lowest, highest = values.min(), values.max()
        if lowest < self.low or highest > self.high:
            raise UnfitImageError(
                f'values from {lowest:g} to {highest:g}, the config says '
                f'value_range=({self.low:g}, {self.high:g})'
            )
        return self.low, self.high

    def __repr__(self) -> str:
        settings = ', '.join(
            f'{name}={getattr(self, name)!r}' for name in ('channels', 'kind', 'low', 'high')
        )
        return f'{type(self).__name__}({settings})'


def parse_value_range(value_range: str | Sequence) -> tuple[str, float | None, float | None]:
    """Return 'dtype', 'given' or 'percentile', and the two ends, if any.

    Args:
        value_range: As in :class:`LoadAnyImage`.

    Raises:
        ValueError: If it is none of the three.
    """
    parts = value_range.split(',') if isinstance(value_range, str) else list(value_range)
    if parts == ['dtype']:
        return 'dtype', None, None
    kind = 'given'
    if parts and isinstance(parts[0], str) and parts[0].strip() == 'percentile':
        kind, parts = 'percentile', parts[1:]
    try:
        low, high = map(float, parts)
        is_good = low < high and (kind == 'given' or (low >= 0 and high <= 100))
    except (TypeError, ValueError):
        is_good = False
    if not is_good:
        raise ValueError(
            "value_range must be (low, high), 'dtype', or ('percentile', low, high) with "
            f'low < high; got {value_range!r}'
        )
    return kind, low, high
