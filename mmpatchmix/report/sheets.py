"""Figures of training inputs (a mix, views), contact sheets of files, and PNG output."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mmengine.dataset import default_collate
from mmengine.runner import Runner
from mmengine.visualization.utils import img_from_canvas
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from mmpatchmix.datasets.decode_image import decode_image
from mmpatchmix.datasets.skip_unreadable import ERRORS
from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.files import printable
from mmpatchmix.models import PatchMix, PatchMixDataPreprocessor, unwrap_model
from mmpatchmix.models.mixing import Target

NUM_LOCAL = 2  # local crops of an image that are drawn
_SIDE, _TEXT, _GAP = 112, 16, 4  # pixels of a contact sheet


def check_picture_name(path: str | Path) -> Path:
    """Return the path of a picture; raise ``ValueError`` if it does not end in .png."""
    if Path(path).suffix.lower() != '.png':
        raise ValueError(f'{path} must end in .png, the format of all pictures.')
    return Path(path)


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file; its folder is created if missing."""
    path = check_picture_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def to_array(figure: Figure) -> np.ndarray:
    """Render a figure as ``(H, W, 3)`` uint8."""
    return img_from_canvas(FigureCanvasAgg(figure))


def to_picture(images: Tensor, preprocessor: PatchMixDataPreprocessor) -> Tensor:
    """Convert normalised images ``(N, C, H, W)`` to RGB ``(N, 3, H, W)`` in [0, 1] on the CPU.

    With other than three channels, the first three or the first one are drawn, with 2.5 standard
    deviations below and above the mean as black and white.
    """
    images, num_channels = images.float().cpu(), images.shape[1]
    if num_channels == 3:
        return ((images * preprocessor.std.cpu() + preprocessor.mean.cpu()) / 255).clamp(0, 1)
    shown = images[:, :3] if num_channels > 3 else images[:, :1].expand(-1, 3, -1, -1)
    return (shown / 5 + 0.5).clamp(0, 1)


def draw_mix(runner: Runner, num_images: int = 6) -> Figure:
    """Draw a mix of a few training images, of PatchMix only. Random states are kept."""
    preprocessor, inputs = _augment(runner, num_images)
    groups = inputs['groups']['view_2'] if 'groups' in inputs else None
    sources, mixed = (to_picture(inputs[n], preprocessor) for n in ('view_2', 'mixed_view_2'))
    return draw_mixed(sources, mixed, groups, preprocessor.patch_size, inputs['mix_to_source'])


def draw_views(runner: Runner, num_images: int = 8) -> Figure:
    """Draw the views of a few training images, of PatchMix only. Random states are kept."""
    preprocessor, inputs = _augment(runner, num_images)
    names = ('view_1', 'view_2', 'mixed_view_1', 'mixed_view_2')
    rows = {name.replace('_', ' '): inputs[name] for name in names}
    for name in ('local_views', 'mixed_local_views'):
        for number, views in enumerate(inputs.get(name, ())[:NUM_LOCAL], 1):
            rows[f'{name[:-1].replace("_", " ")} {number}'] = views
    num, channels, height, width = inputs['view_1'].shape
    size = 1.5 * num + 1, 1.5 * height / width * len(rows) + 0.5
    figure = Figure(figsize=size, layout='constrained', dpi=110)
    axes = figure.subplots(len(rows), num, squeeze=False)
    for axis_row, (name, views) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(axis_row, to_picture(views, preprocessor), strict=True):
            axis.imshow(picture.movedim(0, -1), interpolation='nearest')
            axis.set(xticks=[], yticks=[])
        axis_row[0].set_ylabel(name)
    note = '' if channels == 3 else f'; {channels} channels, shown: {3 if channels > 3 else 1}'
    figure.suptitle(f'views as the model reads them{note}', fontsize=10)
    return figure


def _augment(runner: Runner, num_images: int) -> tuple[PatchMixDataPreprocessor, dict]:
    """Load and augment training images, evenly spread, and return the model's inputs."""
    model, dataset = unwrap_model(runner.model), runner.train_dataloader.dataset
    if not isinstance(model, PatchMix):
        raise ValueError(f'only PatchMix has mixed views; the model is a {type(model).__name__}.')
    with random_states_kept():
        num = min(num_images, len(dataset))
        batch = default_collate([dataset[index * len(dataset) // num] for index in range(num)])
        return model.data_preprocessor, model.data_preprocessor(batch, training=True)['inputs']


def draw_mixed(
    sources: Tensor,
    mixed: Tensor,
    groups: Tensor | None,
    patch_size: int,
    target: Target | None = None,
) -> Figure:
    """Draw one mix, a column per image.

    Row 1 shows ``sources`` in frames of different colours, row 2 ``mixed``, both ``(N, 3, H, W)``
    float, RGB in [0, 1], on the CPU; row 3 the source of each patch in these colours, from
    ``groups (T,)`` int64; row 4 the soft targets of each mixed image, from the offsets and weights
    of ``target``, see :mod:`mmpatchmix.models.mixing`. None omits row 3 or 4.
    """
    num_images, _, height, width = sources.shape
    colours = colormaps['tab10'](np.arange(num_images) % 10)[:, :3]  # (N, 3)
    labels = ['source images', 'mixed images']
    labels += ['source of each patch'] * (groups is not None) + ['target'] * (target is not None)
    size = 1.6 * num_images + 1.1, 1.87 * len(labels)
    figure = Figure(figsize=size, layout='constrained', dpi=110)
    axes = figure.subplots(len(labels), num_images, squeeze=False)
    for axis in axes[: len(labels) - (target is not None)].flat:
        axis.set(xticks=[], yticks=[])
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label, fontsize=11)
    for n in range(num_images):
        axes[0, n].imshow(sources[n].movedim(0, -1).clamp(0, 1), interpolation='nearest')
        axes[0, n].set_title(f'image {n}', color=colours[n], fontsize=10, fontweight='bold')
        axes[0, n].spines[:].set(edgecolor=colours[n], linewidth=3)
        axes[1, n].imshow(mixed[n].movedim(0, -1).clamp(0, 1), interpolation='nearest')
    title = 'a mix of images of the batch'
    if groups is not None:
        rows, columns = height // patch_size, width // patch_size
        origin = (torch.arange(num_images)[:, None] + groups.cpu()).remainder(num_images)
        _draw_origin(axes[2], origin.view(num_images, rows, columns).numpy(), colours)
        title = (
            f'PatchMix: each mixed image takes its {rows * columns} patches from '
            f'{int(groups.max()) + 1} images of the batch'
        )
    if target is not None:
        _draw_target(axes[-1], target, colours)
    figure.suptitle(title, fontsize=11)
    return figure


def _draw_origin(axes: np.ndarray, origin: np.ndarray, colours: np.ndarray) -> None:
    """Draw the source ``(N, rows, columns)`` of each patch in the colours of the images."""
    for axis, numbers in zip(axes, origin, strict=True):
        axis.imshow(colours[numbers], interpolation='nearest')
        if max(numbers.shape) <= 8:  # larger grids have no room for numbers
            for (row, column), index in np.ndenumerate(numbers):
                place = dict(ha='center', va='center', color='white', fontsize=9)
                axis.text(column, row, str(index), **place)


def _draw_target(axes: np.ndarray, target: Target, colours: np.ndarray) -> None:
    """Draw the soft targets of each mixed image as bars in the colours of the images."""
    offsets, weights = (part.cpu() for part in target)
    for n, axis in enumerate(axes):
        row = torch.zeros(len(axes)).index_add_(0, (n + offsets) % len(axes), weights.float())
        bars = axis.bar(range(len(axes)), row.numpy(), color=colours)
        labels = [f'{100 * value:.0f}%' if value else '' for value in row.tolist()]
        axis.bar_label(bars, labels, fontsize=8)
        axis.set(ylim=(0, 1.15), yticks=[], xticks=range(len(axes)))
        axis.tick_params(labelsize=8)


def draw_contact_sheet(rows: Sequence[Sequence[tuple[str | Path, str]]], path: str | Path) -> None:
    """Write a PNG file of rows of images (file and text), as squares; grey if unreadable."""
    width, height = _SIDE + _GAP, _SIDE + _TEXT + _GAP
    size = max(map(len, rows)) * width + _GAP, len(rows) * height + _GAP
    sheet = Image.new('RGB', size, 'white')
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for y, row in enumerate(rows):
        for x, (file, text) in enumerate(row):
            text = printable(text)
            corner = _GAP + x * width, _GAP + y * height
            sheet.paste(_make_thumbnail(file), corner)
            while text and draw.textlength(text, font) > _SIDE:
                text = text[1:]  # keeps the end of a long name
            draw.text((corner[0], corner[1] + _SIDE + 1), text, 'black', font)
    sheet.save(path)


def _make_thumbnail(file: str | Path) -> Image.Image:
    try:
        with suppress(UnidentifiedImageError), Image.open(file) as image:
            if image.mode[0] not in 'IF':  # which Pillow would clip to 8 bits
                image.draft('RGB', (2 * _SIDE, 2 * _SIDE))  # decodes JPEGs at a smaller size
                return ImageOps.fit(ImageOps.exif_transpose(image).convert('RGB'), (_SIDE, _SIDE))
        values = decode_image(Path(file).read_bytes(), str(file)).values  # (H, W, C)
        values = values[:, :, :3] if values.shape[2] > 2 else values[:, :, 0]
        values = cv2.normalize(values.astype(np.float32), None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)
        return ImageOps.fit(Image.fromarray(values).convert('RGB'), (_SIDE, _SIDE))
    except (*ERRORS, ValueError):
        return Image.new('RGB', (_SIDE, _SIDE), 'grey')
