"""Write a backbone for another library, and prove that it is still the same."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from mmpatchmix.checkpoints.backbone import Backbone, build_vit, read_backbone
from mmpatchmix.checkpoints.compare_features import (
    features_of_file,
    features_of_source,
    features_of_vit,
    largest_difference,
    transformers_config,
)
from mmpatchmix.checkpoints.layouts import from_hub
from mmpatchmix.checkpoints.reading import METADATA_KEY
from mmpatchmix.checkpoints.vit_spec import ViTSpec

TARGETS = ('mmpretrain', 'mmdet', 'timm', 'transformers')
# Features are of size 1 (a LayerNorm comes last); float32 differs by about 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        backbone: What was read, with the report on every key.
        spec: Size of what was written.
        path: Where it was written.
        source_difference: Largest difference of a feature between the library the file came from
            and mmpretrain, at the file's image size.
        target_difference: The same between mmpretrain and the library it was written for, at the
            written image size.
    """

    backbone: Backbone
    spec: ViTSpec
    path: Path
    source_difference: float
    target_difference: float

    def __str__(self) -> str:
        """Return the report as shown to the user."""
        layout, spec = self.backbone.layout, self.spec
        return (
            f'layout {layout.name!r}, encoder {layout.prefix or "(only one)"}\n'
            f'{self.backbone.report}\n'
            f'width {spec.embed_dims}, {spec.num_layers} layers, {spec.num_heads} heads, '
            f'patch {spec.patch_size}, image {spec.img_size}\n'
            f'largest difference of features, {layout.library} to mmpretrain: '
            f'{self.source_difference:.1e}, to the written file: {self.target_difference:.1e} '
            f'(allowed: {TOLERANCE:.0e})\n'
            f'wrote {self.path}'
        )


def convert_checkpoint(
    source: str | Path,
    destination: str | Path,
    target: str,
    encoder: str = 'momentum',
    num_heads: int | None = None,
    img_size: int | None = None,
) -> Conversion:
    """Translate a checkpoint's backbone for another library.

    The written file is loaded, strictly, by the library it is for, and its
    features are compared with those of the source on random images. What does
    not pass is not left behind.

    Args:
        source: See :func:`~mmpatchmix.checkpoints.read_backbone`.
        destination: A ``.pth`` file for mmpretrain and mmdet, ``.safetensors`` or ``.pth`` for
            timm, a folder for transformers.
        target: One of :data:`TARGETS`. For mmpretrain the keys start with ``backbone.``; for
            mmdet they are bare.
        encoder: ``'momentum'`` or ``'query'``.
        num_heads: Where the file does not say it.
        img_size: Image size the positions shall be for; they are interpolated by mmpretrain's
            rule.

    Returns:
        Conversion: The report.

    Raises:
        FileNotFoundError: If there is no source.
        ValueError: If it cannot be read, does not fit, or features differ by more than
            :data:`TOLERANCE`.
        FileExistsError: If the destination exists.
        ModuleNotFoundError: If the library that the proof needs is missing.
    """
    destination = Path(destination)
    _check_destination(destination, target)
    backbone = read_backbone(source, encoder, num_heads)
    hub = features_of_vit(backbone.spec, backbone.state_dict)
    original = features_of_source(source, backbone)
    source_difference = largest_difference(original, hub, backbone.spec.img_size)
    _refuse_difference(source_difference, f'{source} in {backbone.layout.library}', 'mmpretrain')

    spec = backbone.spec if img_size is None else _resized(backbone.spec, img_size)
    state = dict(backbone.state_dict)
    if spec != backbone.spec:
        build_vit(spec)._prepare_pos_embed(state, prefix='')
    try:
        _write(destination, target, state, spec, backbone, Path(source).name)
        # Where the image size changes, hub interpolates the old positions as it runs.
        written = features_of_file(destination, target, spec)
        target_difference = largest_difference(hub, written, spec.img_size)
        _refuse_difference(target_difference, 'mmpretrain', str(destination))
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)  # of transformers; of others a file
        if destination.is_file():
            destination.unlink()
        raise
    return Conversion(backbone, spec, destination, source_difference, target_difference)


def _check_destination(destination: Path, target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f'target must be one of {", ".join(TARGETS)}; got {target!r}.')
    allowed = {'timm': ('.safetensors', '.pth'), 'transformers': ('',)}.get(target, ('.pth',))
    if destination.suffix not in allowed:
        kinds = ' or '.join(suffix or 'a folder' for suffix in allowed)
        raise ValueError(f'For {target} the destination must be {kinds}; got {destination}.')
    if destination.exists():
        raise FileExistsError(f'{destination} exists already; remove it or choose another name.')


def _resized(spec: ViTSpec, img_size: int) -> ViTSpec:
    if img_size < 1 or img_size % spec.patch_size:
        raise ValueError(
            f'img_size={img_size} is not divisible by the patch size {spec.patch_size}.'
        )
    return replace(spec, img_size=img_size)


def _write(
    path: Path, target: str, state: dict, spec: ViTSpec, backbone: Backbone, name: str
) -> None:
    """Write what the target library reads, with metadata for what no weight can say."""
    metadata = spec.as_dict() | dict(
        source=name, layout=backbone.layout.name, encoder=backbone.layout.prefix.rstrip('.')
    )
    library = target if target in ('timm', 'transformers') else 'mmpretrain'
    state = {key: value.contiguous().clone() for key, value in from_hub(state, library).items()}
    if target == 'mmpretrain':
        state = {f'backbone.{key}': value for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == 'transformers':
        path.mkdir()
        (path / 'config.json').write_text(json.dumps(transformers_config(spec), indent=2) + '\n')
        path = path / 'model.safetensors'
    if path.suffix == '.safetensors':
        save_file(state, path, {'format': 'pt', METADATA_KEY: json.dumps(metadata)})
    else:
        torch.save({'state_dict': state, 'meta': {METADATA_KEY: metadata}}, path)


def _refuse_difference(difference: float, first: str, second: str) -> None:
    # Written so that NaN is refused too.
    if not difference <= TOLERANCE:
        raise ValueError(
            f'Features of {first} and {second} differ by up to {difference:.1e}, more than '
            f'{TOLERANCE:.0e}: these are not the same network. Nothing was kept.'
        )
