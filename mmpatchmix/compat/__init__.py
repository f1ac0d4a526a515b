"""Changes to the OpenMMLab stack that let it run on today's torch, one reason per file.

* :mod:`~mmpatchmix.compat.mmcv_ops`: mmdet without compiling mmcv.
* :mod:`~mmpatchmix.compat.multimodal`: mmpretrain next to transformers 5.
* :mod:`~mmpatchmix.compat.cpu_launcher`: ``--launcher pytorch`` without a GPU.
* :mod:`~mmpatchmix.compat.safe_loading`: loading checkpoints without running code from them.
* :mod:`~mmpatchmix.compat.yapf_cache`: ranks that start together on a new machine.
"""


def prepare_openmmlab() -> None:
    """Apply all of them; repeated calls change nothing. :mod:`mmpatchmix.registry` calls it."""
    from mmpatchmix.compat import cpu_launcher, mmcv_ops, multimodal, safe_loading, yapf_cache

    for module in (mmcv_ops, multimodal, cpu_launcher, safe_loading, yapf_cache):
        module.install()
