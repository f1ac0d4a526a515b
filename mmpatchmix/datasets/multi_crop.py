"""Multi-crop in the workers: ``MultiCrop``, ``LoadMultiCrop``, and the boxes of random crops."""

import io
import math
from collections import namedtuple
from collections.abc import Sequence
from functools import cache

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from PIL.JpegImagePlugin import JpegImageFile

from mmpatchmix.datasets.decode_image import read_orientation
from mmpatchmix.registry import TRANSFORMS

NUM_TRIES = 10  # torchvision takes the centre after as many boxes that do not fit
DECODE_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}

Box = namedtuple('Box', ('top', 'left', 'height', 'width'))  # in pixels

# The kernel of torchvision's antialiased bicubic resize. torchvision's wrapper adds a fifth to the
# time of ten small crops.
_resize = torch.ops.aten._upsample_bicubic2d_aa.out


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Cut two global crops and any number of local crops out of an image.

    The boxes are those of torchvision's ``RandomResizedCrop``; the resize is its antialiased
    bicubic. Crops have channels last in memory.

    **Required keys**: ``img``, (H, W, C) uint8, any channel order, or float32 from 0 to 255
    (:class:`LoadAnyImage`). **Added keys**: ``view_1`` and ``view_2``, tensors of the same dtype,
    (C, height, width); with ``num_local > 0`` also ``local_views``, (num_local, C, height, width).

    Args:
        global_size, local_size: Side of these crops in pixels, or (height, width).
        global_scale, local_scale: Smallest and largest share of the image's area that they cover.
        num_local: Number of local crops.
        ratio: Smallest and largest width / height of a box, relative to that of the crop: (1, 1)
            keeps proportions. With a scale of (1, 1) the crop is then the whole image, or the
            largest part in its middle that has the proportions of the crop.

    Raises:
        ValueError: If an argument is out of range, or the image has another dtype or shape.
    """

    def __init__(
        self,
        global_size: int | Sequence = 224,
        global_scale: tuple[float, float] = (0.35, 1.0),
        local_size: int | Sequence = 96,
        local_scale: tuple[float, float] = (0.05, 0.35),
        num_local: int = 0,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        owner = type(self).__name__
        self.global_size = to_pair(f'{owner}: global_size', global_size)
        self.local_size = to_pair(f'{owner}: local_size', local_size)
        self.global_scale = _to_range(f'{owner}: global_scale', global_scale, 1)
        self.local_scale = _to_range(f'{owner}: local_scale', local_scale, 1)
        self.ratio = _to_range(f'{owner}: ratio', ratio)
        if not isinstance(num_local, int) or num_local < 0:
            raise ValueError(f'{owner}: num_local must be a whole number >= 0; got {num_local!r}')
        self.num_local = num_local

    @property
    def crop_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each crop in pixels, in the order of :meth:`draw_boxes`."""
        return [self.global_size] * 2 + [self.local_size] * self.num_local

    def transform(self, results: dict) -> dict:
        """Add the crops of ``results['img']``."""
        image = to_tensor(type(self).__name__, results['img'], results.get('img_path'))
        return results | self.cut(image, self.draw_boxes(*image.shape[2:]))

    def draw_boxes(self, height: int, width: int) -> list[Box]:
        """Draw a box for each crop of an image, the global ones first, from torch's generator."""
        scales = [self.global_scale] * 2 + [self.local_scale] * self.num_local
        return [
            draw_box(height, width, scale, tuple(each * (w / h) for each in self.ratio))
            for scale, (h, w) in zip(scales, self.crop_sizes, strict=True)
        ]

    def cut(self, image: torch.Tensor, boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        """Cut boxes out of an image, (1, C, H, W), and resize them; returns the added keys."""
        views = {name: allocate(image, self.global_size) for name in ('view_1', 'view_2')}
        outs = [views['view_1'][None], views['view_2'][None]]
        if self.num_local:
            views['local_views'] = allocate(image, self.local_size, self.num_local)
            outs += views['local_views'].split(1)  # (1, C, h, w) each
        for out, (top, left, height, width) in zip(outs, boxes, strict=True):
            resize(image[:, :, top : top + height, left : left + width], out)
        return views

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


@TRANSFORMS.register_module()
class LoadMultiCrop(MultiCrop, LoadImageFromFile):
    """Load an image and cut crops out of it, with large JPEGs decoded at a reduced size.

    Boxes are drawn first, from the size in the file's header. A JPEG is then decoded at 1/2, 1/4
    or 1/8 of its size if every box still has at least the pixels of its crop in both directions.
    Box edges are rounded to pixels of the reduced image. Without reduction, and for other formats,
    crops equal those of ``LoadImageFromFile`` and :class:`MultiCrop` bit for bit. Boxes and random
    numbers always do.

    **Required keys**: ``img_path``. **Added keys**: those of :class:`MultiCrop`, channels in BGR
    order, and ``ori_shape``, (H, W) of the whole image. The decoded image is not kept.

    Args:
        reduced_decoding: Whether to reduce where possible. Only the 'cv2' backend can.
        imdecode_backend, backend_args: As in mmcv's ``LoadImageFromFile``.
        **kwargs: As in :class:`MultiCrop`.

    Raises:
        OSError: If a file cannot be read or decoded. ``mmpatchmix.ImageFolder`` skips it.
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        reduced_decoding: bool = True,
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        base = dict(imdecode_backend=imdecode_backend, backend_args=backend_args)
        LoadImageFromFile.__init__(self, **base)
        MultiCrop.__init__(self, **kwargs)
        self.reduced_decoding = reduced_decoding

    def transform(self, results: dict) -> dict:
        """Read ``results['img_path']`` and add its crops."""
        path = results['img_path']
        content = fileio.get(path, backend_args=self.backend_args)
        if content is None:  # a missing key of LMDB
            raise OSError(f'there is no {path} in {self.backend_args}')
        reduces = self.reduced_decoding and self.imdecode_backend == 'cv2'
        header = read_jpeg_header(content) if reduces else None
        if header:
            height, width, is_moved = header
            boxes = self.draw_boxes(height, width)
            reduction = choose_reduction(boxes, self.crop_sizes)
            # libjpeg pads at the right and at the bottom as stored. If the padding ends up at
            # another side, the reduced image is shifted by a fraction of a pixel.
            if is_moved and (height % reduction or width % reduction):
                reduction = 1
            image = self._decode(content, path, DECODE_FLAGS[reduction])
            if image.shape[2:] == (-(-height // reduction), -(-width // reduction)):
                boxes = [reduce_box(box, reduction) for box in boxes]
                return results | self.cut(image, boxes) | {'ori_shape': (height, width)}
        # Not reduced, or the header and the decoder disagree about the size.
        image = self._decode(content, path, self.color_type)
        shape = tuple(image.shape[2:])
        return results | self.cut(image, self.draw_boxes(*shape)) | {'ori_shape': shape}

    def _decode(self, content: bytes, path: str, flag: int | str) -> torch.Tensor:
        img = mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)
        if img is None:
            raise OSError(f'not an image, or an incomplete one: {path}')
        return to_tensor(type(self).__name__, img, path)


def read_jpeg_header(content: bytes) -> tuple[int, int, bool] | None:
    """Return height and width as displayed, and whether rotated or mirrored; None if unknown."""
    if not content.startswith(b'\xff\xd8\xff'):
        return None
    try:
        header = JpegImageFile(io.BytesIO(content))  # Image.open warns of large images
        orientation = read_orientation(header)
    except Exception:
        return None
    width, height = header.size
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    return height, width, orientation != 1


def draw_box(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """Draw the box of a random resized crop (arXiv 1409.4842, section 6), as torchvision does.

    Boxes and random numbers equal those of ``RandomResizedCrop.get_params``, which takes longer.
    """
    low, high = _log_ratio(ratio)
    number = torch.empty(1)
    for _ in range(NUM_TRIES):
        area = height * width * number.uniform_(*scale).item()
        aspect = number.uniform_(low, high).exp_().item()
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = torch.randint(height - box_height + 1, (1,)).item()
            left = torch.randint(width - box_width + 1, (1,)).item()
            return Box(top, left, box_height, box_width)
    box_width = min(width, round(height * ratio[1]))
    box_height = min(height, round(width / ratio[0]))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


@cache
def _log_ratio(ratio: tuple[float, float]) -> tuple[float, float]:
    return tuple(torch.tensor(ratio).log().tolist())  # float32, as in torchvision


def choose_reduction(boxes: Sequence[Box], sizes: Sequence[tuple[int, int]]) -> int:
    """Return the largest of 8, 4, 2 and 1 that leaves every box at least as large as its crop."""
    limit = min(
        min(box.height // height, box.width // width)
        for box, (height, width) in zip(boxes, sizes, strict=True)
    )
    return next((reduction for reduction in (8, 4, 2) if reduction <= limit), 1)


def reduce_box(box: Box, reduction: int) -> Box:
    """Map a box to an image decoded at ``1 / reduction`` of its size, edges rounded, halves up."""
    top, left, bottom, right = (
        (2 * edge + reduction) // (2 * reduction)
        for edge in (box.top, box.left, box.top + box.height, box.left + box.width)
    )
    return Box(top, left, bottom - top, right - left)


def to_pair(name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a size: a side in pixels, or a pair; ValueError for others."""
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side >= 1 for side in pair):
        raise ValueError(
            f'{name} must be a whole number >= 1, or two of them: (height, width); got {size!r}'
        )
    return pair


def _to_range(name: str, pair: Sequence[float], largest: float = float('inf')) -> tuple:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= largest:
        raise ValueError(f'{name} must be two numbers, 0 < low <= high <= {largest}; got {pair!r}')
    return tuple(pair)


def to_tensor(owner: str, img: np.ndarray, path: str | None = None) -> torch.Tensor:
    """Return a uint8 or float32 image, (H, W, C), as a tensor (1, C, H, W) of the same memory."""
    is_array = isinstance(img, np.ndarray)
    if is_array and img.ndim == 3 and img.dtype in (np.uint8, np.float32):
        return torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)[None]
    found = f'{img.dtype} of shape {img.shape}' if is_array else f'a {type(img).__name__}'
    raise ValueError(
        f'{owner} needs a uint8 or float32 image of shape (H, W, C), got {found}'
        f'{f" from {path}" if path else ""}: load with mmpatchmix.LoadAnyImage, or with '
        'color_type="color"'
    )


def allocate(image: torch.Tensor, size: tuple[int, int], *num: int) -> torch.Tensor:
    """Return an uninitialised tensor (*num, C, *size) like an image, channels last in memory."""
    return image.new_empty(*num, *size, image.shape[1]).movedim(-1, -3)


def resize(image: torch.Tensor, out: torch.Tensor) -> None:
    """Resize (1, C, H, W) into ``out``, (1, C, h, w), both channels last: antialiased bicubic.

    An image of the same size is copied.
    """
    if image.shape == out.shape:
        out.copy_(image)
        return
    _resize(image, out.shape[-2:], False, out=out)
    if out.is_floating_point():
        out.clamp_(0, 255)
