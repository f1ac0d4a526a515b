"""COCO annotation files, compared with the config, the images and the heads before training.

Needs mmdet, so ``mmpatchmix.datasets`` does not import it; the detection recipes do.
"""

import io
import json
import math
import os.path as osp
import shlex
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset as UpstreamDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.fileio import get
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS as ALL_DATASETS
from mmengine.runner import Runner
from PIL import ExifTags, Image

from mmpatchmix.datasets.skip_unreadable import ERRORS, SkipUnreadable
from mmpatchmix.registry import DATASETS

NUM_SIZES = 1000  # images of a file whose size is compared
NEEDED = ('id', 'image_id', 'category_id', 'bbox', 'area')
# mmdet leaves these out in training: counted, not refused.
EMPTY = 'annotations have no area inside of their image'
NO_IMAGE = 'annotations are of images that are not listed'
FEW_POINTS = 'annotations have a polygon of an odd number of values or of fewer than three points'
OUTSIDE = 'annotations have a box that reaches out of its image (bbox is [x, y, width, height])'
LEFT_OUT = {EMPTY, NO_IMAGE, FEW_POINTS, OUTSIDE}


class CocoFileError(ValueError):
    """An annotation file does not fit; ``classes`` are those to write into the config."""

    def __init__(self, message: str, classes: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.classes = list(classes)


@DATASETS.register_module()
class CocoDataset(SkipUnreadable, UpstreamDataset):
    """mmdet's ``CocoDataset`` that checks its annotation file and skips unreadable images.

    Takes the arguments of mmdet's class and ``max_unreadable``, as in :class:`SkipUnreadable`. In
    evaluation an unreadable image is replaced by a black one of the recorded size: every image is
    evaluated once, and the objects of unreadable ones count as missed.
    """

    def COCOAPI(self, path: str) -> COCO:
        """Return mmdet's index of an annotation file, which is parsed once and checked."""
        coco = COCO()
        coco.dataset = read_coco(self, path)
        coco.createIndex()
        coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs
        return coco

    def prepare_data(self, idx: int) -> dict | None:
        """Run the pipeline on one sample; None, which mmengine replaces, for an unreadable one."""
        data = self._run_pipeline(idx)
        if data is not None or not self.test_mode:
            return data
        data = self.get_data_info(idx)
        shape = data['height'], data['width']
        data.update(img=np.zeros((*shape, 3), np.uint8), img_shape=shape, ori_shape=shape)
        for transform in self.pipeline.transforms:
            if not isinstance(transform, LoadImageFromFile):
                data = transform(data)
        return data


def check_coco_files(runner: Runner) -> None:
    """Check data sets, metrics and heads of a detection run against each other.

    Builds the loops for training and validation. Does nothing without COCO data for training.

    Raises:
        CocoFileError: With the ``--cfg-options`` that set the classes and their number.
    """
    names = ['train_dataloader', 'val_dataloader', 'test_dataloader']
    found = {key: node for name in names for key, node in _find_coco(runner.cfg.get(name), name)}
    if not any(key.startswith(names[0]) for key in found):
        return
    heads = {
        f'model.{name}.num_classes': module.num_classes
        for name, module in runner.model.named_modules()
        if ('head' in name) and isinstance(getattr(module, 'num_classes', None), int)
        if not (getattr(module, 'class_agnostic', False) or 'rpn' in name or 'semantic' in name)
    }
    try:
        for key, node in found.items():
            if node['type'] == 'CocoDataset' and not key.startswith(names[2]):
                dataset = ALL_DATASETS.build(dict(node, lazy_init=True))
                read_coco(dataset, dataset.ann_file)
        classes = list(runner.train_loop.dataloader.dataset.metainfo['classes'])
        loop = runner.val_loop
        for metric in getattr(getattr(loop, 'evaluator', None), 'metrics', ()):
            if api := getattr(metric, '_coco_api', None):
                check_coco(api.dataset, 'val_evaluator.ann_file', classes, 'segm' in metric.metrics)
        if loop and list(judged := loop.dataloader.dataset.metainfo['classes']) != classes:
            both = f'{_show(classes)} and {_show(judged)}'
            raise CocoFileError(f'data sets for training and evaluation differ: {both}', classes)
        if wrong := [f'{key}={value}' for key, value in heads.items() if value != len(classes)]:
            raise CocoFileError(f'{", ".join(wrong)}: there are {_show(classes)}', classes)
    except CocoFileError as error:
        if not error.classes:
            raise
        value = f'metainfo=dict(classes={json.dumps(error.classes, ensure_ascii=False)})'
        options = [shlex.quote(f'{key}.{value}') for key in found]
        options += [f'{key}={len(error.classes)}' for key in heads]
        raise ValueError(f'{error}\nTo set them: --cfg-options {" ".join(options)}') from error


def read_coco(dataset: UpstreamDataset, path: str) -> dict:
    """Parse an annotation file and check it against its data set and up to 1,000 images."""
    try:
        data = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} cannot be parsed as JSON: {error}') from error
    transforms = dataset.pipeline.transforms
    with_mask = any(getattr(each, 'with_mask', False) for each in transforms)
    check_coco(data, path, dataset.metainfo['classes'], with_mask, dataset.test_mode)
    for load in [each for each in transforms if isinstance(each, LoadImageFromFile)][:1]:
        _check_sizes(data['images'], path, dataset.data_prefix['img'], load)
    return data


def check_coco(
    data: dict, path: str, classes: Sequence[str], with_mask: bool, evaluates: bool = True
) -> None:
    """Check categories of a parsed annotation file against the classes, images and annotations.

    Logs both lists of classes, and the number of annotations that mmdet leaves out.

    Raises:
        CocoFileError: If the classes differ.
        ValueError: With the number of faulty entries of each kind, and the id of the first.
    """
    lists = ['images', 'categories', 'annotations'][: 2 if evaluates else 3]
    if not (isinstance(data, dict) and all(isinstance(data.get(key), list) for key in lists)):
        raise ValueError(f'{path} is no annotation file: it needs lists of {", ".join(lists)}.')
    names = [each['name'] for each in data['categories']]
    chosen = [name for name in names if not isinstance(classes, str) and name in classes]
    both = f'\n  config: {_show(classes)}\n  {path}: {_show(names)}'
    if not chosen or chosen != list(classes):
        raise CocoFileError(
            'the classes of the config (metainfo) must be categories of the annotation file, in '
            'its order, by which mmdet numbers them, in training and evaluation. Change the '
            f'config, or the file if it differs from that for training.{both}',
            chosen if set(chosen) == set(classes) else names,
        )
    faults: dict[str, list] = defaultdict(list)
    images: dict[Any, dict] = {}
    for image in data['images']:
        if not {'id', 'file_name', 'width', 'height'} <= image.keys():
            faults['images lack id, file_name, width or height'].append(image)
        elif images.setdefault(image['id'], image) is not image:
            faults['images have the id of another one'].append(image['id'])
    categories, seen = {each['id'] for each in data['categories']}, set()
    needed = {*NEEDED, 'iscrowd'} if evaluates else set(NEEDED)
    for ann in data.get('annotations', ()):
        if not needed <= ann.keys():
            kind = f'annotations lack {", ".join(sorted(needed - ann.keys()))}'
        elif ann['id'] in seen:
            kind = 'annotations have the id of another one'
        else:
            kind = _find_fault(ann, images.get(ann['image_id']), categories, with_mask)
        seen.add(ann.get('id'))
        if kind:
            faults[kind].append(ann.get('id', ann))
    lines = {kind: f'\n  {len(ids):,} {kind}: id {ids[0]}' for kind, ids in faults.items()}
    left_out = LEFT_OUT - {FEW_POINTS} if evaluates else LEFT_OUT
    notes = ''.join(lines.pop(kind) for kind in left_out & faults.keys())
    if lines:
        raise ValueError(f'{path} has faulty entries to mend or remove:{"".join(lines.values())}')
    MMLogger.get_current_instance().info(f'Classes of config and annotation file:{both}{notes}')


def _find_coco(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield key and config of every COCO data set of a data loader, through all wrappers."""
    children = enumerate(node) if isinstance(node, list | tuple) else ()
    if isinstance(node, dict):
        if node.get('type') in ('CocoDataset', 'mmpatchmix.CocoDataset'):
            yield key, node
        children = [(name, node[name]) for name in ('dataset', 'datasets') if name in node]
    for name, child in children:
        yield from _find_coco(child, f'{key}.{name}')


def _show(names: Sequence[str]) -> str:
    return f'{len(names)} classes ({", ".join(names[:100])}{", ..." * (len(names) > 100)})'


def _find_fault(ann: dict, image: dict | None, categories: set, with_mask: bool) -> str:
    """Return the kind of fault of an annotation, or ''; in the order in which mmdet reads them."""
    if ann['category_id'] not in categories:
        return 'annotations have a category_id that is not listed'
    if image is None:
        return NO_IMAGE
    height, width, mask = image['height'], image['width'], ann.get('segmentation')
    try:
        x, y, w, h = ann['bbox']
        if not math.isfinite(x + y + w + h + ann['area']):
            raise ValueError
    except (TypeError, ValueError):
        return 'annotations have a bbox or an area that is not finite numbers'
    right, bottom = x + w, y + h
    is_seen = right > 0 and x < width and bottom > 0 and y < height
    if not is_seen or w < 1 or h < 1 or ann['area'] <= 0:
        return EMPTY
    if with_mask and not mask:
        return 'annotations lack segmentation, which training and evaluation of masks need'
    if with_mask and isinstance(mask, dict):
        counts, num = mask.get('counts'), height * width
        is_whole = sum(counts) == num if isinstance(counts, list) else isinstance(counts, str)
        if list(mask.get('size', ())) != [height, width] or not is_whole:
            return 'annotations have an RLE that is incomplete or of another size than their image'
    elif with_mask:
        if not (isinstance(mask, list) and all(isinstance(each, list) for each in mask)):
            return 'annotations have a segmentation that is neither a list of polygons nor an RLE'
        if any(len(each) < 6 or len(each) % 2 for each in mask):
            return FEW_POINTS
    is_inside = x >= -1 and y >= -1 and right <= width + 1 and bottom <= height + 1
    return '' if is_inside else OUTSIDE


def _check_sizes(images: list[dict], path: str, folder: str, load: LoadImageFromFile) -> None:
    """Compare sizes; decodes only images whose header differs or has an orientation."""
    sample, wrong = images[:: max(1, len(images) // NUM_SIZES)], []
    num_unreadable = 0
    for image in sample:
        name, size = osp.join(folder, image['file_name']), (image['width'], image['height'])
        try:
            header = Image.open(io.BytesIO(get(name, backend_args=load.backend_args)))
            if header.size != size or header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                decoded = load({'img_path': name})['img_shape'][::-1]
                wrong += [(name, decoded, size)] * (decoded != size)
        except ERRORS:
            num_unreadable += 1  # also skipped and counted in training
    if num_unreadable == len(sample) > 0:
        raise ValueError(f'{path}: no image can be read, such as {name}: check data_prefix.')
    if wrong:
        name, decoded, size = wrong[0]
        raise ValueError(
            f'{path}: {len(wrong)} of {len(sample)} images have another (width, height) when '
            f'decoded, so boxes do not fit: {name} {decoded}, recorded {size}. Record the decoded '
            'size and boxes, or, if the file has an EXIF orientation that the annotations ignore, '
            f"set color_type='color_ignore_orientation' of LoadImageFromFile."
        )
