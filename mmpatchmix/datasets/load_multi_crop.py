"""Decode as much of a JPEG's resolution as its crops need, and cut them."""

import io
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmengine import fileio
from PIL import ExifTags
from PIL.JpegImagePlugin import JpegImageFile

from mmpatchmix.datasets.crop_boxes import choose_reduction, reduce_box
from mmpatchmix.datasets.multi_crop import MultiCrop, check_image
from mmpatchmix.registry import TRANSFORMS

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
