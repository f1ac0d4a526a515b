"""COCO annotation files, compared with the config, the images and the heads before training.

Needs mmdet, so ``mmpatchmix.datasets`` does not import it; the detection recipes do.
"""

import io
import json
import os.path as osp
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import isfinite
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
IMAGE_KEYS = {'id', 'file_name', 'width', 'height'}
ANNOTATION_KEYS = {'id', 'image_id', 'category_id', 'bbox', 'area'}
# mmdet leaves these out, the second in training only: counted, not refused.
EMPTY = 'annotations have no area inside of a listed image'
FEW_POINTS = 'annotations have a polygon of an odd number of values or of fewer than three points'


@DATASETS.register_module()
class CocoDataset(SkipUnreadable, UpstreamDataset):
    """mmdet's ``CocoDataset`` that checks its annotation file and skips unreadable images.

    Takes the arguments of mmdet's class and ``max_unreadable``, as in :class:`SkipUnreadable`. In
    evaluation a black image replaces an unreadable one, whose objects then count as missed.
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
    """Check COCO data sets and heads of a run against each other; builds both loops.

    Raises a ValueError with the classes, or their number, to set.
    """
    train, val = (runner.cfg.get(f'{split}_dataloader') for split in ('train', 'val'))
    if not [*_find_coco(train)]:
        return
    for node in _find_coco([train, val]):
        if node['type'] != 'mmpatchmix.CocoDataset':  # which is checked when it is built
            dataset = ALL_DATASETS.build(dict(node, lazy_init=True))
            read_coco(dataset, dataset.ann_file)
    loops = [loop for loop in (runner.train_loop, runner.val_loop) if loop]
    classes, *others = (loop.dataloader.dataset.metainfo['classes'] for loop in loops)
    if others and list(others[0]) != list(classes):
        raise ValueError(
            f'train_dataloader has {_show(classes)} and val_dataloader {_show(others[0])}: set '
            'the same metainfo for both.'
        )
    wrong = [
        f'model.{name}.num_classes={module.num_classes}'
        for name, module in runner.model.named_modules()
        if 'head' in name and getattr(module, 'num_classes', None) not in (None, len(classes))
        if not (getattr(module, 'class_agnostic', False) or 'rpn' in name or 'semantic' in name)
    ]
    if wrong:
        raise ValueError(f'{" ".join(wrong)}, but there are {_show(classes)}: set their number.')


def read_coco(dataset: UpstreamDataset, path: str) -> dict:
    """Parse an annotation file and check it against its data set and up to 1,000 images.

    Raises a ValueError with the number of faulty entries of each kind and the id of the first. Logs
    the classes of config and file, and the number of annotations that mmdet leaves out.
    """
    lists = ['images', 'categories', 'annotations'][: 2 if dataset.test_mode else 3]
    try:
        data = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f'{path} cannot be parsed as JSON: {error}') from error
    is_whole = isinstance(data, dict) and all(isinstance(data.get(key), list) for key in lists)
    if not is_whole or not data['categories']:
        raise ValueError(f'{path} needs lists of {", ".join(lists)}, and at least one category.')
    if unnamed := [each for each in data['categories'] if not each.keys() >= {'id', 'name'}]:
        raise ValueError(f'{path} has {len(unnamed)} categories without id or name: {unnamed[0]}.')
    classes, names = dataset.metainfo['classes'], [each['name'] for each in data['categories']]
    chosen = [name for name in names if not isinstance(classes, str) and name in classes]
    both = f'\n  config: {_show(classes)}\n  {path}: {_show(names)}'
    if not chosen or chosen != list(classes):
        raise ValueError(
            f'the classes must be categories of each annotation file, in its order:{both}\n'
            f'Set metainfo=dict(classes={chosen if set(chosen) == set(classes) else names}) of the '
            'data sets and num_classes of the heads, or change the file if it is the wrong one.'
        )
    transforms = dataset.pipeline.transforms
    with_mask = any(getattr(each, 'with_mask', False) for each in transforms)
    notes = check_entries(data, path, with_mask, dataset.test_mode)
    if load := next((each for each in transforms if isinstance(each, LoadImageFromFile)), None):
        _check_sizes(data['images'], path, dataset.data_prefix['img'], load)
    MMLogger.get_current_instance().info(f'Classes of config and annotation file:{both}{notes}')
    return data


def check_entries(data: dict, path: str, with_mask: bool, evaluates: bool) -> str:
    """Refuse faulty images and annotations by id; return lines on those that mmdet leaves out."""
    faults: dict[str, list] = defaultdict(list)
    images = [each for each in data['images'] if each.keys() >= IMAGE_KEYS]
    sizes = {each['id']: (each['width'], each['height']) for each in images}
    categories = {each['id'] for each in data['categories']}
    needed = ANNOTATION_KEYS | {'iscrowd'} if evaluates else ANNOTATION_KEYS
    for part, keys in dict(categories={'id'}, images=IMAGE_KEYS, annotations=needed).items():
        entries = data.get(part, ())
        counts = Counter(each.get('id') for each in entries)
        for entry in entries:
            fault = ''
            if not entry.keys() >= keys:
                fault = f'{part} lack {", ".join(sorted(keys - entry.keys()))}'
            elif counts[entry['id']] > 1:
                fault = f'{part} have the id of another one'
            elif evaluates and part == 'annotations' and entry['id'] in (0, str(entry['id'])):
                fault = 'annotations have 0 or a text as id, which pycocotools takes for no object'
            elif part == 'annotations':
                fault = _find_fault(entry, sizes, categories, with_mask, evaluates)
            if fault:
                faults[fault].append(entry.get('id', entry))
    lines = {fault: f'\n  {len(ids):,} {fault}: id {ids[0]}' for fault, ids in faults.items()}
    notes = [lines.pop(fault, '') for fault in ([EMPTY] if evaluates else [EMPTY, FEW_POINTS])]
    if lines:
        raise ValueError(f'{path} has faulty entries to mend or remove:{"".join(lines.values())}')
    return ''.join(notes)


def _find_fault(ann: dict, sizes: dict, categories: set, with_mask: bool, evaluates: bool) -> str:
    """Return the kind of fault of an annotation, or ''; in the order in which mmdet reads them."""
    if ann['category_id'] not in categories:
        return 'annotations have a category_id that is not listed'
    size = width, height = sizes.get(ann['image_id'], (0, 0))
    try:
        (x, y, w, h), area = ann['bbox'], ann['area']
        is_inside = area > 0 and w >= 1 and h >= 1 and -w < x < width and -h < y < height
        is_finite = isfinite(x + y + w + h + area)
    except (TypeError, ValueError):
        is_finite = False
    if not is_finite:
        return 'annotations have a bbox or an area that is not finite numbers'
    kept = '' if is_inside else EMPTY
    # pycocotools reads the masks of empty ones, too.
    if not (with_mask and (is_inside or (evaluates and width))):
        return kept
    mask = ann.get('segmentation')
    if isinstance(mask, dict):
        is_whole = 'counts' in mask and tuple(mask.get('size', ())) == size[::-1]
        return kept if is_whole else 'annotations have an RLE of another size than their image'
    for polygon in mask if mask and isinstance(mask, list) else [None]:
        if not isinstance(polygon, list):
            return 'annotations lack segmentation (a list of polygons, or an RLE), for masks'
        if len(polygon) < 6 or len(polygon) % 2:
            return FEW_POINTS
    return kept


def _find_coco(node: Any) -> Iterator[dict]:
    """Yield the configs of all COCO data sets in a data loader's config, through wrappers."""
    is_node = isinstance(node, dict)
    if is_node and node.get('type') in ('CocoDataset', 'mmpatchmix.CocoDataset'):
        yield node
    for child in node.values() if is_node else node if isinstance(node, list | tuple) else ():
        yield from _find_coco(child)


def _show(names: Sequence[str]) -> str:
    return f'{len(names)} classes ({", ".join(map(str, names[:99]))}{", ..." * (len(names) > 99)})'


def _check_sizes(images: list[dict], path: str, folder: str, load: LoadImageFromFile) -> None:
    """Compare sizes; decodes only images whose header differs or has an orientation."""
    sample, wrong = images[:: max(1, len(images) // NUM_SIZES)], []
    for image in sample:
        name, size = osp.join(folder, image['file_name']), (image['width'], image['height'])
        with suppress(*ERRORS):  # unreadable images are counted in training
            header = Image.open(io.BytesIO(get(name, backend_args=load.backend_args)))
            if header.size != size or header.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                decoded = load({'img_path': name})['img_shape'][::-1]
                wrong += [f'{name} {decoded}, recorded {size}'] * (decoded != size)
    if wrong:
        raise ValueError(
            f'{path}: {len(wrong)} of {len(sample)} images have another (width, height) when '
            f'decoded, so boxes do not fit: {wrong[0]}. Record the decoded size, or, to ignore an '
            "EXIF orientation, set color_type='color_ignore_orientation' of LoadImageFromFile."
        )
