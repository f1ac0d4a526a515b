"""Objects as annotated and as found, and the average precision of each class."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

MIN_SCORE = 0.5


class Object(NamedTuple):
    """One object in an image.

    Attributes:
        mask: ``(H, W)``, not 0 where the object is.
        label: Number of its class.
        text: What is written beside it.
    """

    mask: np.ndarray
    label: int
    text: str


def draw_detections(
    images: Sequence[np.ndarray],
    truth: Sequence[Sequence[Object]],
    found: Sequence[Sequence[Object]],
) -> Figure:
    """Draw annotated objects, and below them those that were found; a column for each image.

    Args:
        images: ``(H, W, 3)`` RGB or ``(H, W)``.
        truth: Objects of each image.
        found: Likewise.
    """
    figure = Figure(figsize=(2.6 * len(images), 5.6), layout='tight', dpi=110)
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (image, real, seen) in enumerate(zip(images, truth, found, strict=True)):
        draw_objects(axes[0, column], image, real)
        draw_objects(axes[1, column], image, seen)
    axes[0, 0].set_title('annotated', loc='left')
    axes[1, 0].set_title(f'found, score > {MIN_SCORE}', loc='left')
    return figure


def draw_objects(axis: Axes, image: np.ndarray, objects: Sequence[Object]) -> None:
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

    Args:
        metrics: Of mmdet's ``CocoMetric(classwise=True)``: ``coco/CLASS_precision``.

    Raises:
        ValueError: If there is none.
    """
    ending = '_precision'
    found = {
        name.removeprefix('coco/').removesuffix(ending): value
        for name, value in metrics.items()
        if name.endswith(ending)
    }
    if not found:
        raise ValueError('there is no precision of classes; CocoMetric needs classwise=True.')
    # Of a class that is not in the data set it is no number.
    names = sorted(found, key=lambda name: -np.nan_to_num(found[name], nan=-1))
    figure = Figure(figsize=(6.5, 0.24 * len(names) + 1.2), layout='constrained', dpi=110)
    axis = figure.subplots()
    bars = axis.barh(names, [100 * np.nan_to_num(found[name]) for name in names], height=0.7)
    labels = [f'{100 * found[n]:.1f}' if np.isfinite(found[n]) else 'not there' for n in names]
    axis.bar_label(bars, labels, fontsize=8, padding=2)
    axis.set(xlim=(0, 108), xlabel='AP of boxes (%)', title='average precision by class')
    axis.set_ylim(len(names) - 0.4, -0.6)
    return figure


def is_detection(runner: Any) -> bool:
    """Tell whether a Runner evaluates a detector on annotations of COCO's format."""
    cfg = runner.cfg
    loader = cfg.get('val_dataloader') if cfg.get('val_cfg') else cfg.get('test_dataloader')
    return bool(loader) and hasattr(_find_loop(runner).dataloader.dataset, 'cat2label')


def draw_found_objects(runner: Any, number: int) -> Figure:
    """Draw the first images of an evaluation with annotated objects, and with those found."""
    # Here, not above: pre-training needs none of it.
    import torch
    from mmengine.dataset import pseudo_collate
    from mmengine.fileio import get

    from mmpatchmix.evaluation.features import evaluation_mode

    dataset, model = _find_loop(runner).dataloader.dataset, runner.model
    names = dataset.metainfo['classes']
    images, truth, found = [], [], []
    for index in range(min(number, len(dataset))):
        info = dataset.get_data_info(index)
        with evaluation_mode(model), torch.no_grad():
            result = model.val_step(pseudo_collate([dataset[index]]))[0]
        with Image.open(io.BytesIO(get(info['img_path']))) as image:
            images.append(np.asarray(image.convert('RGB')))
        size = info['height'], info['width']
        truth.append([_annotated(instance, names, size) for instance in info['instances']])
        objects = result.pred_instances.cpu().numpy()
        objects = objects[objects.scores > MIN_SCORE]
        found.append(
            [
                Object(_mask(objects, row, size), int(label), f'{names[label]} {score:.2f}')
                for row, (label, score) in enumerate(
                    zip(objects.labels, objects.scores, strict=True)
                )
            ]
        )
    return draw_detections(images, truth, found)


def _find_loop(runner: Any) -> Any:
    return runner.val_loop if runner.cfg.get('val_cfg') else runner.test_loop


def _annotated(instance: dict, names: Sequence[str], size: tuple[int, int]) -> Object:
    """Make an object of mmdet's description of one, whose mask is polygons, an RLE or a box."""
    from pycocotools import mask as rle

    shape, label = instance.get('mask'), instance['bbox_label']
    if shape is None:
        return Object(_fill_box(instance['bbox'], size), label, names[label])
    if isinstance(shape, list):
        shape = rle.merge(rle.frPyObjects(shape, *size))
    elif isinstance(shape['counts'], list):
        shape = rle.frPyObjects(shape, *size)
    return Object(rle.decode(shape), label, names[label])


def _mask(objects: Any, row: int, size: tuple[int, int]) -> np.ndarray:
    return objects.masks[row] if 'masks' in objects else _fill_box(objects.bboxes[row], size)


def _fill_box(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    left, top, right, bottom = (max(0, round(float(value))) for value in box)
    mask[top:bottom, left:right] = 1
    return mask
