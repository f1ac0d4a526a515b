"""``LoadAnyImage``: load images of any bit depth and number of channels without loss."""

from collections.abc import Sequence

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio

from mmpatchmix.datasets import decode_image as decoding
from mmpatchmix.datasets.decode_image import DecodedImage, UnfitImageError, decode_image
from mmpatchmix.datasets.multi_crop import MultiCrop
from mmpatchmix.registry import TRANSFORMS

EXTENSIONS = (*decoding.EXTENSIONS, '.npy', '.dcm')  # of files that LoadAnyImage reads


@TRANSFORMS.register_module()
class LoadAnyImage(LoadImageFromFile):
    """Load an image of any bit depth and number of channels as float32 from 0 to 255.

    Reads TIFF (pages or planes are channels), ``.npy`` (H x W or H x W x C), DICOM (in rescaled
    units) and the formats of OpenCV, 16 bits and alpha included. An image with another number of
    channels or with values out of range is refused, not converted.

    **Required keys**: ``img_path``. **Added keys**: ``img``, (H, W, C) float32, colours in RGB
    order; ``img_shape`` and ``ori_shape``, (H, W). Values of up to 24 bits stay distinct.

    Args:
        channels: Number of channels of every image, at least 1.
        value_range: Values that become 0 and 255.

            - ``(low, high)`` or ``'low,high'``: an image with values outside is refused.
            - ``'dtype'``: the range of the file's type, such as 0 to 4095 for 12 bits.
            - ``('percentile', low, high)`` or ``'percentile,low,high'``: percentiles of each
              channel of each image. Values outside are clipped.
        backend_args: As in mmcv's ``LoadImageFromFile``.

    Raises:
        ValueError: If an argument is out of range, or a file needs a missing package.
        OSError: If a file cannot be read or is refused; ``mmpatchmix.ImageFolder`` skips it.
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
        """Load ``results['img_path']``."""
        path = results['img_path']
        decoded = decode_image(fileio.get(path, backend_args=self.backend_args), path)
        try:
            img = self.scale(decoded)
        except UnfitImageError as error:
            raise UnfitImageError(f'{error}: {path}') from None
        shape = img.shape[:2]
        return results | {'img': img, 'img_shape': shape, 'ori_shape': shape}

    def scale(self, decoded: DecodedImage) -> np.ndarray:
        """Scale values to 0-255, (H, W, C) float32; UnfitImageError if they do not fit."""
        values = decoded.values
        height, width, num_channels = values.shape
        if num_channels != self.channels:
            raise UnfitImageError(
                f'{num_channels} channel{"s" * (num_channels > 1)} of {height} x {width} pixels, '
                f'the config says channels={self.channels}'
            )
        if values.dtype.kind == 'f' and not np.isfinite(values).all():
            raise UnfitImageError('values that are NaN or infinite')
        low, high = self._find_range(decoded)
        # float32 is exact for 16 bits and their differences.
        dtype = np.float32 if values.dtype.itemsize <= 2 else np.float64
        scaled = np.subtract(values, low, dtype=dtype)
        scaled *= np.asarray(255 / np.subtract(high, low, dtype=np.float64), dtype)
        if self.kind == 'percentile':
            np.clip(scaled, 0, 255, out=scaled)
        return scaled.astype(np.float32, copy=False)

    def _find_range(self, decoded: DecodedImage) -> tuple:
        """Return the values that become 0 and 255: numbers, or (C,) float64 each."""
        values = decoded.values
        if self.kind == 'dtype':
            if decoded.low is None:
                raise UnfitImageError(
                    f"{values.dtype} values have no range for value_range='dtype'; set it to "
                    '(low, high)'
                )
            return decoded.low, decoded.high
        if self.kind == 'percentile':
            lows, highs = np.percentile(values, (self.low, self.high), axis=(0, 1))
            for channel in np.flatnonzero(lows == highs):
                raise UnfitImageError(
                    f'percentiles {self.low:g} and {self.high:g} of channel {channel} are both '
                    f'{lows[channel]:g}'
                )
            return lows, highs
        lowest, highest = values.min(), values.max()
        if lowest < self.low or highest > self.high:
            raise UnfitImageError(
                f'values from {lowest:g} to {highest:g}, the config says '
                f'value_range=({self.low:g}, {self.high:g})'
            )
        return self.low, self.high

    __repr__ = MultiCrop.__repr__


def parse_value_range(value_range: str | Sequence) -> tuple[str, float | None, float | None]:
    """Return 'dtype', 'given' or 'percentile', and the two ends, if any."""
    parts = value_range.split(',') if isinstance(value_range, str) else list(value_range)
    if parts == ['dtype']:
        return 'dtype', None, None
    kind = 'percentile' if str(*parts[:1]).strip() == 'percentile' else 'given'
    parts = parts[1:] if kind == 'percentile' else parts
    try:
        low, high = map(float, parts)
        if not (low < high and (kind == 'given' or 0 <= low < high <= 100)):
            raise ValueError
    except (TypeError, ValueError):
        raise ValueError(
            "value_range must be (low, high), 'dtype', or ('percentile', low, high) with "
            f'low < high; got {value_range!r}'
        ) from None
    return kind, low, high
