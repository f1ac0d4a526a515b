"""Bring figures to a file or to the visualizer of a run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dataset import default_collate
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.models.mixing import Target


def check_picture_name(path: str | Path) -> Path:
    """Return the path of a picture.

    Raises:
        ValueError: If it does not end in .png.
    """
    if Path(path).suffix.lower() != '.png':
        raise ValueError(f'{path} must end in .png: pictures are written as that.')
    return Path(path)


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, and its folder if need be."""
    path = check_picture_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def to_array(figure: Figure) -> np.ndarray:
    """Draw a figure into ``(H, W, 3)`` uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


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


_SIDE, _TEXT, _GAP = 112, 16, 4


def draw_contact_sheet(
    rows: Sequence[Sequence[tuple[str | Path, str]]], path: str | Path
) -> Image.Image:
    """Draw rows of images, cut to squares; one that cannot be opened is a grey one.

    Args:
        rows: Of each image its file and its text.
        path: PNG file to write.

    Returns:
        What was written.
    """
    width, height = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    size = max(map(len, rows)) * width + _GAP, len(rows) * height + _GAP
    sheet = Image.new('RGB', size, 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for y, row in enumerate(rows):
        for x, (file, text) in enumerate(row):
            corner = _GAP + x * width, _GAP + y * height
            sheet.paste(_thumbnail(file), corner)
            while text and draw.textlength(text, font) > _SIDE:
                text = text[1:]  # the end of a name tells more than its folders
            draw.text((corner[0], corner[1] + _SIDE + 1), text, 'black', font)
    sheet.save(path)
    return sheet


def _thumbnail(file: str | Path) -> Image.Image:
    try:
        with Image.open(file) as image:
            image.draft('RGB', (2 * _SIDE, 2 * _SIDE))  # JPEGs are read smaller, which is quicker
            upright = ImageOps.exif_transpose(image).convert('RGB')
            return ImageOps.fit(upright, (_SIDE, _SIDE))
    except OSError:
        return Image.new('RGB', (_SIDE, _SIDE), 'grey')


NUM_LOCAL = 2  # local crops of an image that are shown


def draw_views(runner, num_images: int = 8) -> Figure:
    """Draw the views of a few training images, an image a column. Random states are kept.

    Args:
        runner: With a train loader.
        num_images: Images to show, spread evenly over the training set.

    Raises:
        ValueError: If the model is no PatchMix.
    """
    model = unwrap_model(runner.model)
    if not isinstance(model, PatchMix):
        raise ValueError(f'only PatchMix has views; the model is a {type(model).__name__}.')
    dataset, preprocessor = runner.train_dataloader.dataset, model.data_preprocessor
    with random_states_kept():
        num = min(num_images, len(dataset))
        samples = [dataset[index * len(dataset) // num] for index in range(num)]
        inputs = preprocessor(default_collate(samples), training=True)['inputs']
    rows = _choose_rows(inputs)
    mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
    height, width = inputs['view_1'].shape[-2:]
    cell = 1.5, 1.5 * height / width
    figure = Figure(
        figsize=(cell[0] * num + 1, cell[1] * len(rows) + 0.5), layout='constrained', dpi=110
    )
    axes = figure.subplots(len(rows), num, squeeze=False)
    for axis_row, (name, views) in zip(axes, rows.items(), strict=True):
        pictures = to_picture(views.float().cpu(), mean, std).clamp(0, 1).movedim(1, -1)
        for axis, picture in zip(axis_row, pictures, strict=True):
            axis.imshow(picture, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
        axis_row[0].set_ylabel(name)
    channels = preprocessor.num_channels
    note = '' if channels == 3 else f'; {channels} channels, shown: {"3" if channels > 3 else "1"}'
    figure.suptitle(f'views as the model sees them{note}', fontsize=10)
    return figure


def _choose_rows(inputs: dict) -> dict[str, Tensor]:
    """Return ``(N, C, H, W)`` views by what is written beside them."""
    names = ('view_1', 'view_2', 'mixed_view_1', 'mixed_view_2')
    rows = {name.replace('_', ' '): inputs[name] for name in names}
    for name in ('local_views', 'mixed_local_views'):
        for number, views in enumerate(inputs.get(name, ())[:NUM_LOCAL], 1):
            rows[f'{name[:-1].replace("_", " ")} {number}'] = views
    return rows
