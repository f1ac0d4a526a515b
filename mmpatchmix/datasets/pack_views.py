"""The last step of the training pipeline: what of a sample goes into the batch, and how."""

from mmpretrain.datasets.transforms import PackInputs
from torch import Tensor, float32, uint8

from mmpatchmix.registry import TRANSFORMS

VIEWS = ('view_1', 'view_2', 'local_views')


@TRANSFORMS.register_module()
class PackViews(PackInputs):
    """Pack the crops of :class:`MultiCrop` into ``dict(inputs=..., data_samples=DataSample)``.

    ``inputs`` holds the crops by name, uint8 or float32, with their channels last, as decoders
    write them and the resize leaves them: collation then copies whole crops.

    - ``view_1``, ``view_2``: (H, W, C)
    - ``local_views``: (L, h, w, C), only where there are any

    Args:
        algorithm_keys: More keys to store in the data sample.
        meta_keys: Meta information to keep, where there is any. ``gt_label`` is kept
            besides, where there is one.

    Raises:
        ValueError: If crops are missing, are neither uint8 nor float32, or the global ones
            differ in size or number of channels.
    """

    def __init__(self, algorithm_keys=(), meta_keys=('sample_idx', 'img_path')) -> None:
        super().__init__(algorithm_keys=algorithm_keys, meta_keys=meta_keys)

    def transform(self, results: dict) -> dict:
        """Pack one sample; see the class."""
        views = {name: results[name] for name in VIEWS if name in results}
        _check_views(views)
        # The parent formats one image; without it, it still makes the data sample.
        rest = {key: value for key, value in results.items() if key != self.input_key}
        sample = super().transform(rest)
        sample['inputs'] = {name: view.movedim(-3, -1).contiguous() for name, view in views.items()}
        return sample


def channels_first(view: Tensor, num_channels: int = 3) -> Tensor:
    """Return crops as (..., C, H, W), without a copy.

    Args:
        view: (..., H, W, C), as :class:`PackViews` gives them, or (..., C, H, W).
        num_channels: C.
    """
    return view.movedim(-1, -3) if view.shape[-1] == num_channels else view


def _check_views(views: dict[str, Tensor]) -> None:
    missing = [name for name in ('view_1', 'view_2') if name not in views]
    if missing:
        raise ValueError(
            f'PackViews found no {" and no ".join(missing)}: put '
            "dict(type='mmpatchmix.LoadMultiCrop') or, where images are loaded already, "
            "dict(type='mmpatchmix.MultiCrop') before it in the pipeline"
        )
    for name, view in views.items():
        if view.dtype not in (uint8, float32):
            raise ValueError(
                f'PackViews needs uint8 or float32 crops, got {name} of {view.dtype} '
                f'and shape {tuple(view.shape)}'
            )
    kinds = sorted({str(view.dtype) for view in views.values()}, reverse=True)
    if len(kinds) > 1:
        raise ValueError(f'PackViews needs crops of one kind, got {" and ".join(kinds)}')
    first, second = (tuple(views[name].shape) for name in ('view_1', 'view_2'))
    if first != second:
        raise ValueError(
            'PackViews needs global crops of one shape, got view_1 of shape '
            f'{first} and view_2 of shape {second}'
        )
