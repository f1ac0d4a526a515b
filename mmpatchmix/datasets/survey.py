"""Read a sample of one's images: what they are, and their mean and standard deviation."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from mmengine import fileio

from mmpatchmix.datasets.decode_image import DecodedImage, decode_image
from mmpatchmix.datasets.load_any_image import UnfitImageError

NUM_SAMPLED = 300


@dataclass
class Survey:
    """What a sample of images holds.

    Attributes:
        num_read: Images that could be read.
        kinds: Their numbers by (channels, dtype).
        smallest: (height, width) of the one with the fewest pixels.
        largest: (height, width) of the one with the most.
        low: Smallest value in any of them.
        high: Largest value in any of them.
        damaged: Path and reason of those that could not be read.
        unfit: Path and reason of those that are not what the config says.
        sums: Per channel the sum over images of their mean value, and of their mean square.
        num_fit: Images that are in ``sums``.
    """

    num_read: int = 0
    kinds: Counter = field(default_factory=Counter)
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)
    low: float = math.inf
    high: float = -math.inf
    damaged: list[tuple[str, str]] = field(default_factory=list)
    unfit: list[tuple[str, str]] = field(default_factory=list)
    sums: np.ndarray | float = 0.0  # (2, C)
    num_fit: int = 0

    def add(self, decoded: DecodedImage) -> None:
        """Count an image that was read."""
        values = decoded.values
        self.num_read += 1
        self.kinds[values.shape[2], values.dtype.name] += 1
        size = values.shape[:2]
        if self.num_read == 1 or math.prod(size) < math.prod(self.smallest):
            self.smallest = size
        if math.prod(size) > math.prod(self.largest):
            self.largest = size
        self.low = min(self.low, float(np.nanmin(values)))
        self.high = max(self.high, float(np.nanmax(values)))

    def add_values(self, img: np.ndarray) -> None:
        """Count the values of an image, (H, W, C), as they reach the network."""
        values = img.astype(np.float64)
        self.sums = self.sums + np.stack([values.mean((0, 1)), (values**2).mean((0, 1))])
        self.num_fit += 1

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel on the scale 0-255.

        Every image counts alike, whatever its size, as its crops do.

        Raises:
            ValueError: If no image fits, or a channel has the same value everywhere.
        """
        if not self.num_fit:
            path, reason = (self.unfit or self.damaged or [('', 'there is none')])[0]
            raise ValueError(f'none of the sampled images can be measured: {path} ({reason})')
        mean, square = self.sums / self.num_fit
        std = np.sqrt(np.maximum(square - mean**2, 0))
        if not (std > 1e-6 * np.maximum(mean, 1)).all():
            raise ValueError(
                f'channel {int(std.argmin())} of the sampled images has one value everywhere: '
                'there is nothing to learn from'
            )
        return [_round(value) for value in mean], [_round(value) for value in std]


def survey_images(
    paths: Sequence[str],
    scale: Callable[[DecodedImage], np.ndarray] | None = None,
    seconds: float = math.inf,
    show: Callable[[Iterable], Iterable] = iter,
) -> Survey:
    """Read images.

    Args:
        paths: Of the files.
        scale: ``LoadAnyImage.scale`` or :func:`as_rgb8`; None measures no values.
        seconds: Read no further one after this time.
        show: Wraps the loop to show its progress.
    """
    survey, end = Survey(), time.monotonic() + seconds
    for path in show(paths):
        if survey.num_read and time.monotonic() > end:
            break
        try:
            decoded = decode_image(fileio.get(path), path)
        except OSError as error:
            survey.damaged.append((path, str(error).replace(f': {path}', '')))
            continue
        survey.add(decoded)
        try:
            if scale is not None:
                survey.add_values(scale(decoded))
        except UnfitImageError as error:
            survey.unfit.append((path, str(error)))
    return survey


def sample_paths(dataset, num: int) -> list[str]:
    """Return paths of up to ``num`` images, evenly spread over a data set that has such."""
    num = min(num, len(dataset))
    return [dataset.get_data_info(n * len(dataset) // num)['img_path'] for n in range(num)]


def as_rgb8(decoded: DecodedImage) -> np.ndarray:
    """Return what ``LoadImageFromFile`` makes of an image, but in the order red, green, blue.

    Raises:
        UnfitImageError: If it makes nothing of it that can be said here.
    """
    values = decoded.values
    if values.dtype == np.uint16:
        values = values >> 8
    if values.dtype not in (np.uint8, np.uint16) or values.shape[2] not in (1, 3, 4):
        raise UnfitImageError(
            f'{values.dtype} of {values.shape[2]} channels needs mmpatchmix.LoadAnyImage'
        )
    return np.repeat(values, 3, 2) if values.shape[2] == 1 else values[:, :, :3]


def _round(value: float) -> float:
    """Round to two digits after the point, or to four in all where there are fewer."""
    return round(float(value), max(2, 3 - math.floor(math.log10(abs(value)))) if value else 2)
