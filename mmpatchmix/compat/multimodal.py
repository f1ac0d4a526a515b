"""Reason: ``import mmpretrain.models`` fails next to transformers 5.

mmpretrain imports its vision-language models whenever transformers is installed. transformers 5
removed functions that these imports need, so that base classes are None and the import ends in
"NoneType takes no arguments". With an incompatible transformers the models are replaced by the
placeholders that mmpretrain uses without transformers, which raise when they are built.
"""

from importlib.metadata import PackageNotFoundError, version


def install() -> None:
    """Disable mmpretrain's vision-language models next to transformers 5 and later."""
    try:
        major = int(version('transformers').split('.')[0])
    except PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False
