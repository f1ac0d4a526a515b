"""From any known file to a plain Vision Transformer, and into a model, strictly."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpatchmix.checkpoints.key_names import (
    Layout,
    detect_layout,
    flatten_chunks,
    fold_layer_scale,
    fold_registers,
    from_hub,
    say_what_differs,
    to_hub,
)
from mmpatchmix.checkpoints.matching import KeyReport, match_state_dict
from mmpatchmix.checkpoints.preprocessing import Preprocessing, read_preprocessing
from mmpatchmix.checkpoints.reading import METADATA_KEY, Checkpoint, read_checkpoint
from mmpatchmix.checkpoints.vit_spec import (
    ViTSpec,
    read_spec,
    spec_from_mmengine,
    spec_from_transformers,
)

# Without these a file cannot even be measured.
_ESSENTIAL = ('patch_embed.projection.weight', 'pos_embed', 'layers.0.ffn.layers.0.0.weight')


class Backbone(NamedTuple):
    """A Vision Transformer out of a file.

    Attributes:
        state_dict: All weights under mmpretrain's names.
        spec: Its size.
        layout: How the file named them.
        report: What became of every key of the file.
        preprocessing: What has to be done to images.
        meta: What the file says about itself, see :class:`Checkpoint`.
    """

    state_dict: dict[str, Tensor]
    spec: ViTSpec
    layout: Layout
    report: KeyReport
    preprocessing: Preprocessing
    meta: dict[str, Any]


def read_backbone(
    path: str | Path,
    encoder: str = 'momentum',
    num_heads: int | None = None,
    prefix: str | None = None,
    default_heads: int | None = None,
    drop: Iterable[str] = (),
) -> Backbone:
    """Read the backbone out of a checkpoint of any known layout.

    Args:
        path: See :func:`read_checkpoint`. Layouts: ours and mmpretrain's, published PatchMix
            and MoCo v3, DINO, timm (so MAE and DINOv2), and Hugging Face transformers. Layer
            scale is multiplied into the weights before it.
        encoder: ``'momentum'`` (a teacher) or ``'query'`` (a student), where the file has both.
            A file without momentum encoder gives its only one.
        num_heads: Where the file does not say it.
        prefix: What stands before the encoder's keys, where ``encoder`` cannot choose.
        default_heads: Where neither the file says it nor its layout is known for it.
        drop: Beginnings of keys behind the prefix, such as another norm, that are of no use.

    Returns:
        Backbone: Complete, or an error.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read safely, is of no known layout, or a key is
            missing, unexpected or of a wrong shape; all are named.
    """
    checkpoint = read_checkpoint(path)
    state = {
        flatten_chunks(key.removeprefix('module.')): value
        for key, value in checkpoint.state_dict.items()
    }
    layout = detect_layout(state, encoder, prefix)
    outside = [key for key in state if not key.startswith(layout.prefix)]
    state, num_scales = fold_layer_scale(
        {key: value for key, value in state.items() if key.startswith(layout.prefix)}
    )
    if layout.library == 'timm':
        state = fold_registers(state)
    hub = to_hub({k[len(layout.prefix) :]: v for k, v in state.items()}, layout.library)
    lacking = [key for key in _ESSENTIAL if key not in hub]
    if lacking:
        raise ValueError(
            f'{path}: no Vision Transformer is complete without {", ".join(lacking)} (names of '
            f'mmpretrain; the file has the layout {layout.name!r}). {say_what_differs(state)}'
        )
    said = _said(checkpoint)
    if num_heads is not None and said.setdefault('num_heads', num_heads) != num_heads:
        raise ValueError(
            f'{path} has num_heads={said["num_heads"]} by its own metadata, not {num_heads}.'
        )
    spec, assumed = read_spec(hub, said, layout.name, default_heads)
    num_channels = hub['patch_embed.projection.weight'].shape[1]
    expected = {
        key: torch.empty(shape, device='meta')
        for key, shape in spec.parameter_shapes(num_channels).items()
    }
    wanted = {layout.prefix + k: v for k, v in from_hub(expected, layout.library).items()}
    drop = (*layout.drop, *(layout.prefix + key for key in drop))
    taken, report = match_state_dict(state, wanted, drop)
    preprocessing, note = read_preprocessing(checkpoint.meta, spec.img_size)
    report.dropped = outside + report.dropped
    report.assumed = [text for text in (*assumed, layout.note, note) if text]
    if num_scales:
        report.notes.append(f'layer scale: {num_scales} factors multiplied into the weights')
    report.raise_unless_fits(
        f'{path} is no complete plain Vision Transformer (layout {layout.name!r})',
        say_what_differs(state) or 'Variants with other parts are not read.',
    )
    assert len(taken) == len(wanted)
    weights = {key: hub[key] for key in expected}
    return Backbone(weights, spec, layout, report, preprocessing, checkpoint.meta)


def _said(checkpoint: Checkpoint) -> dict[str, int | float]:
    """Read what the file states about the network beside its weights."""
    meta = checkpoint.meta
    if METADATA_KEY in meta:
        fields = ViTSpec.__dataclass_fields__
        return {key: value for key, value in meta[METADATA_KEY].items() if key in fields}
    if 'transformers' in meta:
        return spec_from_transformers(meta['transformers'])
    return spec_from_mmengine(meta)
