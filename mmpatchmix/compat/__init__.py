"""What makes the OpenMMLab stack run on today's torch, one reason per file.

* :mod:`~mmpatchmix.compat.mmcv_ops`: mmcv's compiled ops without compiling mmcv.
* :mod:`~mmpatchmix.compat.multimodal`: mmpretrain next to transformers 5.
* :mod:`~mmpatchmix.compat.cpu_launcher`: mmengine's ``--launcher pytorch`` without a GPU.
* :mod:`~mmpatchmix.engine.ranks`: who is missing is named within a minute.
* :mod:`~mmpatchmix.compat.safe_loading`: checkpoints that run nothing.
* :mod:`~mmpatchmix.compat.yapf_cache`: ranks that start together on a fresh machine.
"""


def prepare_openmmlab() -> None:
    """Apply what the stack needs to run; :mod:`mmpatchmix.registry` does so when imported.

    Repeated calls do nothing.
    """
    from mmpatchmix.compat import cpu_launcher, mmcv_ops, multimodal, safe_loading, yapf_cache

    mmcv_ops.install()
    multimodal.install()
    cpu_launcher.install()
    safe_loading.install()
    yapf_cache.install()
