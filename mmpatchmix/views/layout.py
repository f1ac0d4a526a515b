"""All crops of an image in one buffer: one copy to collate, one transfer to the device."""

from collections.abc import Sequence

import numpy as np
import torch
from mmpretrain.datasets.transforms import PackInputs
from torch import Tensor

from mmpatchmix.registry import TRANSFORMS


def allocate_views(
    global_size: int, num_local: int = 0, local_size: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """An empty buffer for the crops of one image, and the crops as views of it.

    Args:
        global_size: Side of the two global crops, in pixels.
        num_local: Number of local crops.
        local_size: Side of the local crops, in pixels.

    Returns:
        tuple: The buffer, (B,) uint8, and the views as from :func:`unpack_views`.
    """
    num_values = 3 * (2 * global_size**2 + num_local * local_size**2)
    packed = torch.empty(num_values, dtype=torch.uint8)
    return packed, unpack_views(packed, (global_size, num_local, local_size))


def unpack_views(packed: Tensor, sizes: Tensor | Sequence[int]) -> dict[str, Tensor]:
    """The crops in a packed buffer, as views of it: nothing is copied.

    The buffer holds ``view_1``, ``view_2`` and the local crops, one after another, each
    with its channels last: as decoders write and resizing reads. The views have the usual
    shape, (C, H, W) at the end, and strides to match.

    Args:
        packed: (B,) of one image or (N, B) of a batch, contiguous, on any device.
        sizes: ``[global_size, num_local, local_size]``, or (N, 3) of them, all alike. On the
            CPU, so that reading them waits for no device.

    Returns:
        dict[str, Tensor]: ``view_1`` and ``view_2``, ([N,] 3, global_size, global_size), and
        ``local_views``, ([N,] num_local, 3, local_size, local_size), only when there are any.

    Raises:
        ValueError: If the images of a batch differ in sizes, or the sizes do not fit the
            buffer.
    """
    rows = np.asarray(sizes.cpu() if isinstance(sizes, Tensor) else sizes).reshape(-1, 3)
    if (rows != rows[0]).any():
        raise ValueError(
            'the images of a batch have crops of different sizes or numbers, '
            f'[global_size, num_local, local_size] = {np.unique(rows, axis=0).tolist()}: give '
            'them one mmpatchmix.MultiCrop'
        )
    global_size, num_local, local_size = rows[0].tolist()
    num_global = 3 * global_size**2
    num_values = 2 * num_global + 3 * num_local * local_size**2
    if packed.shape[-1] != num_values:
        raise ValueError(
            f'{num_local} crops of {local_size} and 2 of {global_size} pixels are {num_values} '
            f'values, but the packed views have {packed.shape[-1]}'
        )
    leading = packed.shape[:-1]

    def view(begin: int, end: int, *shape: int) -> Tensor:
        return packed[..., begin:end].view(*leading, *shape).movedim(-1, -3)

    views = {
        'view_1': view(0, num_global, global_size, global_size, 3),
        'view_2': view(num_global, 2 * num_global, global_size, global_size, 3),
    }
    if num_local:
        views['local_views'] = view(
            2 * num_global, num_values, num_local, local_size, local_size, 3
        )
    return views


@TRANSFORMS.register_module()
class PackViews(PackInputs):
    """Pack the crops of :class:`MultiCrop` into the batch layout of PatchMix.

    Gives ``dict(inputs=dict(packed=..., sizes=...), data_samples=DataSample)``:

    - ``packed``: (B,) uint8, see :func:`unpack_views`
    - ``sizes``: (3,) int64, ``[global_size, num_local, local_size]``

    mmengine's ``default_collate`` makes of N of them ``packed`` of shape (N, B), ``sizes``
    of shape (N, 3) and a list of N data samples. ``PatchMixDataPreprocessor`` takes it so.

    Args:
        algorithm_keys (Sequence[str]): More keys to store in the data sample.
        meta_keys (Sequence[str]): Meta information to keep, when present. ``gt_label``
            is kept besides them, when present.

    Raises:
        ValueError: If there are no crops, or they are not uint8 squares, the global ones
            of one size.
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
                "dict(type='mmpatchmix.LoadMultiCrop') or, where images are loaded already, "
                "dict(type='mmpatchmix.MultiCrop') before it in the pipeline"
            )
        views = {key: results[key] for key in self.VIEW_KEYS if key in results}
        sizes = _find_sizes(views)
        packed = results.get('packed')
        if packed is None or not _are_views_of(views, packed, sizes):
            packed, room = allocate_views(*sizes)
            for key, view in views.items():
                room[key].copy_(view)
        # The parent formats one image; without it, it still makes the data sample.
        rest = {key: value for key, value in results.items() if key != self.input_key}
        sample = super().transform(rest)
        sample['inputs'] = {'packed': packed, 'sizes': torch.tensor(sizes)}
        return sample


def _find_sizes(views: dict[str, Tensor]) -> tuple[int, int, int]:
    """``(global_size, num_local, local_size)`` of uint8 crops."""
    for key, view in views.items():
        if view.dtype != torch.uint8 or view.shape[-3] != 3 or view.shape[-2] != view.shape[-1]:
            raise ValueError(
                f'PackViews needs square uint8 crops of 3 channels, got {key} of '
                f'{view.dtype} and shape {tuple(view.shape)}'
            )
    first, second = views['view_1'].shape, views['view_2'].shape
    if first != second:
        raise ValueError(
            'PackViews needs global crops of one size, got view_1 of shape '
            f'{tuple(first)} and view_2 of shape {tuple(second)}'
        )
    if 'local_views' not in views:
        return first[-1], 0, 0
    return first[-1], len(views['local_views']), views['local_views'].shape[-1]


def _are_views_of(views: dict[str, Tensor], packed: Tensor, sizes: tuple[int, int, int]) -> bool:
    """Whether the crops are what lies in the buffer, at the places they belong to."""
    if len(packed) != 3 * (2 * sizes[0] ** 2 + sizes[1] * sizes[2] ** 2):
        return False
    places = unpack_views(packed, sizes)
    return all(
        view.data_ptr() == places[key].data_ptr() and view.stride() == places[key].stride()
        for key, view in views.items()
    )
