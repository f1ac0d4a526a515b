"""Changes to the OpenMMLab stack that let it run on today's torch; each file states its reason."""


def prepare_openmmlab() -> None:
    """Apply all of them; repeated calls change nothing. :mod:`mmpatchmix.registry` calls it."""
    from mmpatchmix.compat import cpu_launcher, mmcv_ops, multimodal, safe_loading, yapf_cache

    for module in (mmcv_ops, multimodal, cpu_launcher, safe_loading, yapf_cache):
        module.install()
