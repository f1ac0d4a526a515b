"""Load all of a checkpoint's backbone into a model, or raise an error."""

from collections.abc import Iterable
from pathlib import Path

from mmengine.logging import MMLogger
from mmpretrain.models.utils import resize_pos_embed
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
        backbone: A ViT derived from mmpretrain's. A position embedding of another size is
            interpolated, a patch embedding of 3 channels fitted by :func:`fit_channels`.
        path: See :func:`mmpatchmix.checkpoints.read_backbone`.
        prefix: Prefix of the encoder's keys; by default of the momentum encoder if there is one.
        drop: Prefixes of keys that ``backbone`` does not use.
        new: Suffixes of keys that ``backbone`` has and the file may lack.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a key does not fit, all named; or width, depth, heads or patch size differ.
    """
    arch, drop = backbone.arch_settings, tuple(drop)
    source = read_backbone(path, prefix=prefix, default_heads=arch['num_heads'], drop=drop)
    wrong = [
        f'{key}: {value} in the file, {arch[key]} in the model'
        for key, value in source.spec.arch.items()
        if value != arch[key]
    ]
    if wrong:
        raise ValueError(
            f'{path} is another network than model.backbone; nothing was loaded. Give the model '
            f'the arch of the pre-training: {"; ".join(wrong)}.'
        )
    weights, side = dict(source.state_dict), source.spec.img_size // source.spec.patch_size
    # mmpretrain's hook, called here to compare shapes, takes a rectangle of as many for the same.
    options = (side, side), backbone.patch_resolution, backbone.interpolate_mode, 1
    weights['pos_embed'] = resize_pos_embed(weights['pos_embed'], *options)
    backbone._prepare_pos_embed(weights, prefix='')
    notes = fit_channels(weights, backbone.patch_embed.projection.in_channels)
    advice = 'Give the backbone the patch_size and parts of the pre-training.'
    weights, report = fit_state_dict(weights, backbone, str(path), advice, drop, new)
    backbone.load_state_dict(weights, strict=True)
    report.dropped = [*source.report.dropped, *report.dropped]
    report.assumed = source.report.assumed
    report.notes = source.report.notes + notes
    norms = [module.eps for module in backbone.modules() if isinstance(module, nn.LayerNorm)]
    eps = source.spec.norm_eps
    if norms and norms[0] != eps:
        report.assumed.append(
            f'LayerNorm adds {norms[0]:g} to the variance, as in the model, and not {eps:g}, as in '
            f"the file; set model.backbone.norm_cfg=dict(type='LN', eps={eps:g}) for the latter"
        )
    name, prefix = source.layout.name, source.layout.prefix or 'no prefix'
    logger = MMLogger.get_current_instance()
    logger.info(f'backbone loaded from {path} (layout {name!r}, {prefix}):\n{report}')
    return report


def fit_channels(
    weights: dict[str, Tensor], num_channels: int, key: str = 'patch_embed.projection.weight'
) -> list[str]:
    """Fit a patch embedding of 3 channels to another number in place, as timm does.

    For one channel the three kernels under ``key``, ``(D, C, p, p)``, are added, for N they are
    repeated and scaled by 3 / N. Returns the note for the report, if the embedding was fitted.
    """
    if weights[key].shape[1] != 3 or num_channels == 3:
        return []
    from timm.models import adapt_input_conv  # here, because the import takes seconds

    weights[key] = adapt_input_conv(num_channels, weights[key])
    how = 'added up for 1' if num_channels == 1 else f'repeated and scaled for {num_channels}'
    return [f'patch embedding: the kernels of 3 channels {how}']
