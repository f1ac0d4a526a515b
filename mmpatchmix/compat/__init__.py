"""What makes the OpenMMLab stack run on today's torch, one reason per file.

* :mod:`~mmpatchmix.compat.mmcv_ops`: mmcv's compiled ops without compiling mmcv.
* :mod:`~mmpatchmix.compat.quiet`: start-up messages of the stack that mislead.
* :mod:`~mmpatchmix.compat.multimodal`: mmpretrain next to transformers 5.
"""


def prepare_openmmlab() -> None:
    """Apply every workaround; called before anything of OpenMMLab is imported.

    Repeated calls do nothing. A process that imported parts of OpenMMLab first
    is served too: mmcv's ops are looked up when they are first imported, and
    what a failed import left behind is imported anew by whoever needs it.
    """
    from mmpatchmix.compat import mmcv_ops, multimodal, quiet

    quiet.install()
    mmcv_ops.install()
    multimodal.install()
