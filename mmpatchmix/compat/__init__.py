"""Changes to the OpenMMLab stack that let it run on today's torch; each file states its reason."""

from importlib import import_module

ORDER = 'mmcv_ops', 'imports', 'cpu_launcher', 'safe_loading'


def prepare_openmmlab() -> None:
    """Apply all of them; repeated calls change nothing. :mod:`mmpatchmix.registry` calls it."""
    for name in ORDER:
        import_module(f'mmpatchmix.compat.{name}').install()
