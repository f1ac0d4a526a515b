"""Reason: mmengine's ``--launcher pytorch`` calls ``torch.cuda.set_device`` without asking.

On a machine with CPUs only the processes then stop before they have met. Here they
meet over gloo. Where mmengine finds an accelerator, its own function runs unchanged.
"""

import functools
from typing import Any

from mmengine.device import get_device
from mmengine.dist import utils
from torch import distributed


def install() -> None:
    """Wrap mmengine's launcher; does nothing when called again."""
    original = utils._init_dist_pytorch
    if hasattr(original, '__wrapped__'):
        return

    @functools.wraps(original)
    def init_dist(backend: str, init_backend: str = 'torch', **kwargs: Any) -> None:
        if get_device() != 'cpu' or init_backend != 'torch':
            original(backend, init_backend=init_backend, **kwargs)
        else:
            # kwargs are those of env_cfg.dist_cfg, e.g. the timeout.
            backend = 'gloo' if backend == 'nccl' else backend
            distributed.init_process_group(backend=backend, **kwargs)

    utils._init_dist_pytorch = init_dist
