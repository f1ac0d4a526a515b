"""A picture of what PatchMix does: sources, mixtures, where patches came from, and the target."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor

from mmpatchmix.models.mixing import Target


def to_picture(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Make normalised images visible.

    Three channels are shown as the colours they are. Of another number the first, or the first
    three, is shown with 2.5 standard deviations below and above the mean as black and white.

    Args:
        images: ``(N, C, H, W)`` float, normalised.
        mean: ``(C, 1, 1)``, on the scale 0-255.
        std: ``(C, 1, 1)``, likewise.

    Returns:
        ``(N, 3, H, W)`` in about [0, 1].
    """
    num_channels = images.shape[1]
    if num_channels == 3:
        return (images * std + mean) / 255
    shown = images[:, :3] if num_channels > 3 else images[:, :1].expand(-1, 3, -1, -1)
    return shown / 5 + 0.5


def draw_mixed(
    sources: Tensor,
    mixed: Tensor,
    groups: Tensor | None,
    patch_size: int,
    target: Target | None = None,
) -> Figure:
    """Draw one mix, an image a column.

    Row 1 shows the images in frames of their own colours, row 2 the mixtures,
    row 3 the origin of each patch in those colours, row 4 the row of the target: how similar
    the mixture is to be to each image.

    Args:
        sources: ``(N, 3, H, W)`` float, RGB in [0, 1], on the CPU.
        mixed: ``(N, 3, H, W)``, likewise.
        groups: ``(T,)`` int64, the groups of the mix; None, of a mix by other than patches,
            leaves out row 3.
        patch_size: Of the mix, in pixels.
        target: Offsets and weights, see :mod:`mmpatchmix.models.mixing`; None leaves out row 4.

    Returns:
        Axes in reading order, N in a row.
    """
    num_images, _, height, width = sources.shape
    colours = colormaps['tab10'](np.arange(num_images) % 10)[:, :3]  # (N, 3)
    labels = ['source images', 'mixed images']
    labels += ['source of each patch'] * (groups is not None) + ['target'] * (target is not None)
    size = 1.6 * num_images + 1.1, 1.87 * len(labels)
    figure = Figure(figsize=size, layout='constrained', dpi=110)
    axes = figure.subplots(len(labels), num_images, squeeze=False)
    for n in range(num_images):
        axes[0, n].imshow(sources[n].permute(1, 2, 0).clamp(0, 1), interpolation='nearest')
        axes[0, n].set_title(f'image {n}', color=colours[n], fontsize=10, fontweight='bold')
        axes[1, n].imshow(mixed[n].permute(1, 2, 0).clamp(0, 1), interpolation='nearest')
        for spine in axes[0, n].spines.values():
            spine.set(edgecolor=colours[n], linewidth=3)
    title = 'a mix of images of the batch'
    if groups is not None:
        rows, columns = height // patch_size, width // patch_size
        origin = (torch.arange(num_images)[:, None] + groups.cpu()).remainder(num_images)
        _draw_origin(axes[2], origin.view(num_images, rows, columns).numpy(), colours)
        title = (
            f'PatchMix: each mixed image takes its {rows * columns} patches from '
            f'{int(groups.max()) + 1} images of the batch'
        )
    for axis in axes[: len(labels) - (target is not None)].flat:
        axis.set(xticks=[], yticks=[])
    if target is not None:
        _draw_target(axes[-1], target, colours)
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=11)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_target(axes: np.ndarray, target: Target, colours: np.ndarray) -> None:
    """Draw how similar each mixture is to be to each image, in the images' colours."""
    num_images = len(axes)
    for n, axis in enumerate(axes):
        row = torch.zeros(num_images)
        offsets, weights = (part.cpu() for part in target)
        row.index_add_(0, (n + offsets) % num_images, weights.float())
        bars = axis.bar(range(num_images), row.numpy(), color=colours)
        labels = [f'{100 * value:.0f}%' if value else '' for value in row.tolist()]
        axis.bar_label(bars, labels, fontsize=8)
        axis.set(ylim=(0, 1.15), yticks=[], xticks=range(num_images))
        axis.tick_params(labelsize=8)


def _draw_origin(axes: np.ndarray, origin: np.ndarray, colours: np.ndarray) -> None:
    """Draw which image ``(N, rows, columns)`` each patch is of, in the images' colours."""
    for axis, numbers in zip(axes, origin, strict=True):
        axis.imshow(colours[numbers], interpolation='nearest')
        if max(numbers.shape) <= 8:  # larger grids leave no room for numbers
            for (row, column), index in np.ndenumerate(numbers):
                axis.text(
                    column, row, str(index), ha='center', va='center', color='white', fontsize=9
                )
