"""mmpretrain's lists of images, without its end at the first bad file."""

from typing import Any

from mmpretrain.datasets import CustomDataset as UpstreamDataset

from mmpatchmix.datasets.skip_unreadable import SkipUnreadable
from mmpatchmix.registry import DATASETS


@DATASETS.register_module()
class CustomDataset(SkipUnreadable, UpstreamDataset):
    """mmpretrain's ``CustomDataset``, which skips and counts images that cannot be read.

    For configs that have an ``ann_file``, or images on a backend that is no file system. Where
    there is none of these, :class:`~mmpatchmix.datasets.ImageFolder` reads folders and lists.

    Args:
        *args: As in mmpretrain.
        max_unreadable: Share of images that may be unreadable, in [0, 1]; more, and more than 3,
            stop the run. With 0 the first one does.
        **kwargs: As in mmpretrain.

    Raises:
        ValueError: If ``max_unreadable`` is no share.
    """

    def __init__(self, *args: Any, max_unreadable: float = 0.01, **kwargs: Any) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(
                f'CustomDataset: max_unreadable must be in [0, 1]; got {max_unreadable}'
            )
        self.max_unreadable = max_unreadable
        super().__init__(*args, **kwargs)
