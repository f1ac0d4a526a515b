"""From any known file to a plain Vision Transformer, and into a model, strictly."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import MMLogger
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from mmpatchmix.checkpoints.layouts import (
    Layout,
    detect_layout,
    flatten_chunks,
    fold_layer_scale,
    fold_registers,
    from_hub,
    say_what_differs,
    to_hub,
)
from mmpatchmix.checkpoints.matching import KeyReport, fit_state_dict, match_state_dict
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


def build_vit(spec: ViTSpec, **options) -> VisionTransformer:
    """Build mmpretrain's Vision Transformer of a size, in evaluation mode.

    With register tokens it is :class:`~mmpatchmix.models.PatchMixViT`, which adds them.
    """
    kind = VisionTransformer
    if spec.num_registers:
        from mmpatchmix.models.vit import PatchMixViT as kind  # here: it imports this module

        options['num_registers'] = spec.num_registers
    vit = kind(
        arch=spec.arch,
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        norm_cfg=dict(type='LN', eps=spec.norm_eps),
        **options,
    )
    vit.eval()  # returns nothing in mmpretrain's backbones
    return vit


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
    with torch.device('meta'):
        expected = build_vit(spec, in_channels=num_channels).state_dict()
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


def load_backbone(
    backbone: nn.Module,
    path: str | Path,
    encoder: str = 'momentum',
    drop: Iterable[str] = (),
    new: Iterable[str] = (),
    prefix: str | None = None,
) -> KeyReport:
    """Start a backbone from a checkpoint: all of it, or an error. Logs the report.

    Args:
        backbone: A ViT derived from mmpretrain's. Its position embedding may have another size;
            it is interpolated by mmpretrain's own rule. Where it takes other than 3 channels,
            a patch embedding of 3 is fitted to them, see :func:`fit_channels`.
        path: See :func:`read_backbone`.
        encoder: See :func:`read_backbone`.
        drop: Beginnings of keys that ``backbone`` has no use for.
        new: Endings of keys that ``backbone`` has and the file need not have.
        prefix: See :func:`read_backbone`.

    Returns:
        KeyReport: What became of every key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key does not fit, all named; or width, depth, heads or patch size differ.
    """
    heads = backbone.arch_settings['num_heads']
    drop = tuple(drop)
    source = read_backbone(path, encoder, prefix=prefix, default_heads=heads, drop=drop)
    wrong = [
        f'{key}: {value} in the file, {backbone.arch_settings[key]} in the model'
        for key, value in source.spec.arch.items()
        if value != backbone.arch_settings[key]
    ]
    if wrong:
        raise ValueError(
            f'{path} is another network than model.backbone; nothing was loaded. Give the model '
            f'the arch of the pre-training: {"; ".join(wrong)}.'
        )
    weights = dict(source.state_dict)
    # mmpretrain's hook of load_state_dict; called here so that shapes can be compared.
    backbone._prepare_pos_embed(weights, prefix='')
    notes = fit_channels(weights, backbone.patch_embed.projection.in_channels)
    advice = 'Give the backbone the patch_size and parts of the pre-training.'
    weights, report = fit_state_dict(weights, backbone, str(path), advice, drop, new)
    backbone.load_state_dict(weights, strict=True)
    report.dropped = [*source.report.dropped, *report.dropped]
    report.assumed = source.report.assumed
    report.notes = source.report.notes + notes
    there = source.spec.norm_eps
    norms = (module for module in backbone.modules() if isinstance(module, nn.LayerNorm))
    here = next((norm.eps for norm in norms), there)
    if here != there:
        report.assumed.append(
            f'LayerNorm adds {here:g} to the variance, as the model says, and not {there:g}, as '
            f"the file does; model.backbone.norm_cfg=dict(type='LN', eps={there:g}) would"
        )
    MMLogger.get_current_instance().info(
        f'backbone loaded from {path} (layout {source.layout.name!r}, '
        f'{source.layout.prefix or "no prefix"}):\n{report}'
    )
    return report


def fit_channels(weights: dict[str, Tensor], num_channels: int) -> list[str]:
    """Fit a patch embedding of 3 channels to another number, as timm does; changes ``weights``.

    For one channel the three kernels are added: a grey image gives what it gave as three equal
    channels. For N they are repeated and scaled by 3 / N.

    Args:
        weights: Under mmpretrain's names.
        num_channels: Of the model.

    Returns:
        list[str]: What was done, in words; empty for nothing.
    """
    key = 'patch_embed.projection.weight'  # (D, C, p, p)
    if weights[key].shape[1] != 3 or num_channels == 3:
        return []
    from timm.models import adapt_input_conv  # here: it takes seconds

    weights[key] = adapt_input_conv(num_channels, weights[key])
    how = 'added up for 1' if num_channels == 1 else f'repeated and scaled for {num_channels}'
    return [f'patch embedding: the kernels of 3 channels {how}']
