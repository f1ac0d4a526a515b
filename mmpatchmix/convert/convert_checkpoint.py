"""Write a backbone for another library, and prove that it is still the same.

Every library loads the weights in its own way, strictly, and runs its own code.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpatchmix.checkpoints.backbone import Backbone, read_backbone
from mmpatchmix.checkpoints.key_names import DINOV2, from_mmpretrain
from mmpatchmix.checkpoints.preprocessing import Preprocessing
from mmpatchmix.checkpoints.reading import METADATA_KEY
from mmpatchmix.checkpoints.vit_spec import NORM_EPS, TRANSFORMERS_NAMES, ViTSpec
from mmpatchmix.convert.features import (
    FeatureFunction,
    build_vit,
    features_of_file,
    features_of_vit,
    load_transformers,
)
from mmpatchmix.convert.model_card import write_model_card
from mmpatchmix.convert.onnx import describe, preprocessing_file, write_program

_PROGRAMS = ('onnx', 'torch-export')

# What a file for each library may be called; that of transformers is a folder.
_SUFFIXES = {
    'mmpretrain': ('.pth',),
    'mmdet': ('.pth',),
    'timm': ('.safetensors', '.pth'),
    'transformers': ('',),
    'onnx': ('.onnx',),
    'torch-export': ('.pt2',),
}

TARGETS = tuple(_SUFFIXES)

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
        note: What the user of the written file has to know, or nothing.
    """

    backbone: Backbone
    spec: ViTSpec
    path: Path
    source_difference: float
    target_difference: float
    note: str = ''

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
            f'(allowed: {TOLERANCE:.0e})\n{self.note}'
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
            timm, a folder for transformers, ``.onnx``, or ``.pt2`` for torch-export. The
            preprocessing and a model card are in the folder; of the last two, the preprocessing is
            in a JSON file beside.
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
    others = {target, backbone.layout.library} & {'timm', 'transformers', DINOV2}
    if num_channels != 3 and others:
        raise ValueError(
            f'{source} takes images of {num_channels} channels; for {", ".join(sorted(others))} '
            'files are read and written for 3 only. Programs (onnx, torch-export) take any number.'
        )
    if backbone.spec.num_registers and target not in _PROGRAMS:
        raise ValueError(
            f'{source} has register tokens, which files for {target} are not written with here. '
            'Programs (onnx, torch-export) hold them.'
        )
    hub = features_of_vit(backbone.spec, backbone.state_dict)
    original = _features_of_source(Path(source), backbone)
    names = f'{source} in {backbone.layout.library}', 'mmpretrain'
    size = num_channels, backbone.spec.img_size
    source_difference = _compare(original, hub, size, *names)

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
    about['preprocessing'] = backbone.preprocessing.to(spec.img_size)
    try:
        _write(destination, target, state, spec, about)
        # Where the image size changes, hub interpolates the old positions as it runs.
        written = features_of_file(destination, target, spec)
        names = 'mmpretrain', str(destination)
        target_difference = _compare(hub, written, (num_channels, spec.img_size), *names)
        if target == 'transformers':
            difference = source_difference + target_difference
            write_model_card(
                destination, spec, about['preprocessing'], about, backbone.meta, difference
            )
    except BaseException:
        shutil.rmtree(destination, ignore_errors=True)  # of transformers; of others a file
        for file in _files(destination, target):
            if file.is_file():
                file.unlink()
        raise
    note = _note_on_eps(target, state, spec)
    return Conversion(backbone, spec, destination, source_difference, target_difference, note)


def _files(destination: Path, target: str) -> list[Path]:
    return [destination] + ([preprocessing_file(destination)] if target in _PROGRAMS else [])


def _note_on_eps(target: str, state: dict[str, Tensor], spec: ViTSpec) -> str:
    """Say what becomes of an unusual eps, which files of these libraries cannot carry."""
    if spec.norm_eps == NORM_EPS or target not in ('mmpretrain', 'mmdet', 'timm'):
        return ''
    usual = features_of_vit(replace(spec, norm_eps=NORM_EPS), state)
    num_channels = state['patch_embed.projection.weight'].shape[1]
    difference = _difference(features_of_vit(spec, state), usual, (num_channels, spec.img_size))
    way = "norm_cfg=dict(type='LN', eps={})"
    if target == 'timm':
        way = 'norm_layer=functools.partial(torch.nn.LayerNorm, eps={})'
    return (
        f'LayerNorm of this network adds {spec.norm_eps:g} to the variance, that of {target} '
        f'{NORM_EPS:g}, unless it is built with {way.format(f"{spec.norm_eps:g}")}; without, '
        f'features differ by up to {difference:.1e}\n'
    )


def _check_destination(destination: Path, target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f'target must be one of {", ".join(TARGETS)}; got {target!r}.')
    if destination.suffix not in _SUFFIXES[target]:
        kinds = ' or '.join(suffix or 'a folder' for suffix in _SUFFIXES[target])
        raise ValueError(f'For {target} the destination must be {kinds}; got {destination}.')
    for file in _files(destination, target):
        if file.exists():
            raise FileExistsError(f'{file} exists already; remove it or choose another name.')


def _write(
    path: Path, target: str, state: dict[str, Tensor], spec: ViTSpec, about: dict[str, Any]
) -> None:
    """Write what the target library reads, with metadata for what no weight can say."""
    preprocessing: Preprocessing | None = about.get('preprocessing')
    path.parent.mkdir(parents=True, exist_ok=True)
    if target in _PROGRAMS:
        vit = build_vit(spec, in_channels=state['patch_embed.projection.weight'].shape[1])
        vit.load_state_dict(state, strict=True)
        write_program(vit, path, spec.img_size)
        _write_json(preprocessing_file(path), describe(preprocessing))
        return
    metadata = asdict(spec) | about
    if preprocessing:
        metadata['preprocessing'] = asdict(preprocessing)
    library = target if target in ('timm', 'transformers') else 'mmpretrain'
    state = {
        key: value.contiguous().clone() for key, value in from_mmpretrain(state, library).items()
    }
    if target == 'mmpretrain':
        state = {f'backbone.{key}': value for key, value in state.items()}
    if target == 'transformers':
        path.mkdir()
        _write_json(path / 'config.json', _transformers_config(spec))
        if preprocessing:
            _write_json(path / 'preprocessor_config.json', preprocessing.to_transformers())
        path = path / 'model.safetensors'
    if path.suffix == '.safetensors':
        save_file(state, path, {'format': 'pt', METADATA_KEY: json.dumps(metadata)})
    else:
        torch.save({'state_dict': state, 'meta': {METADATA_KEY: metadata}}, path)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def _transformers_config(spec: ViTSpec) -> dict:
    """Return ``config.json`` of transformers' ViT: all that decides about its features."""
    return dict(
        {theirs: getattr(spec, ours) for ours, theirs in TRANSFORMERS_NAMES.items()},
        architectures=['ViTModel'],
        model_type='vit',
        num_channels=3,
        qkv_bias=True,
        hidden_act='gelu',
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _compare(
    first: FeatureFunction,
    second: FeatureFunction,
    size: tuple[int, int],
    first_name: str,
    name: str,
) -> float:
    """Return the largest difference of a feature on random images, the same each time.

    Raises:
        ValueError: If it is too large.
    """
    difference = _difference(first, second, size)
    # Written so that NaN is refused too.
    if not difference <= TOLERANCE:
        raise ValueError(
            f'Features of {first_name} and {name} differ by up to {difference:.1e}, more than '
            f'{TOLERANCE:.0e}: these are not the same network. Nothing was kept.'
        )
    return difference


def _difference(first: FeatureFunction, second: FeatureFunction, size: tuple[int, int]) -> float:
    num_channels, img_size = size
    generator = torch.Generator().manual_seed(0)
    # Three: a program that is right for the number of images it was made with only shows.
    images = torch.randn(3, num_channels, img_size, img_size, generator=generator)
    with torch.no_grad():
        return (first(images) - second(images)).abs().max().item()


def _features_of_source(path: Path, backbone: Backbone) -> FeatureFunction:
    """Load what was read from a file into the library that the file came from."""
    library, spec = backbone.layout.library, backbone.spec
    if path.is_dir():  # transformers, with its own config and perhaps a pooler
        return load_transformers(path)[0]
    if library == 'mmpretrain' or spec.num_registers:  # which other files are not written with
        return features_of_vit(spec, backbone.state_dict)
    if library == DINOV2:
        library = 'transformers'  # without layer scale its ViT is the same function
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f'copy{_SUFFIXES[library][0]}')
        _write(copy, library, backbone.state_dict, spec, {})
        return features_of_file(copy, library, spec)
