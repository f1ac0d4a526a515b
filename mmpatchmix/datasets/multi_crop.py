"""What the workers do per image: draw crops, resize them to uint8, pack them.

Everything photometric, the flip included, runs batched on the training device
(:class:`mmpatchmix.models.photometric.PhotometricAugment`).
"""

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmpretrain.datasets.transforms import PackInputs
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2.functional import resized_crop

from mmpatchmix.registry import TRANSFORMS


@TRANSFORMS.register_module()
class MultiCrop(BaseTransform):
    """Two global crops and any number of local crops of one image, as uint8.

    The boxes are torchvision's (``RandomResizedCrop.get_params``), the resize is
    its antialiased bicubic on uint8 tensors, straight from the decoded array.

    **Required keys**: ``img``, a uint8 array of shape (H, W, 3), any channel order.

    **Added keys**: ``view_1`` and ``view_2``, uint8 tensors of shape
    (3, global_size, global_size); ``local_views``, a uint8 tensor of shape
    (num_local, 3, local_size, local_size), only when ``num_local > 0``.

    Args:
        global_size (int): Side of the two global crops, in pixels.
        global_scale (tuple[float, float]): Smallest and largest share of the image's
            area that a global crop covers.
        local_size (int): Side of the local crops, in pixels.
        local_scale (tuple[float, float]): The same share for local crops.
        num_local (int): Number of local crops.
        ratio (tuple[float, float]): Smallest and largest width / height of a crop box.

    Raises:
        ValueError: If an argument is out of its range, or an image is not (H, W, 3) uint8.
    """

    def __init__(
        self,
        global_size: int = 224,
        global_scale: tuple[float, float] = (0.35, 1.0),
        local_size: int = 96,
        local_scale: tuple[float, float] = (0.05, 0.35),
        num_local: int = 0,
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        for name, size in (('global_size', global_size), ('local_size', local_size)):
            if not isinstance(size, int) or size < 1:
                raise ValueError(f'MultiCrop: {name} must be a whole number >= 1, got {size!r}')
        for name, scale in (('global_scale', global_scale), ('local_scale', local_scale)):
            if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(
                    f'MultiCrop: {name} must be (smallest, largest) share of the area with '
                    f'0 < smallest <= largest <= 1, got {scale!r}'
                )
        if not isinstance(num_local, int) or num_local < 0:
            raise ValueError(f'MultiCrop: num_local must be a whole number >= 0, got {num_local!r}')
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(
                f'MultiCrop: ratio must be (smallest, largest) width / height with '
                f'0 < smallest <= largest, got {ratio!r}'
            )
        self.global_size = global_size
        self.global_scale = tuple(global_scale)
        self.local_size = local_size
        self.local_scale = tuple(local_scale)
        self.num_local = num_local
        self.ratio = tuple(ratio)

    def transform(self, results: dict) -> dict:
        """Add the crops of ``results['img']``; see the class."""
        img = results['img']
        if not isinstance(img, np.ndarray) or img.ndim != 3 or img.shape[2] != 3:
            raise ValueError(
                f'MultiCrop needs a (H, W, 3) image, got {_describe(img)}'
                f'{_origin(results)}: load with color_type="color"'
            )
        if img.dtype != np.uint8:
            raise ValueError(
                f'MultiCrop needs a uint8 image, got {_describe(img)}{_origin(results)}: '
                'put it before anything that converts to float'
            )
        # A view, not a copy: torchvision's fast uint8 resize wants channels last.
        image = torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1)  # (3, H, W)
        results['view_1'] = self._crop(image, self.global_size, self.global_scale)
        results['view_2'] = self._crop(image, self.global_size, self.global_scale)
        if self.num_local:
            size = self.local_size
            local_views = torch.empty(self.num_local, 3, size, size, dtype=torch.uint8)
            for view in local_views:  # (3, h, w), each written in place
                view.copy_(self._crop(image, size, self.local_scale))
            results['local_views'] = local_views
        return results

    def _crop(self, image: Tensor, size: int, scale: tuple[float, float]) -> Tensor:
        top, left, height, width = RandomResizedCrop.get_params(image, scale, self.ratio)
        return resized_crop(
            image,
            top,
            left,
            height,
            width,
            [size, size],
            interpolation=InterpolationMode.BICUBIC,
            antialias=True,
        )  # (3, size, size)

    def __repr__(self) -> str:
        return (
            f'MultiCrop(global_size={self.global_size}, global_scale={self.global_scale}, '
            f'local_size={self.local_size}, local_scale={self.local_scale}, '
            f'num_local={self.num_local}, ratio={self.ratio})'
        )


@TRANSFORMS.register_module()
class PackViews(PackInputs):
    """Pack the crops of :class:`MultiCrop` into the batch layout of PatchMix.

    Gives ``dict(inputs=dict(view_1=..., view_2=...[, local_views=...]),
    data_samples=DataSample)``. mmengine's ``default_collate`` makes of N of them
    ``view_1`` and ``view_2`` of shape (N, 3, H, W), ``local_views`` of shape
    (N, L, 3, h, w), all uint8, and a list of N data samples.

    Args:
        algorithm_keys (Sequence[str]): More keys to store in the data sample.
        meta_keys (Sequence[str]): Meta information to keep, when present. ``gt_label``
            is kept besides them, when present.
    """

    VIEW_KEYS = ('view_1', 'view_2', 'local_views')

    def __init__(self, algorithm_keys=(), meta_keys=('sample_idx', 'img_path')) -> None:
        super().__init__(algorithm_keys=algorithm_keys, meta_keys=meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one sample; see the class."""
        missing = [key for key in ('view_1', 'view_2') if key not in results]
        if missing:
            raise ValueError(
                f'PackViews found no {" and no ".join(missing)}: put '
                "dict(type='mmpatchmix.MultiCrop') before it in the pipeline"
            )
        # The parent formats one image; without it, it still makes the data sample.
        rest = {key: value for key, value in results.items() if key != self.input_key}
        packed = super().transform(rest)
        packed['inputs'] = {key: results[key] for key in self.VIEW_KEYS if key in results}
        return packed


def _describe(img) -> str:
    if isinstance(img, np.ndarray):
        return f'{img.dtype} of shape {img.shape}'
    return f'a {type(img).__name__}'


def _origin(results: dict) -> str:
    path = results.get('img_path')
    return f' from {path}' if path else ''
