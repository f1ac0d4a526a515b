"""Read the backbone of a checkpoint of any known layout under mmpretrain's names."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmpatchmix.checkpoints import key_names
from mmpatchmix.checkpoints.key_names import Layout, explain_difference
from mmpatchmix.checkpoints.matching import KeyReport, match_state_dict
from mmpatchmix.checkpoints.reading import read_checkpoint
from mmpatchmix.checkpoints.vit_spec import (
    Preprocessing,
    ViTSpec,
    read_preprocessing,
    read_spec,
    read_stated_spec,
)

# Required to derive the size of the network.
_ESSENTIAL = ('patch_embed.projection.weight', 'pos_embed', 'layers.0.ffn.layers.0.0.weight')


class Backbone(NamedTuple):
    """A Vision Transformer from a file."""

    state_dict: dict[str, Tensor]  # under mmpretrain's names
    spec: ViTSpec
    layout: Layout
    report: KeyReport
    preprocessing: Preprocessing
    meta: dict[str, Any]  # see Checkpoint


def read_backbone(
    path: str | Path,
    encoder: str = 'momentum',
    num_heads: int | None = None,
    prefix: str | None = None,
    default_heads: int | None = None,
    drop: Iterable[str] = (),
) -> Backbone:
    """Read the complete backbone of a checkpoint of any known layout.

    Args:
        path: See :func:`read_checkpoint`. Layouts: ours and mmpretrain's, published PatchMix
            and MoCo v3, DINO, timm (so MAE and DINOv2), and Hugging Face transformers. Layer
            scale is multiplied into the weights before it.
        encoder: ``'momentum'`` (a teacher) or ``'query'`` (a student), if the file has both.
            Of a file without momentum encoder the only one is read.
        num_heads: Number of heads if the file does not state it.
        prefix: Beginning of the encoder's keys, if ``encoder`` does not determine it.
        default_heads: Number of heads if it is neither stated nor usual for the layout.
        drop: Beginnings of keys after the prefix that are left out, such as another norm.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file cannot be read safely, is of no known layout, or a key is
            missing, unexpected or of a wrong shape; all are named.
    """
    checkpoint = read_checkpoint(path)
    state = key_names.flatten_names(checkpoint.state_dict | checkpoint.raw)
    layout = key_names.detect_layout(state, encoder, prefix)
    others = [key for key in state if not key.startswith(layout.prefix)]
    state = {key: state[key].float() for key in state if key.startswith(layout.prefix)}
    state, num_scales = key_names.fold_layer_scale(state)
    if layout.library == 'timm':
        state = key_names.fold_registers(state)
    bare = {key.removeprefix(layout.prefix): value for key, value in state.items()}
    weights = key_names.to_mmpretrain(bare, layout.library)
    if missing := ', '.join(key for key in _ESSENTIAL if key not in weights):
        reason = explain_difference(state)
        raise ValueError(f'{path} (layout {layout.name!r}): a ViT needs {missing}. {reason}')
    stated = read_stated_spec(checkpoint.meta)
    if num_heads is not None and stated.setdefault('num_heads', num_heads) != num_heads:
        own = f'num_heads={stated["num_heads"]}'
        raise ValueError(f'{path} has {own} by its own metadata, not {num_heads}.')
    spec, assumed = read_spec(weights, stated, layout.name, default_heads)
    num_channels = weights['patch_embed.projection.weight'].shape[1]
    shapes = spec.parameter_shapes(num_channels)
    expected = {key: torch.empty(shape, device='meta') for key, shape in shapes.items()}
    named = key_names.from_mmpretrain(expected, layout.library)
    expected = {layout.prefix + key: value for key, value in named.items()}
    drop = (*layout.drop, *(layout.prefix + key for key in drop))
    _, report = match_state_dict(state, expected, drop)
    preprocessing, note = read_preprocessing(checkpoint.meta, spec.img_size)
    report.dropped = others + report.dropped
    report.assumed = [text for text in (*assumed, layout.note, note) if text]
    if num_scales:
        report.notes.append(f'layer scale: {num_scales} factors multiplied into the weights')
    report.raise_unless_fits(
        f'{path} is no complete plain Vision Transformer (layout {layout.name!r})',
        explain_difference(state) or 'Variants with other parts are not read.',
    )
    weights = {key: weights[key] for key in shapes}
    return Backbone(weights, spec, layout, report, preprocessing, checkpoint.meta)
