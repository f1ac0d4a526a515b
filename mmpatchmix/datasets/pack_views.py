"""The last step of the training pipeline: packs the crops of a sample for the batch."""

from mmpretrain.datasets.transforms import PackInputs
from torch import Tensor, float32, uint8

from mmpatchmix.registry import TRANSFORMS

VIEWS = ('view_1', 'view_2', 'local_views')


@TRANSFORMS.register_module()
class PackViews(PackInputs):
    """Pack the crops of :class:`MultiCrop` into ``dict(inputs=..., data_samples=DataSample)``.

    ``inputs`` holds the crops by name, uint8 or float32, with channels last as in memory after
    decoding and resizing, so collation copies whole crops. ``ValueError`` if crops are missing, are
    neither uint8 nor float32, or the global ones differ in size or number of channels.

    - ``view_1``, ``view_2``: (H, W, C)
    - ``local_views``: (L, h, w, C), only with local crops

    Args:
        algorithm_keys: More keys to store in the data sample.
        meta_keys: Meta information to store if present. ``gt_label`` is always stored if present.
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
    """Return crops (..., H, W, C) or (..., C, H, W) as (..., C, H, W), without a copy."""
    return view.movedim(-1, -3) if view.shape[-1] == num_channels else view


def _check_views(views: dict[str, Tensor]) -> None:
    missing = [name for name in ('view_1', 'view_2') if name not in views]
    if missing:
        raise ValueError(
            f'PackViews found no {" and no ".join(missing)}: put '
            "dict(type='mmpatchmix.LoadMultiCrop') or, if images are already loaded, "
            "dict(type='mmpatchmix.MultiCrop') before it in the pipeline"
        )
    dtypes = {view.dtype for view in views.values()}
    if len(dtypes) > 1 or not dtypes <= {uint8, float32}:
        kinds = ', '.join(f'{name} of {view.dtype}' for name, view in views.items())
        raise ValueError(f'PackViews needs crops that are all uint8 or all float32, got {kinds}')
    first, second = (tuple(views[name].shape) for name in ('view_1', 'view_2'))
    if first != second:
        raise ValueError(
            'PackViews needs global crops of one shape, got view_1 of shape '
            f'{first} and view_2 of shape {second}'
        )
