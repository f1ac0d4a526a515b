"""Reason: mmpretrain's vision-language models stop its import next to transformers 5.

mmpretrain imports them whenever transformers is installed, and subclasses classes
that it could not import because transformers 5 removed functions beside them:
``import mmpretrain.models`` then ends in "NoneType takes no arguments". With an
incompatible transformers those models become what they are without any:
placeholders that say so when they are used. Nothing of ours uses them.
"""

from importlib.metadata import PackageNotFoundError, version


def install() -> None:
    """Switch the models off where they cannot be imported; cheap where nothing is to do."""
    try:
        major = int(version('transformers').split('.')[0])
    except PackageNotFoundError:
        return
    if major >= 5:
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False
