"""What the workers do per image: draw crops and resize them.

Everything photometric, the flip included, happens in the data preprocessor
(:class:`mmpatchmix.models.augment.ViewAugment`).
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import BaseTransform, LoadImageFromFile
from mmengine import fileio
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile

from mmpatchmix.datasets.crop_boxes import Box, choose_reduction, draw_box, reduce_box
from mmpatchmix.registry import TRANSFORMS

SIZE = 'a whole number >= 1, or two of them: (height, width)'

# What torchvision's antialiased bicubic resize of uint8 tensors ends in. Its own way there
# copies, dispatches and allocates, which for ten small crops takes a fifth of the time.
_resize = torch.ops.aten._upsample_bicubic2d_aa.out


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Two global crops and any number of local crops of one image.

    The boxes are torchvision's (``RandomResizedCrop.get_params``), the resize is
    its antialiased bicubic, straight from the decoded array into the crops,
    whose channels come last in memory.

    **Required keys**: ``img``, a uint8 array of shape (H, W, C), any channel order, or a
    float32 one of values from 0 to 255 (:class:`LoadAnyImage`).

    **Added keys**: ``view_1`` and ``view_2``, tensors of the same type and of shape
    (C, height, width); ``local_views``, likewise, of shape (num_local, C, height, width), only
    when ``num_local > 0``.

    Args:
        global_size: Side of the two global crops in pixels, or (height, width).
        global_scale: Smallest and largest share of the image's area that a global crop covers.
        local_size: Side of the local crops in pixels, or (height, width).
        local_scale: The same share for local crops.
        num_local: Number of local crops.
        ratio: Smallest and largest width / height of a crop box, as a multiple of the crop's
            own: (1, 1) never squeezes.

    Raises:
        ValueError: If an argument is out of its range, or an image is of another kind.
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
        area = 'two shares of the area, 0 < smallest <= largest <= 1'
        for name, value, is_good, wanted in (
            ('global_size', global_size, is_size(global_size), SIZE),
            ('local_size', local_size, is_size(local_size), SIZE),
            ('num_local', num_local, _is_whole(num_local, 0), 'a whole number >= 0'),
            ('global_scale', global_scale, _is_range(global_scale, 1), area),
            ('local_scale', local_scale, _is_range(local_scale, 1), area),
            ('ratio', ratio, _is_range(ratio), 'two width / height, 0 < smallest <= largest'),
        ):
            if not is_good:
                raise ValueError(f'{type(self).__name__}: {name} must be {wanted}; got {value!r}')
        self.global_size = global_size
        self.global_scale = tuple(global_scale)
        self.local_size = local_size
        self.local_scale = tuple(local_scale)
        self.num_local = num_local
        self.ratio = tuple(ratio)

    @property
    def crop_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each crop in pixels, in the order of :meth:`draw_boxes`."""
        return [to_pair(self.global_size)] * 2 + [to_pair(self.local_size)] * self.num_local

    def transform(self, results: dict) -> dict:
        """Add the crops of ``results['img']``; see the class."""
        img = results['img']
        check_image(type(self).__name__, img, results.get('img_path'))
        return results | self.cut(img, self.draw_boxes(*img.shape[:2]))

    def draw_boxes(self, height: int, width: int) -> list[Box]:
        """Draw the boxes of all crops, the two global ones first, from torch's generator.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
        """
        scales = [self.global_scale] * 2 + [self.local_scale] * self.num_local
        return [
            draw_box(height, width, scale, tuple(each * (w / h) for each in self.ratio))
            for scale, (h, w) in zip(scales, self.crop_sizes, strict=True)
        ]

    def cut(self, img: np.ndarray, boxes: Sequence[Box]) -> dict[str, torch.Tensor]:
        """Crop an image and resize the crops.

        Args:
            img: (H, W, C) uint8 or float32.
            boxes: As from :meth:`draw_boxes`.

        Returns:
            The added keys of the class.
        """
        # Views, not copies: the fast uint8 resize wants channels last on both sides.
        image = torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)[None]  # (1, C, H, W)
        size = to_pair(self.global_size)
        views = {name: _allocate(image, size) for name in ('view_1', 'view_2')}
        places = [views['view_1'][None], views['view_2'][None]]
        if self.num_local:
            views['local_views'] = _allocate(image, to_pair(self.local_size), self.num_local)
            places += views['local_views'].split(1)  # (1, C, h, w) each
        for place, (top, left, height, width) in zip(places, boxes, strict=True):
            crop = image[:, :, top : top + height, left : left + width]
            resize(crop, place)
        return views

    def __repr__(self) -> str:
        settings = ', '.join(f'{name}={value!r}' for name, value in vars(self).items())
        return f'{type(self).__name__}({settings})'


def _is_whole(value, smallest: int) -> bool:
    return isinstance(value, int) and value >= smallest


def is_size(value) -> bool:
    """Tell whether a value is a side in pixels, or a pair of them."""
    if isinstance(value, list | tuple):
        return len(value) == 2 and all(_is_whole(each, 1) for each in value)
    return _is_whole(value, 1)


def to_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width of a size as :class:`MultiCrop` takes it."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def resize(image: torch.Tensor, out: torch.Tensor) -> None:
    """Resize to the size of ``out``: antialiased bicubic, overshoot cut to 0 to 255.

    Args:
        image: (1, C, H, W) uint8 or float32, the channels last in memory.
        out: (1, C, h, w) of the same type, likewise; written to.
    """
    _resize(image, out.shape[-2:], False, out=out)
    if out.is_floating_point():
        out.clamp_(0, 255)  # eight bits do so by themselves


def _allocate(image: torch.Tensor, size: tuple[int, int], *num: int) -> torch.Tensor:
    """Return crops, (*num, C, *size), channels last in memory as in an image."""
    return image.new_empty(*num, *size, image.shape[1]).movedim(-1, -3)


def _is_range(pair, largest: float = float('inf')) -> bool:
    return len(pair) == 2 and 0 < pair[0] <= pair[1] <= largest


def check_image(owner: str, img, path: str | None) -> None:
    """Raise ValueError unless an image is (H, W, C) of uint8, or of float32 from 0 to 255.

    Args:
        owner: Name of the transform that asks.
        img: What its input holds.
        path: File of the image, if it has one.
    """
    is_array = isinstance(img, np.ndarray)
    if is_array and img.ndim == 3 and img.dtype in (np.uint8, np.float32):
        return
    found = f'{img.dtype} of shape {img.shape}' if is_array else f'a {type(img).__name__}'
    raise ValueError(
        f'{owner} needs a uint8 or float32 image of shape (H, W, C), got {found}'
        f'{f" from {path}" if path else ""}: load with mmpatchmix.LoadAnyImage, or with '
        'color_type="color"'
    )


JPEG_START = b'\xff\xd8\xff'

FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class JpegHeader(NamedTuple):
    """Size as displayed, and whether that is mirrored or turned from what is stored."""

    height: int
    width: int
    is_moved: bool


@TRANSFORMS.register_module()
class LoadMultiCrop(MultiCrop, LoadImageFromFile):
    """``LoadImageFromFile`` and :class:`MultiCrop` in one, so that large photos decode fast.

    The boxes are drawn first, from the size in the file's header. A JPEG is then decoded at
    1/2, 1/4 or 1/8 of its size where every crop still has at least as many pixels as it is
    resized to, in both directions. libjpeg does that in the inverse cosine transform; it skips
    the detail that the crops would have filtered out. Box edges go to the nearest pixel
    of the smaller image, which is half a pixel of the crop at most. Where nothing is reduced,
    as with other formats, the crops equal those of the two transforms, bit for bit; the boxes
    and the random numbers are the same in any case.

    **Required keys**: ``img_path``.

    **Added keys**: those of :class:`MultiCrop` (channels in BGR order), ``ori_shape`` (H, W)
    of the whole image. The decoded image itself is not kept.

    Args:
        reduced_decoding: Whether to decode at a reduced size where that is enough.
            Needs the 'cv2' backend; with others images are decoded whole.
        imdecode_backend: As in mmcv's ``LoadImageFromFile``.
        backend_args: As in mmcv's ``LoadImageFromFile``.
        **kwargs: As in :class:`MultiCrop`: ``global_size``, ...

    Raises:
        OSError: If a file cannot be read or decoded. ``mmpatchmix.ImageFolder`` skips it.
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        reduced_decoding: bool = True,
        imdecode_backend: str = 'cv2',
        backend_args: dict | None = None,
        **kwargs,
    ) -> None:
        LoadImageFromFile.__init__(
            self, imdecode_backend=imdecode_backend, backend_args=backend_args
        )
        MultiCrop.__init__(self, **kwargs)
        self.reduced_decoding = reduced_decoding

    def transform(self, results: dict) -> dict:
        """Read ``results['img_path']`` and add its crops; see the class."""
        path = results['img_path']
        content = fileio.get(path, backend_args=self.backend_args)
        if content is None:  # how LMDB says it
            raise OSError(f'there is no {path} in {self.backend_args}')
        reduce = self.reduced_decoding and self.imdecode_backend == 'cv2'
        header = read_jpeg_header(content) if reduce else None
        if header:
            height, width, is_moved = header
            boxes = self.draw_boxes(height, width)
            reduction = choose_reduction(boxes, self.crop_sizes)
            # libjpeg completes the last pixels at the right and at the bottom as stored. Where
            # they end up elsewhere, everything would be moved by a part of a pixel.
            if is_moved and (height % reduction or width % reduction):
                reduction = 1
            img = self._decode(content, path, FLAGS[reduction])
            if img.shape == (-(-height // reduction), -(-width // reduction), 3):
                boxes = [reduce_box(box, reduction) for box in boxes]
                return results | self.cut(img, boxes) | {'ori_shape': (height, width)}
        # Nothing to reduce, or a header that tells another size than the decoder.
        img = self._decode(content, path, self.color_type)
        check_image(type(self).__name__, img, path)
        shape = img.shape[:2]
        return results | self.cut(img, self.draw_boxes(*shape)) | {'ori_shape': shape}

    def _decode(self, content: bytes, path: str, flag: int | str) -> np.ndarray:
        img = mmcv.imfrombytes(content, flag=flag, backend=self.imdecode_backend)
        if img is None:
            raise OSError(f'not an image, or an incomplete one: {path}')
        return img


def read_jpeg_header(content: bytes) -> JpegHeader | None:
    """Return the size and orientation of a JPEG without decoding it; None for other files.

    Args:
        content: The file, or its beginning up to the image data.
    """
    if not content.startswith(JPEG_START):
        return None
    try:
        # Image.open would try other formats first and warn of large images.
        header = JpegImageFile(io.BytesIO(content))
        orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever is wrong with the header, the decoder has the last word
        return None
    width, height = header.size
    if orientation in (5, 6, 7, 8):  # the row axis and the column axis change places
        height, width = width, height
    return JpegHeader(height, width, is_moved=orientation != 1)
