"""Reason: mmengine's checkpoint loaders unpickle what ``weights_only=True`` refuses.

A file could so run any code through ``load_from``, ``resume``, ``init_cfg`` and whatever else
loads through mmengine; one from the net would do so at once. Here all of them read by
:func:`mmpatchmix.checkpoints.reading.load_torch`, which runs nothing.
"""

from typing import Any

import torch
from mmengine.runner import checkpoint


def install() -> None:
    """Replace the two functions that mmengine's loaders read by; repeated calls change nothing."""
    checkpoint._safe_torch_load = _load_file
    checkpoint.load_url = _load_url


def _load_file(file: Any, map_location: Any = None, weights_only: bool | None = None) -> Any:
    # Here, not above: checkpoints/ needs the stack that compat/ is about to prepare.
    from mmpatchmix.checkpoints.reading import load_torch

    return load_torch(file, map_location)


def _load_url(url: str, **options: Any) -> Any:
    from mmpatchmix.checkpoints.reading import load_safely

    def read(weights_only: bool) -> Any:
        return torch.hub.load_state_dict_from_url(url, weights_only=weights_only, **options)

    return load_safely(read, url)
