"""Read a sample of images: sizes, types, range of values, mean and standard deviation."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from mmengine import fileio

from mmpatchmix.datasets.decode_image import DecodedImage, UnfitImageError, decode_image
from mmpatchmix.datasets.image_list import is_special_file

NUM_SAMPLED = 300


@dataclass
class Survey:
    """Statistics of a sample of images."""

    kinds: Counter = field(default_factory=Counter)  # number by (channels, dtype)
    smallest: tuple[int, int] = (0, 0)  # (height, width)
    largest: tuple[int, int] = (0, 0)
    low: float = math.inf  # of all values
    high: float = -math.inf
    damaged: list[tuple[str, str]] = field(default_factory=list)  # path and reason
    unfit: list[tuple[str, str]] = field(default_factory=list)  # refused by ``scale``
    sums: np.ndarray | float = 0.0  # (2, C) of the means and mean squares of fitting images
    num_fit: int = 0

    @property
    def num_read(self) -> int:
        """Number of images that could be read."""
        return self.kinds.total()

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation per channel; images of all sizes weigh the same."""
        if not self.num_fit:
            path, reason = (self.unfit or self.damaged or [('', 'there is none')])[0]
            raise ValueError(f'none of the sampled images can be measured: {path} ({reason})')
        mean, square = self.sums / self.num_fit
        std = np.sqrt(np.maximum(square - mean**2, 0))
        if not (std > 1e-6 * np.maximum(mean, 1)).all():
            raise ValueError(f'channel {int(std.argmin())} of the sampled images is constant')
        return [_round(value) for value in mean], [_round(value) for value in std]


def survey_images(
    paths: Sequence[str],
    scale: Callable[[DecodedImage], np.ndarray] | None = None,
    seconds: float = math.inf,
    show: Callable[[Iterable], Iterable] = iter,
) -> Survey:
    """Read images and collect their statistics.

    ``scale`` (``LoadAnyImage.scale`` or :func:`as_rgb8`) adds mean and standard deviation. After
    ``seconds`` no further image is read. ``show`` wraps the loop to show its progress.
    """
    survey, end = Survey(), time.monotonic() + seconds
    for path in show(paths):
        if survey.num_read and time.monotonic() > end:
            break
        try:
            if is_special_file(path):
                raise OSError('a pipe, socket or device')
            content = fileio.get(path)
            decoded = decode_image(content, path)
        except OSError as error:
            survey.damaged.append((path, str(error).replace(f': {path}', '')))
            continue
        values = decoded.values  # (H, W, C)
        size = values.shape[:2]
        survey.smallest = min(survey.smallest if survey.num_read else size, size, key=math.prod)
        survey.largest = max(survey.largest, size, key=math.prod)
        survey.kinds[values.shape[2], values.dtype.name] += 1
        if (finite := values[np.isfinite(values)]).size:
            survey.low = min(survey.low, float(finite.min()))
            survey.high = max(survey.high, float(finite.max()))
        if scale is None:
            continue
        try:
            img = as_rgb8(decoded, content) if scale is as_rgb8 else scale(decoded)
            img = img.astype(np.float64)
        except UnfitImageError as error:
            survey.unfit.append((path, str(error)))
            continue
        survey.sums = survey.sums + np.stack([img.mean((0, 1)), (img**2).mean((0, 1))])
        survey.num_fit += 1
    return survey


def sample_paths(dataset, num: int) -> list[str]:
    """Return paths of up to ``num`` images, evenly spread over a data set with ``img_path``."""
    num = min(num, len(dataset))
    return [dataset.get_data_info(n * len(dataset) // num)['img_path'] for n in range(num)]


def as_rgb8(decoded: DecodedImage, content: bytes) -> np.ndarray:
    """Return 8-bit RGB as ``LoadImageFromFile`` reads it; UnfitImageError if it drops something."""
    content, dtype = np.frombuffer(content, np.uint8), decoded.values.dtype
    num_channels = decoded.values.shape[2]
    flags = (cv2.IMREAD_COLOR, cv2.IMREAD_UNCHANGED) if dtype in (np.uint8, np.uint16) else ()
    rgb, *raw = [cv2.imdecode(content, flag) for flag in flags] or [None]
    if rgb is None or math.prod(raw[0].shape[2:]) != num_channels:
        kind = f'{dtype} of {num_channels} channels or pages'
        raise UnfitImageError(f'{kind} needs mmpatchmix.LoadAnyImage')
    return rgb[:, :, ::-1]


def _round(value: float) -> float:
    """Round to four significant digits, and to at least two decimal places."""
    return round(float(value), max(2, 3 - math.floor(math.log10(abs(value)))) if value else 2)
