"""A picture of what PatchMix does: sources, mixtures, and which patch came from where."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor


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
    sources: Tensor, mixed: Tensor, groups: Tensor | None, patch_size: int, path: str | Path
) -> Figure:
    """Draw one mix, an image a column.

    Row 1 shows the images in frames of their own colours, row 2 the mixtures,
    row 3 the origin of each patch in those colours.

    Args:
        sources: ``(N, 3, H, W)`` float, RGB in [0, 1], on the CPU.
        mixed: ``(N, 3, H, W)``, likewise.
        groups: ``(T,)`` int64, the groups of the mix; None, of a mix by other than patches,
            leaves out row 3.
        patch_size: Of the mix, in pixels.
        path: PNG file to write; its folder must exist.

    Returns:
        What was written, with 3 x N or 2 x N axes in reading order.
    """
    num_images, _, height, width = sources.shape
    colours = colormaps['tab10'](np.arange(num_images) % 10)[:, :3]  # (N, 3)
    labels = ['source images', 'mixed images', 'source of each patch'][: 2 if groups is None else 3]
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
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=11)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path)
    return figure


def _draw_origin(axes: np.ndarray, origin: np.ndarray, colours: np.ndarray) -> None:
    """Draw which image ``(N, rows, columns)`` each patch is of, in the images' colours."""
    for axis, numbers in zip(axes, origin, strict=True):
        axis.imshow(colours[numbers], interpolation='nearest')
        if max(numbers.shape) <= 8:  # larger grids leave no room for numbers
            for (row, column), index in np.ndenumerate(numbers):
                axis.text(
                    column, row, str(index), ha='center', va='center', color='white', fontsize=9
                )
