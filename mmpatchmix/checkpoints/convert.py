"""Write a backbone for another library, and prove that it is still the same.

Every library loads the weights in its own way, strictly, and runs its own code.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import Tensor

from mmpatchmix.checkpoints.backbone import Backbone, build_vit, read_backbone
from mmpatchmix.checkpoints.layouts import DINOV2, from_hub
from mmpatchmix.checkpoints.reading import METADATA_KEY
from mmpatchmix.checkpoints.vit_spec import TRANSFORMERS_NAMES, ViTSpec

# What a file for each library may be called; that of transformers is a folder.
_SUFFIXES = {
    'mmpretrain': ('.pth',),
    'mmdet': ('.pth',),
    'timm': ('.safetensors', '.pth'),
    'transformers': ('',),
}
TARGETS = tuple(_SUFFIXES)
# Features are of size 1 (a LayerNorm comes last); float32 differs by about 1e-6.
TOLERANCE = 1e-4
# (N, 3, H, W) float32 to (N, D) float32: the class token.
FeatureFunction = Callable[[Tensor], Tensor]


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
    num_channels = backbone.state_dict['patch_embed.projection.weight'].shape[1]
    if num_channels != 3:
        raise ValueError(
            f'{source} takes images of {num_channels} channels; files for other libraries are '
            'written and compared for 3 only.'
        )
    hub = _features_of_vit(backbone.spec, backbone.state_dict)
    original = _features_of_source(Path(source), backbone)
    names = f'{source} in {backbone.layout.library}', 'mmpretrain'
    source_difference = _compare(original, hub, backbone.spec.img_size, *names)

    spec = backbone.spec if img_size is None else replace(backbone.spec, img_size=img_size)
    if spec.img_size < 1 or spec.img_size % spec.patch_size:
        raise ValueError(
            f'img_size={img_size} is not divisible by the patch size {spec.patch_size}.'
        )
    state = dict(backbone.state_dict)
    if spec != backbone.spec:
        build_vit(spec)._prepare_pos_embed(state, prefix='')
    layout = backbone.layout
    about = dict(source=Path(source).name, layout=layout.name, encoder=layout.prefix.rstrip('.'))
    try:
        _write(destination, target, state, spec, about)
        # Where the image size changes, hub interpolates the old positions as it runs.
        written = features_of_file(destination, target, spec)
        names = 'mmpretrain', str(destination)
        target_difference = _compare(hub, written, spec.img_size, *names)
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)  # of transformers; of others a file
        if destination.is_file():
            destination.unlink()
        raise
    return Conversion(backbone, spec, destination, source_difference, target_difference)


def _check_destination(destination: Path, target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f'target must be one of {", ".join(TARGETS)}; got {target!r}.')
    if destination.suffix not in _SUFFIXES[target]:
        kinds = ' or '.join(suffix or 'a folder' for suffix in _SUFFIXES[target])
        raise ValueError(f'For {target} the destination must be {kinds}; got {destination}.')
    if destination.exists():
        raise FileExistsError(f'{destination} exists already; remove it or choose another name.')


def _write(
    path: Path, target: str, state: dict[str, Tensor], spec: ViTSpec, about: dict[str, str]
) -> None:
    """Write what the target library reads, with metadata for what no weight can say."""
    metadata = spec.as_dict() | about
    library = target if target in ('timm', 'transformers') else 'mmpretrain'
    state = {key: value.contiguous().clone() for key, value in from_hub(state, library).items()}
    if target == 'mmpretrain':
        state = {f'backbone.{key}': value for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == 'transformers':
        path.mkdir()
        (path / 'config.json').write_text(json.dumps(_transformers_config(spec), indent=2) + '\n')
        path = path / 'model.safetensors'
    if path.suffix == '.safetensors':
        save_file(state, path, {'format': 'pt', METADATA_KEY: json.dumps(metadata)})
    else:
        torch.save({'state_dict': state, 'meta': {METADATA_KEY: metadata}}, path)


def _transformers_config(spec: ViTSpec) -> dict:
    """Return ``config.json`` of transformers' ViT: all that decides about its features."""
    return dict(
        {theirs: getattr(spec, ours) for ours, theirs in TRANSFORMERS_NAMES.items()},
        architectures=['ViTModel'],
        model_type='vit',
        num_channels=3,
        qkv_bias=True,
        hidden_act='gelu',
        layer_norm_eps=1e-6,  # transformers' own default is 1e-12
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _compare(
    first: FeatureFunction, second: FeatureFunction, img_size: int, first_name: str, name: str
) -> float:
    """Return the largest difference of a feature on random images, the same each time.

    Raises:
        ValueError: If it is too large.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, img_size, img_size, generator=generator)
    with torch.no_grad():
        difference = (first(images) - second(images)).abs().max().item()
    # Written so that NaN is refused too.
    if not difference <= TOLERANCE:
        raise ValueError(
            f'Features of {first_name} and {name} differ by up to {difference:.1e}, more than '
            f'{TOLERANCE:.0e}: these are not the same network. Nothing was kept.'
        )
    return difference


def _features_of_vit(spec: ViTSpec, state: dict[str, Tensor]) -> FeatureFunction:
    """Load weights under mmpretrain's names into its ViT; takes images of any size."""
    vit = build_vit(spec)
    vit.load_state_dict(state, strict=True)
    return lambda images: vit(images)[-1]  # (N, D)


def _features_of_source(path: Path, backbone: Backbone) -> FeatureFunction:
    """Load what was read from a file into the library that the file came from."""
    library, spec = backbone.layout.library, backbone.spec
    if library == 'mmpretrain':
        return _features_of_vit(spec, backbone.state_dict)
    if path.is_dir():  # transformers, with its own config and perhaps a pooler
        return _by_transformers(path)[0]
    if library == DINOV2:
        library = 'transformers'  # without layer scale its ViT is the same function
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f'copy{_SUFFIXES[library][0]}')
        _write(copy, library, backbone.state_dict, spec, {})
        return features_of_file(copy, library, spec)


def features_of_file(path: Path, target: str, spec: ViTSpec) -> FeatureFunction:
    """Load a converted file or folder the way the users of the library ``target`` do.

    Raises:
        ValueError: If the library does not find all keys or finds others.
    """
    if target == 'timm':
        return _by_timm(path, spec)
    if target == 'transformers':
        features, info = _by_transformers(path)
        if problems := {kind: keys for kind, keys in info.items() if keys}:
            raise ValueError(f'transformers does not load {path} completely: {problems}.')
        return features
    # As init_cfg=dict(type='Pretrained', ...) reads it, but insisting on every key.
    content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')['state_dict']
    prefix = 'backbone.' if target == 'mmpretrain' else ''
    return _features_of_vit(spec, {key.removeprefix(prefix): content[key] for key in content})


def _by_timm(path: Path, spec: ViTSpec) -> FeatureFunction:
    from timm.models import load_state_dict
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dims,
        depth=spec.num_layers,
        num_heads=spec.num_heads,
        mlp_ratio=spec.feedforward_channels / spec.embed_dims,
        num_classes=0,
        global_pool='token',
    )
    model.load_state_dict(load_state_dict(str(path)), strict=True)
    return model.eval()


def _by_transformers(folder: Path) -> tuple[FeatureFunction, dict]:
    """Load a folder; return also what transformers says about its keys."""
    try:
        from transformers import AutoConfig, Dinov2Model, ViTModel
        from transformers.utils import logging
    except ImportError as error:
        raise ModuleNotFoundError(
            'Converting from or to transformers is proved with the library itself, and it is not '
            'installed. Install it: pip install transformers'
        ) from error
    logging.disable_progress_bar()
    options = dict(output_loading_info=True, local_files_only=True)
    if AutoConfig.from_pretrained(folder, local_files_only=True).model_type == 'dinov2':
        model, info = Dinov2Model.from_pretrained(folder, **options)
    else:
        model, info = ViTModel.from_pretrained(folder, add_pooling_layer=False, **options)
    model.eval()
    return lambda images: model(images).last_hidden_state[:, 0], info
