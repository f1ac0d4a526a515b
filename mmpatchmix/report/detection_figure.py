"""Figures of a detector: annotated and detected objects, average precision by class."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from mmpatchmix.evaluation.features import evaluation_mode

MIN_SCORE = 0.5


class Object(NamedTuple):
    """One object in an image."""

    mask: np.ndarray  # (H, W), not 0 on the object
    label: int
    text: str  # drawn beside it


def draw_detections(
    images: Sequence[np.ndarray],
    truth: Sequence[Sequence[Object]],
    found: Sequence[Sequence[Object]],
) -> Figure:
    """Draw annotated objects, and below them detected ones, on images ``(H, W[, 3])``."""
    figure = Figure(figsize=(2.6 * len(images), 5.6), layout='tight', dpi=110)
    axes = figure.subplots(2, len(images), squeeze=False)
    for row, objects in zip(axes, (truth, found), strict=True):
        for axis, image, each in zip(row, images, objects, strict=True):
            _draw_objects(axis, image, each)
    axes[0, 0].set_title('annotated', loc='left')
    axes[1, 0].set_title(f'detected, score > {MIN_SCORE}', loc='left')
    return figure


def _draw_objects(axis: Axes, image: np.ndarray, objects: Sequence[Object]) -> None:
    """Draw an image, and masks on it in the colours of their classes."""
    axis.imshow(image, cmap='gray' if image.ndim == 2 else None)
    axis.axis('off')
    for mask, label, text in objects:
        colour = colormaps['tab10'](label % 10)
        layer = np.zeros((*mask.shape, 4))
        layer[mask > 0] = (*colour[:3], 0.6)
        axis.imshow(layer)
        rows, columns = np.nonzero(mask)
        if len(rows):
            box = dict(facecolor='black', alpha=0.6, pad=0.5, edgecolor='none')
            axis.text(columns.min(), rows.min(), text, color=colour, fontsize=8, bbox=box)


def draw_class_precision(metrics: Mapping[str, float]) -> Figure:
    """Draw the average precision of boxes of each class, the best first.

    ``metrics`` have ``coco/CLASS_precision`` of mmdet's ``CocoMetric(classwise=True)``.
    """
    found = {n: value for n, value in metrics.items() if n.endswith('_precision')}
    found = {n.removeprefix('coco/').removesuffix('_precision'): v for n, v in found.items()}
    if not found:
        raise ValueError('there is no precision of classes; CocoMetric needs classwise=True.')
    # NaN for classes without annotated objects.
    names = sorted(found, key=lambda name: -np.nan_to_num(found[name], nan=-1))
    figure = Figure(figsize=(6.5, 0.24 * len(names) + 1.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    bars = axis.barh(names, [100 * np.nan_to_num(found[name]) for name in names], height=0.7)
    labels = [f'{100 * found[n]:.1f}' if np.isfinite(found[n]) else 'no objects' for n in names]
    axis.bar_label(bars, labels, fontsize=8, padding=2)
    axis.set(xlim=(0, 108), xlabel='AP of boxes (%)', title='average precision by class')
    axis.set_ylim(len(names) - 0.4, -0.6)
    return figure


def is_detection(runner: Runner) -> bool:
    """Return whether a Runner evaluates a detector on annotations in COCO's format."""
    return hasattr(find_evaluated(runner), 'cat2label')


def find_evaluated(runner: Runner) -> Any:
    """Return the data set of the evaluation during training or after it; None without one."""
    loop = runner.val_loop or runner.test_loop
    return loop.dataloader.dataset if loop else None


def draw_found_objects(runner: Runner, number: int) -> Figure:
    """Draw the first images of an evaluation with annotated and detected objects."""
    dataset, model = find_evaluated(runner), runner.model
    names = dataset.metainfo['classes']
    images, truth, found = [], [], []
    for index in range(min(number, len(dataset))):
        info = dataset.get_data_info(index)
        with evaluation_mode(model), torch.no_grad():
            result = model.val_step(pseudo_collate([dataset[index]]))[0]
        images.append(dataset.pipeline.transforms[0](dict(info))['img'][..., ::-1])  # loaded, BGR
        size = info['height'], info['width']
        truth.append([_read_annotation(each, names, size) for each in info['instances']])
        objects = result.pred_instances.cpu().numpy()
        objects = objects[objects.scores > MIN_SCORE]
        masks = objects.get('masks', [_fill_box(box, size) for box in objects.bboxes])
        texts = [f'{names[n]} {s:.2f}' for n, s in zip(objects.labels, objects.scores, strict=True)]
        found.append([*map(Object, masks, objects.labels.tolist(), texts)])
    return draw_detections(images, truth, found)


def _read_annotation(instance: dict, names: Sequence[str], size: tuple[int, int]) -> Object:
    """Read mmdet's description of an object, whose mask is polygons, an RLE or a box."""
    from pycocotools import mask as rle  # pre-training does not need it

    shape, label = instance.get('mask'), instance['bbox_label']
    if shape is None:
        return Object(_fill_box(instance['bbox'], size), label, names[label])
    if isinstance(shape, list):
        shape = rle.merge(rle.frPyObjects(shape, *size))
    elif isinstance(shape['counts'], list):
        shape = rle.frPyObjects(shape, *size)
    return Object(rle.decode(shape), label, names[label])


def _fill_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    left, top, right, bottom = (max(0, round(float(value))) for value in box)
    mask[top:bottom, left:right] = 1
    return mask
