"""Write a backbone for another library, and verify that its features are the same.

Every library loads the weights in its own way, strictly, and runs its own code.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmpatchmix import __version__
from mmpatchmix.checkpoints.backbone import Backbone, read_backbone
from mmpatchmix.checkpoints.key_names import DINOV2, from_mmpretrain
from mmpatchmix.checkpoints.reading import METADATA_KEY, read_checkpoint, resolve
from mmpatchmix.checkpoints.vit_spec import NORM_EPS, TRANSFORMERS_NAMES, Preprocessing, ViTSpec
from mmpatchmix.convert.features import (
    TOLERANCE,
    FeatureFunction,
    build_vit,
    features_of_file,
    features_of_vit,
    load_transformers,
    verify,
)
from mmpatchmix.convert.onnx import describe, preprocessing_file, write_program
from mmpatchmix.convert.timm_vit import PROGRAMS, find_timm_vit, write_timm_vit

# Endings of the file for each library; transformers has a folder.
_SUFFIXES = {
    'mmpretrain': ('.pth',),
    'mmdet': ('.pth',),
    'timm': ('.safetensors', '.pth'),
    'transformers': ('',),
    'onnx': ('.onnx',),
    'torch-export': ('.pt2',),
}
TARGETS = tuple(_SUFFIXES)


@dataclass(frozen=True)
class Conversion:
    """Report of a conversion."""

    backbone: Backbone  # of the source, with the use of every key
    spec: ViTSpec  # of the written backbone
    path: Path
    source_difference: float  # largest of a feature, from the library of the source to mmpretrain
    target_difference: float  # from mmpretrain to the target library, at the written image size
    note: str = ''  # remark for users of the written file

    def __str__(self) -> str:
        """Return the report as shown to the user."""
        layout, spec = self.backbone.layout, self.spec
        return (
            f'layout {layout.name!r}, encoder {layout.prefix or "(no prefix)"}\n'
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
) -> Conversion | str:
    """Convert the backbone of a checkpoint for another library.

    The written file is loaded, strictly, by its library, and its features are compared with those
    of the source on random images. If they differ, nothing is kept. The report of a ViT of timm is
    its text.

    Args:
        source: See :func:`~mmpatchmix.checkpoints.read_backbone`.
        destination: A ``.pth`` file for mmpretrain and mmdet, ``.safetensors`` or ``.pth`` for
            timm, a folder for transformers (with the preprocessing and a model card), ``.onnx``,
            or ``.pt2`` for torch-export (both with a JSON file of the preprocessing).
        target: One of :data:`TARGETS`. For mmpretrain the keys start with ``backbone.``; for
            mmdet they have no prefix.
        encoder: ``'momentum'`` or ``'query'``.
        num_heads: Number of heads if the file does not state it.
        img_size: Image size of the positions, which are interpolated by mmpretrain's rule.

    Raises:
        FileNotFoundError, FileExistsError: If there is no source, or the destination exists.
        ValueError: If it cannot be read, does not fit, or features differ beyond :data:`TOLERANCE`.
        ModuleNotFoundError: If the library for the verification is not installed.
    """
    source, destination = resolve(source), Path(destination)
    files = _check_destination(destination, target)
    meta = read_checkpoint(source).meta
    if find_timm_vit(meta):
        with _remove_on_failure(files):
            return write_timm_vit(meta, source, destination, target, encoder, img_size)
    backbone = read_backbone(source, encoder, num_heads)
    layout, spec, state = backbone.layout, backbone.spec, dict(backbone.state_dict)
    _check_support(source, target, backbone)
    hub = features_of_vit(spec, state)
    original = _features_of_source(source, backbone)
    difference = _difference(original, hub, state, spec)
    source_difference = verify(difference, f'{source} in {layout.library}', 'mmpretrain')
    patch_size = spec.patch_size
    if img_size is not None and (img_size < 1 or img_size % patch_size):
        raise ValueError(f'img_size={img_size} is not divisible by the patch size {patch_size}.')
    if img_size not in (None, spec.img_size):
        spec = replace(spec, img_size=img_size)
        build_vit(spec)._prepare_pos_embed(state, prefix='')
    about = dict(source=source.name, layout=layout.name, encoder=layout.prefix.rstrip('.'))
    preprocessing = backbone.preprocessing.to(spec.img_size)
    with _remove_on_failure(files):
        _write(destination, target, state, spec, preprocessing, about)
        # At another image size hub interpolates the original positions in its forward pass.
        written = features_of_file(destination, target, spec)
        difference = _difference(hub, written, state, spec)
        target_difference = verify(difference, 'mmpretrain', str(destination))
        if target == 'transformers':
            facts = dict(about=about, meta=backbone.meta, preprocessing=preprocessing, spec=spec)
            _write_model_card(destination, facts, source_difference + target_difference)
    note = _note_on_eps(target, state, spec)
    return Conversion(backbone, spec, destination, source_difference, target_difference, note)


@contextmanager
def _remove_on_failure(files: list[Path]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for file in files:
            shutil.rmtree(file, ignore_errors=True)  # a folder of transformers
            file.unlink(missing_ok=True)
        raise


def _check_destination(destination: Path, target: str) -> list[Path]:
    """Return the files to be written; raise if one exists or does not suit the target."""
    if target not in TARGETS:
        raise ValueError(f'target must be one of {", ".join(TARGETS)}; got {target!r}.')
    if destination.suffix not in _SUFFIXES[target]:
        kinds = ' or '.join(suffix or 'a folder' for suffix in _SUFFIXES[target])
        raise ValueError(f'For {target} the destination must be {kinds}; got {destination}.')
    files = [destination] + ([preprocessing_file(destination)] if target in PROGRAMS else [])
    if existing := [str(file) for file in files if file.exists()]:
        raise FileExistsError(f'{existing[0]} exists already; remove it or choose another name.')
    return files


def _check_support(source: Path, target: str, backbone: Backbone) -> None:
    num_channels = _num_channels(backbone.state_dict)
    others = {target, backbone.layout.library} & {'timm', 'transformers', DINOV2}
    if num_channels != 3 and others:
        raise ValueError(
            f'{source} takes images of {num_channels} channels; for {", ".join(sorted(others))} '
            'files are read and written for 3 only. Programs (onnx, torch-export) take any number.'
        )
    if backbone.spec.num_registers and target not in PROGRAMS:
        raise ValueError(
            f'{source} has register tokens, with which files for {target} cannot be written. '
            'Programs (onnx, torch-export) can.'
        )


def _num_channels(state: Mapping[str, Tensor]) -> int:
    return state['patch_embed.projection.weight'].shape[1]


def _write(
    path: Path,
    target: str,
    state: dict[str, Tensor],
    spec: ViTSpec,
    preprocessing: Preprocessing,
    about: dict[str, str],
) -> None:
    """Write the files for the target library, with metadata that weights do not contain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if target in PROGRAMS:
        vit = build_vit(spec, in_channels=_num_channels(state))
        vit.load_state_dict(state, strict=True)
        write_program(vit, path, spec.img_size, _num_channels(state))
        _write_json(preprocessing_file(path), describe(preprocessing))
        return
    metadata = asdict(spec) | about | {'preprocessing': asdict(preprocessing)}
    state = from_mmpretrain(state, target if target in ('timm', 'transformers') else 'mmpretrain')
    prefix = 'backbone.' if target == 'mmpretrain' else ''
    state = {f'{prefix}{key}': value.contiguous().clone() for key, value in state.items()}
    if target == 'transformers':
        path.mkdir()
        _write_json(path / 'config.json', _transformers_config(spec))
        _write_json(path / 'preprocessor_config.json', preprocessing.to_transformers())
        path = path / 'model.safetensors'
    if path.suffix == '.safetensors':
        save_file(state, path, {'format': 'pt', METADATA_KEY: json.dumps(metadata)})
    else:
        torch.save({'state_dict': state, 'meta': {METADATA_KEY: metadata}}, path)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')


def _transformers_config(spec: ViTSpec) -> dict[str, Any]:
    config = {theirs: getattr(spec, ours) for ours, theirs in TRANSFORMERS_NAMES.items()}
    config |= dict(architectures=['ViTModel'], model_type='vit', hidden_act='gelu', qkv_bias=True)
    return config | dict(num_channels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def _write_model_card(folder: Path, facts: dict[str, Any], difference: float) -> None:
    """Write the ``README.md`` that Hugging Face shows."""
    from jinja2 import Template

    template = Template(Path(__file__).with_name('model_card.md.jinja').read_text('utf-8'))
    text = template.render(facts, name=folder.name, difference=difference, version=__version__)
    (folder / 'README.md').write_text(f'{text}\n', encoding='utf-8')


def _note_on_eps(target: str, state: dict[str, Tensor], spec: ViTSpec) -> str:
    """Return a remark on an unusual eps, which files of these libraries do not contain."""
    if spec.norm_eps == NORM_EPS or target not in ('mmpretrain', 'mmdet', 'timm'):
        return ''
    usual = features_of_vit(replace(spec, norm_eps=NORM_EPS), state)
    difference = _difference(features_of_vit(spec, state), usual, state, spec)
    option = "norm_cfg=dict(type='LN', eps={})"
    if target == 'timm':
        option = 'norm_layer=functools.partial(torch.nn.LayerNorm, eps={})'
    return (
        f'LayerNorm of this network adds {spec.norm_eps:g} to the variance, that of {target} '
        f'{NORM_EPS:g}, unless it is built with {option.format(spec.norm_eps)}; without, features '
        f'differ by up to {difference:.1e}\n'
    )


def _difference(
    first: FeatureFunction, second: FeatureFunction, state: Mapping[str, Tensor], spec: ViTSpec
) -> float:
    """Return the largest difference of a feature on random images, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    # Three images, not the number that programs were exported with.
    shape = 3, _num_channels(state), spec.img_size, spec.img_size
    images = torch.randn(shape, generator=generator)
    with torch.no_grad():
        return (first(images) - second(images)).abs().max().item()


def _features_of_source(path: Path, backbone: Backbone) -> FeatureFunction:
    """Load the weights of a file into the library that it came from."""
    library, spec = backbone.layout.library, backbone.spec
    if 'transformers' in backbone.meta:  # a folder, with its own config and perhaps a pooler
        return load_transformers(path)[0]
    if library == 'mmpretrain' or spec.num_registers:  # files of others lack registers
        return features_of_vit(spec, backbone.state_dict)
    library = library.removesuffix('-dinov2')  # without layer scale the same function as its ViT
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, f'copy{_SUFFIXES[library][0]}')
        _write(copy, library, dict(backbone.state_dict), spec, backbone.preprocessing, {})
        return features_of_file(copy, library, spec)
