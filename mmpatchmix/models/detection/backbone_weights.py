"""Strict loading of a pre-trained backbone, with a report of every key."""

from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import get_torch_safe_globals
from torch import Tensor, nn

# Where a backbone's weights may sit in a file, by the encoder that is asked for. A file
# without any of these is taken for a bare backbone.
PREFIXES = {
    'momentum': ('momentum_encoder.backbone.', 'backbone.'),
    'query': ('backbone.',),
}


def load_backbone(
    backbone: nn.Module,
    file: str | Path,
    source: str = 'momentum',
    dropped: tuple[str, ...] = (),
    new: tuple[str, ...] = (),
) -> None:
    """Load all of a checkpoint's backbone, or nothing.

    Args:
        backbone: A ViT with mmpretrain's parameter names. Its position embedding
            may have another size than the checkpoint's; it is then interpolated.
        file: A pre-training checkpoint of ours, or a file with a backbone's weights.
        source: ``'momentum'`` or ``'query'``: which encoder of a pre-training
            checkpoint. One without a momentum encoder gives its only one.
        dropped: Beginnings of keys that the file may have and ``backbone`` has no use for.
        new: Endings of keys that ``backbone`` has and the file need not have.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is missing, unexpected or of another shape, with all
            of them listed.
    """
    found, prefix = _take_backbone(_read(Path(file)), source)
    unused = [key for key in found if key.startswith(dropped)] if dropped else []
    weights = {key: value for key, value in found.items() if key not in unused}
    _interpolate(backbone, weights)
    expected = backbone.state_dict()
    fresh = [key for key in expected if key not in weights and key.endswith(new)] if new else []
    problems = [f'missing: {key}' for key in expected if key not in weights and key not in fresh]
    problems += [f'unexpected: {key}' for key in weights if key not in expected]
    problems += [
        f'shape: {key} is {tuple(value.shape)} in the file and {tuple(expected[key].shape)} here'
        for key, value in weights.items()
        if key in expected and value.shape != expected[key].shape
    ]
    if problems:
        listed = '\n  '.join(problems[:30])
        more = f'\n  ... and {len(problems) - 30} more' if len(problems) > 30 else ''
        raise ValueError(
            f'{file} does not fit this backbone: {len(problems)} of its keys'
            f" (under '{prefix}') differ and nothing was loaded. Give the backbone the arch and "
            f'patch_size of the pre-training, or name another file:\n  {listed}{more}'
        )
    backbone.load_state_dict(expected | weights)
    MMLogger.get_current_instance().info(
        f"backbone loaded from {file} ('{prefix}*'): {len(weights)} keys used, "
        f'dropped on purpose: {", ".join(unused) or "none"}, '
        f'new: {len(fresh)} ({", ".join(fresh[:2]) + ", ..." if fresh else "none"})'
    )


def _read(file: Path) -> Mapping[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(
            f'there is no checkpoint {file}; set model.backbone.checkpoint to a pre-training '
            'checkpoint (work_dirs/.../epoch_*.pth) or to a converted backbone, or to None to '
            'start from random weights.'
        )
    with torch.serialization.safe_globals(get_torch_safe_globals()):
        content = torch.load(file, map_location='cpu', weights_only=True)
    return content.get('state_dict', content)


def _take_backbone(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], str]:
    """The backbone's keys without their prefix, and the prefix."""
    if source not in PREFIXES:
        raise ValueError(f"backbone.source is {source!r}; it must be 'momentum' or 'query'.")
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    for prefix in PREFIXES[source]:
        inside = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        if inside:
            return inside, prefix
    return state, ''


def _interpolate(backbone: nn.Module, weights: dict[str, Tensor]) -> None:
    """Bring the position embedding to the backbone's size, by mmpretrain's own rule."""
    position = weights.get('pos_embed')
    if position is None or position.shape[-1] != backbone.pos_embed.shape[-1]:
        return
    backbone._prepare_pos_embed(weights, prefix='')
