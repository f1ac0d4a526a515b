"""Changes to the OpenMMLab stack that let it run on today's torch, one reason per file.

* :mod:`~mmpatchmix.compat.mmcv_ops`: mmdet without compiling mmcv.
* :mod:`~mmpatchmix.compat.multimodal`: mmpretrain next to transformers 5.
* :mod:`~mmpatchmix.compat.cpu_launcher`: ``--launcher pytorch`` without a GPU.
* :mod:`~mmpatchmix.compat.safe_loading`: loading checkpoints without running code from them.
* :mod:`~mmpatchmix.compat.orientation`: the EXIF orientation of WebP.
* :mod:`~mmpatchmix.compat.yapf_cache`: ranks that start together on a new machine.
"""

from importlib import import_module

ORDER = 'mmcv_ops', 'multimodal', 'cpu_launcher', 'safe_loading', 'orientation', 'yapf_cache'


def prepare_openmmlab() -> None:
    """Apply all of them; repeated calls change nothing. :mod:`mmpatchmix.registry` calls it."""
    for name in ORDER:
        import_module(f'mmpatchmix.compat.{name}').install()
