"""A picture of what PatchMix does: sources, mixtures, and which patch came from where."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor


def draw_mixed(
    sources: Tensor, mixed: Tensor, groups: Tensor, patch_size: int, path: str | Path
) -> Figure:
    """Draw one mix, an image a column.

    Row 1 shows the images in frames of their own colours, row 2 the mixtures,
    row 3 the origin of each patch in those colours.

    Args:
        sources: ``(N, 3, H, W)`` float, RGB in [0, 1], on the CPU.
        mixed: ``(N, 3, H, W)``, likewise.
        groups: ``(T,)`` int64, the groups of the mix.
        patch_size: Of the mix, in pixels.
        path: PNG file to write; its folder must exist.

    Returns:
        What was written, with 3 x N axes in reading order.
    """
    num_images, _, height, width = sources.shape
    rows, columns = height // patch_size, width // patch_size
    colours = colormaps['tab10'](np.arange(num_images) % 10)[:, :3]  # (N, 3)
    origin = (torch.arange(num_images)[:, None] + groups).remainder(num_images)
    origin = origin.view(num_images, rows, columns).numpy()

    figure = Figure(figsize=(1.6 * num_images + 1.1, 5.6), layout='constrained', dpi=110)
    axes = figure.subplots(3, num_images, squeeze=False)
    for n in range(num_images):
        axes[0, n].imshow(sources[n].permute(1, 2, 0).clamp(0, 1), interpolation='nearest')
        axes[0, n].set_title(f'image {n}', color=colours[n], fontsize=10, fontweight='bold')
        axes[1, n].imshow(mixed[n].permute(1, 2, 0).clamp(0, 1), interpolation='nearest')
        axes[2, n].imshow(colours[origin[n]], interpolation='nearest')
        if max(rows, columns) <= 8:  # larger grids leave no room for numbers
            for (row, column), index in np.ndenumerate(origin[n]):
                axes[2, n].text(
                    column, row, str(index), ha='center', va='center', color='white', fontsize=9
                )
        for axis in axes[:, n]:
            axis.set(xticks=[], yticks=[])
        for spine in axes[0, n].spines.values():
            spine.set(edgecolor=colours[n], linewidth=3)
    for axis, label in zip(
        axes[:, 0], ('source images', 'mixed images', 'source of each patch'), strict=True
    ):
        axis.set_ylabel(label, fontsize=11)
    num_mix = int(groups.max()) + 1
    figure.suptitle(
        f'PatchMix: each mixed image takes its {rows * columns} patches from {num_mix} images of '
        'the batch',
        fontsize=11,
    )
    figure.savefig(path)
    return figure
