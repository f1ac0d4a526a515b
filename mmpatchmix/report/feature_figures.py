"""Figures of what a network makes of images: neighbours, similarities, a map, attention."""

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
    """Draw images and the nearest others, a row each, the nearest first.

    Frames tell whether a neighbour is of the same class; the number above is the cosine.

    Args:
        pictures: ``(N, 3, H, W)`` in [0, 1].
        features: ``(N, D)``, of length 1.
        groups: ``(N,)``, classes; None without labels.
        queries: Which images to begin rows with.
        num_neighbours: Of each.
    """
    similarity = features[list(queries)] @ features.T  # (Q, N)
    similarity[torch.arange(len(queries)), list(queries)] = -torch.inf  # itself comes last
    number = min(num_neighbours, len(pictures) - 1)
    cosines, nearest = similarity.topk(number)
    cells, frames, texts = [], [], []
    for query, row, values in zip(queries, nearest.tolist(), cosines.tolist(), strict=True):
        cells.append([query, *row])
        same = [None if groups is None else bool(groups[query] == groups[n]) for n in row]
        frames.append([PLAIN, *({None: PLAIN, True: SAME, False: OTHER}[each] for each in same)])
        texts.append(['image', *(f'{value:.2f}' for value in values)])
    title = 'images, and those nearest to them with the cosine similarity of their features'
    if groups is not None:
        title += '\ngreen: of the same class, orange: of another'
    return _draw_sheet(pictures, cells, frames, texts, title)


def draw_attention(pictures: Tensor, attention: Tensor) -> Figure:
    """Draw images, and below each where the class token looks.

    Args:
        pictures: ``(N, 3, H, W)`` in [0, 1].
        attention: ``(N, heads, rows, columns)``; the mean of the heads is drawn, the most that
            any patch of an image gets as bright yellow.
    """
    number = len(pictures)
    mean = attention.mean(1)  # (N, rows, columns)
    mean = mean / mean.amax((1, 2), keepdim=True)
    large = F.interpolate(mean[:, None], pictures.shape[-2:], mode='nearest')[:, 0]
    heat = torch.from_numpy(colormaps['inferno'](large.numpy())[..., :3]).movedim(-1, 1).float()
    grey = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    both = torch.cat([pictures, 0.3 * grey + 0.7 * heat])  # (2 N, 3, H, W)
    cells = [list(range(number)), list(range(number, 2 * number))]
    frames = [[PLAIN] * number] * 2
    most = attention.mean(1).amax((1, 2)).tolist()
    texts = [[''] * number, [f'max {100 * value:.0f} %' for value in most]]
    title = 'attention of the class token to the patches, last block, mean of the heads'
    return _draw_sheet(both, cells, frames, texts, title)


def draw_similar(
    picture: Tensor,
    others: Tensor,
    similarities: Mapping[str, Tensor],
    names: Sequence[str] = (),
    name: str = '',
) -> Figure:
    """Draw how similar an image is to others: a bar beside each, one colour per checkpoint.

    Args:
        picture: ``(3, H, W)`` in [0, 1].
        others: ``(K, 3, H, W)``.
        similarities: Of each checkpoint ``(K,)`` cosines.
        names: K, what the others are called.
        name: What the image is called.
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
    lowest = min(0.0, *(float(values.min()) for values in similarities.values()))
    right.set(ylim=(number, 0), xlim=(1.12 * lowest, 1.12), xlabel='cosine similarity')
    right.set_yticks(np.arange(number) + 0.5 if names else [], names)
    if len(similarities) > 1:
        figure.legend(loc='outside lower center', fontsize=8)
    figure.suptitle('an image, others, and how similar the network finds them', fontsize=11)
    return figure


def draw_map(features: Tensor, groups: Tensor, names: Sequence[str], seed: int = 0) -> Figure:
    """Draw a map on which images with similar features are near, coloured by class or cluster.

    The map is a t-SNE: near neighbours mean something, distances and sizes of groups do not.

    Args:
        features: ``(N, D)``, N at least 3.
        groups: ``(N,)`` int64.
        names: Of the groups.
        seed: Of the t-SNE.
    """
    from sklearn.manifold import TSNE  # takes a second to import

    perplexity = min(30.0, (len(features) - 1) / 3)
    places = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform(
        features.numpy()
    )
    figure = Figure(figsize=(8, 6.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    for index, group in enumerate(groups.unique().tolist()):
        part = places[(groups == group).numpy()]
        colour = colormaps['tab20'](index % 20)
        axis.scatter(*part.T, s=14, color=colour, label=names[group], linewidths=0)
    axis.set(xticks=[], yticks=[], title=f't-SNE of the features of {len(features)} images')
    figure.legend(loc='outside right upper', fontsize=9, markerscale=2)
    return figure


def draw_similarity_matrix(features: Tensor, groups: Tensor, names: Sequence[str]) -> Figure:
    """Draw the cosine of each image with each other, ordered by class or cluster.

    Args:
        features: ``(N, D)``, of length 1.
        groups: ``(N,)`` int64.
        names: Of the groups.
    """
    order = groups.argsort(stable=True)
    values = (features[order] @ features[order].T).numpy()
    sizes = groups.unique(return_counts=True)
    ends = sizes[1].cumsum(0).numpy()
    figure = Figure(figsize=(7.4, 6.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    image = axis.imshow(values, cmap='viridis', interpolation='nearest')
    for end in ends[:-1]:
        axis.axhline(end - 0.5, color='white', linewidth=0.5)
        axis.axvline(end - 0.5, color='white', linewidth=0.5)
    middles = ends - sizes[1].numpy() / 2 - 0.5
    labels = [names[group] for group in sizes[0].tolist()]
    axis.set_xticks(middles, labels, rotation=90, fontsize=8)
    axis.set_yticks(middles, labels, fontsize=8)
    axis.set_title('cosine similarity of features, ordered by group')
    figure.colorbar(image)
    return figure


def _draw_sheet(
    pictures: Tensor,
    cells: Sequence[Sequence[int]],
    frames: Sequence[Sequence[tuple]],
    texts: Sequence[Sequence[str]],
    title: str,
) -> Figure:
    """Draw rows of framed images with a text above each, in one axis, which is quick."""
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
    """Lay images, by number, on a white sheet ``(H, W, 3)``, each in a frame of a colour."""
    num_rows, num_columns = len(cells), max(map(len, cells))
    small = F.interpolate(pictures, (_CELL, _CELL), mode='bilinear', antialias=True)
    small = small.clamp(0, 1).movedim(1, -1).numpy()  # (N, cell, cell, 3)
    framed = _CELL + 2 * _FRAME
    step = framed + 2 * _GAP
    sheet = np.ones((num_rows * step, num_columns * step, 3), np.float32)
    for row, line in enumerate(cells):
        for column, number in enumerate(line):
            top, left = row * step + 2 * _GAP, column * step + _GAP
            sheet[top : top + framed, left : left + framed] = frames[row][column]
            top, left = top + _FRAME, left + _FRAME
            sheet[top : top + _CELL, left : left + _CELL] = small[number]
    return sheet


def draw_similarity(calibrations: Mapping[int, dict], agreement: dict[str, float] | None) -> Figure:
    """Draw predicted against true shares, and how many of the nearest images share the class.

    Args:
        calibrations: By ``M``, from :func:`mmpatchmix.evaluation.similarity.calibrate`.
        agreement: From :func:`mmpatchmix.evaluation.similarity.class_agreement`; None without
            labels.
    """
    num_axes = bool(calibrations) + bool(agreement)
    figure = Figure(figsize=(5.2 * num_axes, 4.6), layout='constrained', dpi=110)
    axes = iter(figure.subplots(1, num_axes, squeeze=False)[0])
    if calibrations:
        axis = next(axes)
        axis.plot([0, 1], [0, 1], color='0.6', linestyle='--', label='as the shares say')
        for num_mix, calibration in calibrations.items():
            true, predicted, spread, _ = zip(*calibration['curve'], strict=True)
            (line,) = axis.plot(true, predicted, marker='o', label=f'mixes of {num_mix} images')
            low, high = zip(
                *((p - s, p + s) for p, s in zip(predicted, spread, strict=True)), strict=True
            )
            axis.fill_between(true, low, high, color=line.get_color(), alpha=0.12)
        axis.set(
            xlabel='true share of an image in the mix',
            ylabel='share that similarity tells',
            title='Is a mix as similar as its shares say?',
            xlim=(0, 1),
            ylim=(0, 1),
        )
        axis.legend(loc='upper left')
    if agreement:
        axis = next(axes)
        found = {
            name.rpartition('_')[2]: value
            for name, value in agreement.items()
            if name.startswith('precision_at_')
        }
        bars = axis.bar(list(found), [100 * value for value in found.values()], width=0.6)
        axis.bar_label(bars, fmt='%.1f')
        axis.set(
            xlabel='nearest images',
            ylabel='of the same class (%)',
            title=f'Do similar images share a class? AUROC {agreement["auroc"]:.3f}',
            ylim=(0, 105),
        )
    return figure
