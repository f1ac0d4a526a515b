"""Figures of features: neighbours, attention, similarities, a t-SNE map, shares of mixes.

Arguments of the same name are alike: ``pictures (N, 3, H, W)`` in [0, 1], ``features (N, D)``,
L2-normalised, ``groups (N,)`` int64, classes or clusters, and their ``names``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

SAME, OTHER, PLAIN = (0.0, 0.62, 0.45), (0.84, 0.37, 0.0), (0.5, 0.5, 0.5)
_CELL, _FRAME, _GAP = 64, 4, 8  # pixels


def draw_neighbours(
    pictures: Tensor,
    features: Tensor,
    groups: Tensor | None,
    queries: Sequence[int],
    num_neighbours: int = 8,
) -> Figure:
    """Draw images and their nearest neighbours, a row each, the nearest first.

    The colour of a frame shows whether the class is the same (``groups`` None: unknown); the number
    is the cosine. ``queries`` are the indices of the images that start a row.
    """
    similarity = features[list(queries)] @ features.T  # (Q, N)
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf  # not its own neighbour
    cosines, nearest = similarity.topk(min(num_neighbours, len(pictures) - 1))
    cells, frames, texts = [], [], []
    for query, row, values in zip(queries, nearest.tolist(), cosines.tolist(), strict=True):
        colours = [PLAIN] * len(row)
        if groups is not None:
            colours = [SAME if groups[query] == groups[n] else OTHER for n in row]
        cells.append([query, *row])
        frames.append([PLAIN, *colours])
        texts.append(['image', *(f'{value:.2f}' for value in values)])
    title = 'images and their nearest neighbours, with the cosine similarity of their features'
    if groups is not None:
        title += '\ngreen: same class, orange: other class'
    return _draw_sheet(pictures, cells, frames, texts, title)


def draw_attention(pictures: Tensor, attention: Tensor) -> Figure:
    """Draw images, and below each the attention of the class token.

    Of ``attention (N, heads, rows, columns)`` the mean of the heads is drawn, relative to the
    largest weight of each image.
    """
    number = len(pictures)
    mean = attention.mean(1)  # (N, rows, columns)
    most = mean.amax((1, 2))
    large = F.interpolate((mean / most[:, None, None])[:, None], pictures.shape[-2:])[:, 0]
    heat = torch.from_numpy(colormaps['inferno'](large.numpy())[..., :3]).movedim(-1, 1).float()
    grey = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    both = torch.cat([pictures, 0.3 * grey + 0.7 * heat])  # (2 N, 3, H, W)
    cells = [list(range(number)), list(range(number, 2 * number))]
    texts = [[''] * number, [f'max {100 * value:.0f} %' for value in most.tolist()]]
    title = 'attention of the class token to the patches, last block, mean of the heads'
    return _draw_sheet(both, cells, [[PLAIN] * number] * 2, texts, title)


def draw_similar(
    picture: Tensor,
    others: Tensor,
    similarities: Mapping[str, Tensor],
    names: Sequence[str],
    name: str = '',
) -> Figure:
    """Draw the similarity of an image to others as bars, one colour per checkpoint.

    ``picture (3, H, W)`` has a ``name``, ``others (K, 3, H, W)`` have ``names``, and each
    checkpoint has cosines ``(K,)``.
    """
    number = len(others)
    figure = Figure(figsize=(7, 0.62 * number + 1.2), layout='constrained', dpi=110)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.6, 0.7, 5))
    left.imshow(picture.movedim(0, -1), interpolation='nearest')
    column = _tile(others, [[index] for index in range(number)], [[PLAIN]] * number)
    middle.imshow(column, aspect='auto', interpolation='nearest', extent=(0, 1, number, 0))
    for axis in (left, middle):
        axis.set(xticks=[], yticks=[])
    left.set_xlabel(name)
    height = 0.8 / len(similarities)
    for index, (checkpoint, values) in enumerate(similarities.items()):
        places = np.arange(number) + 0.1 + (index + 0.5) * height
        bars = right.barh(places, values.numpy(), height=0.92 * height, label=checkpoint)
        right.bar_label(bars, fmt='%.2f', fontsize=8, padding=2)
    lowest = min(float(values.nan_to_num().min()) for values in similarities.values())
    right.set(ylim=(number, 0), xlim=(min(0, 1.12 * lowest), 1.12), xlabel='cosine similarity')
    right.set_yticks(np.arange(number) + 0.5, names)
    if len(similarities) > 1:
        figure.legend(loc='outside lower center', fontsize=8)
    figure.suptitle('similarity of an image to others', fontsize=11)
    return figure


def draw_map(features: Tensor, groups: Tensor, names: Sequence[str]) -> Figure:
    """Draw a t-SNE of features, coloured by class or cluster; rows of NaN or infinity are left out.

    Near neighbours are meaningful in it; distances and sizes of groups are not.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    finite = features.isfinite().all(1)
    features, groups = F.normalize(features[finite].double(), dim=1).float(), groups[finite]
    title, places = f't-SNE of the features of {len(features)} images', np.zeros((len(groups), 2))
    # Its process crashes if the features, and so their principal components, are all equal.
    if len(features.round(decimals=5).unique(dim=0)) > 3:
        tsne = TSNE(perplexity=min(30.0, (len(features) - 1) / 3), init='pca', random_state=0)
        places = tsne.fit_transform(features.numpy())
    else:
        title += ': too few are different'
    figure = Figure(figsize=(8, 6.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    for index, group in enumerate(groups.unique().tolist()):
        part = places[(groups == group).numpy()]
        colour = colormaps['tab20'](index % 20)
        axis.scatter(*part.T, s=14, color=colour, label=names[group], linewidths=0)
    axis.set(xticks=[], yticks=[], title=title)
    figure.legend(loc='outside right upper', fontsize=9, markerscale=2)
    return figure


def draw_similarity_matrix(features: Tensor, groups: Tensor, names: Sequence[str]) -> Figure:
    """Draw the cosine of all pairs of images, ordered by class or cluster."""
    ordered = features[groups.argsort(stable=True)]
    found, sizes = groups.unique(return_counts=True)
    ends = sizes.cumsum(0).numpy()
    figure = Figure(figsize=(7.4, 6.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    image = axis.imshow(ordered @ ordered.T, cmap='viridis', interpolation='nearest')
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color='white', linewidth=0.5)
        axis.axvline(end - 0.5, color='white', linewidth=0.5)
    middles, labels = ends - sizes.numpy() / 2 - 0.5, [names[group] for group in found.tolist()]
    axis.set_xticks(middles, labels, rotation=90, fontsize=8)
    axis.set_yticks(middles, labels, fontsize=8)
    axis.set_title('cosine similarity of features, ordered by group')
    figure.colorbar(image)
    return figure


def draw_similarity(calibrations: Mapping[int, dict], agreement: dict[str, float] | None) -> Figure:
    """Draw predicted against true shares of mixes, and the class agreement of neighbours.

    ``calibrations``, by M, and ``agreement``, None without labels, are those that ``calibrate`` and
    ``class_agreement`` of :mod:`mmpatchmix.evaluation.similarity` return.
    """
    num_axes = bool(calibrations) + bool(agreement) or 1
    figure = Figure(figsize=(5.2 * num_axes, 4.6), layout='constrained', dpi=110)
    axes = iter(figure.subplots(1, num_axes, squeeze=False)[0])
    if calibrations:
        axis = next(axes)
        axis.plot([0, 1], [0, 1], color='0.6', linestyle='--', label='equal to the true share')
        for num_mix, calibration in calibrations.items():
            true, predicted, spread, _ = np.array(calibration['curve']).T
            (line,) = axis.plot(true, predicted, marker='o', label=f'mixes of {num_mix} images')
            low, high = predicted - spread, predicted + spread
            axis.fill_between(true, low, high, color=line.get_color(), alpha=0.12)
        axis.set(xlim=(0, 1), ylim=(0, 1), title='Shares of mixes predicted from similarity')
        axis.set(xlabel='true share of an image in the mix', ylabel='predicted share')
        axis.legend(loc='upper left')
    if agreement:
        axis, prefix = next(axes), 'precision_at_'
        names = [name for name in agreement if name.startswith(prefix)]
        heights = [100 * agreement[name] for name in names]
        bars = axis.bar([name.removeprefix(prefix) for name in names], heights, width=0.6)
        axis.bar_label(bars, fmt='%.1f')
        axis.set(xlabel='nearest images', ylabel='of the same class (%)', ylim=(0, 105))
        axis.set_title(f'Class agreement of neighbours, AUROC {agreement["auroc"]:.3f}')
    return figure


def _draw_sheet(
    pictures: Tensor,
    cells: Sequence[Sequence[int]],
    frames: Sequence[Sequence[tuple]],
    texts: Sequence[Sequence[str]],
    title: str,
) -> Figure:
    """Draw rows of framed images with a text above each, in a single axis for speed."""
    sheet = _tile(pictures, cells, frames)
    step = _CELL + 2 * _FRAME + 2 * _GAP
    height, width = (side / 110 for side in sheet.shape[:2])
    figure = Figure(figsize=(width, height + 0.5), layout='constrained', dpi=110)
    axis = figure.subplots()
    axis.imshow(sheet, interpolation='nearest')
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            place = (column + 0.5) * step, row * step + 2 * _GAP - 1
            axis.text(*place, text, ha='center', va='bottom', fontsize=8)
    axis.axis('off')
    axis.set_title(title, fontsize=9)
    return figure


def _tile(
    pictures: Tensor, cells: Sequence[Sequence[int]], frames: Sequence[Sequence[tuple]]
) -> np.ndarray:
    """Return a white sheet ``(H, W, 3)`` of images, by index, each in a frame of a colour."""
    small = F.interpolate(pictures, (_CELL, _CELL), mode='bilinear', antialias=True)
    small = small.clamp(0, 1).movedim(1, -1).numpy()  # (N, cell, cell, 3)
    framed = _CELL + 2 * _FRAME
    step = framed + 2 * _GAP
    sheet = np.ones((len(cells) * step, max(map(len, cells)) * step, 3), np.float32)
    for row, line in enumerate(cells):
        for column, number in enumerate(line):
            top, left = row * step + 2 * _GAP, column * step + _GAP
            sheet[top : top + framed, left : left + framed] = frames[row][column]
            top, left = top + _FRAME, left + _FRAME
            sheet[top : top + _CELL, left : left + _CELL] = small[number]
    return sheet
