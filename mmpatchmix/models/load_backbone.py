"""Load all of a checkpoint's backbone into a model, or raise an error."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.logging import MMLogger
from torch import Tensor, nn

from mmpatchmix.checkpoints.backbone import read_backbone
from mmpatchmix.checkpoints.matching import KeyReport, fit_state_dict


def load_backbone(
    backbone: nn.Module,
    path: str | Path,
    prefix: str | None = None,
    drop: Iterable[str] = (),
    new: Iterable[str] = (),
) -> KeyReport:
    """Load all of a checkpoint's backbone or raise an error. Logs the report.

    Args:
        backbone: A ViT derived from mmpretrain's. Its position embedding may have another size;
            it is interpolated by mmpretrain's own rule. Where it takes other than 3 channels,
            a patch embedding of 3 is fitted to them, see :func:`fit_channels`.
        path: See :func:`mmpatchmix.checkpoints.read_backbone`.
        prefix: Prefix of the encoder's keys, ``'backbone.'`` for the query encoder of our
            checkpoints. None takes the momentum encoder if there is one.
        drop: Prefixes of keys that ``backbone`` does not use.
        new: Suffixes of keys that ``backbone`` has and the file may lack.

    Returns:
        KeyReport: The use of every key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key does not fit, all named; or width, depth, heads or patch size differ.
    """
    heads = backbone.arch_settings['num_heads']
    drop = tuple(drop)
    source = read_backbone(path, prefix=prefix, default_heads=heads, drop=drop)
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
