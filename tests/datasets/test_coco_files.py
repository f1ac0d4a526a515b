"""COCO files that do not fit config, images or heads are refused; unreadable images are skipped."""

import json
import shlex
import time
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmpatchmix.cli.config_checks import apply_options
from mmpatchmix.datasets import coco_files
from mmpatchmix.datasets.coco_files import check_coco, check_coco_files
from mmpatchmix.datasets.skip_unreadable import UnreadableImagesError

CLASSES = ['red', 'traffic light', '2']
OTHER_ORDER = ['traffic light', 'red', '2']
MASKS = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
MASKS[1]['with_mask'] = True
MASKS += [dict(type='PackDetInputs')]


@pytest.fixture(autouse=True)
def _scope():
    init_default_scope('mmdet')


@pytest.fixture
def root(tmp_path):
    """Six images of 40x30 pixels for training and two for validation, two objects in each."""
    for split, num in (('train', 6), ('val', 2)):
        (tmp_path / split).mkdir()
        data = {'images': [], 'annotations': []}
        data['categories'] = [{'id': 3 * n + 1, 'name': name} for n, name in enumerate(CLASSES)]
        for number in range(num):
            Image.new('RGB', (40, 30)).save(tmp_path / split / f'{number}.jpg')
            name = f'{number}.jpg'
            data['images'].append({'id': number, 'file_name': name, 'width': 40, 'height': 30})
            data['annotations'] += [annotation(10 * number + n, number, n) for n in range(2)]
        (tmp_path / f'{split}.json').write_text(json.dumps(data))
    return tmp_path


def annotation(number, image_id, category):
    return {
        'id': number,
        'image_id': image_id,
        'category_id': 3 * category + 1,
        'bbox': [4, 5, 10, 12],
        'area': 120,
        'iscrowd': 0,
        'segmentation': [[4, 5, 14, 5, 14, 17, 4, 17]],
    }


def change(root, split, edit):
    path = root / f'{split}.json'
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def config(root, kind='mmpatchmix.CocoDataset', classes=CLASSES, heads=(3, 3)):
    def loader(split):
        dataset = dict(
            type=kind,
            data_root=str(root),
            ann_file=f'{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=MASKS,
            test_mode=split == 'val',
            filter_cfg=dict(filter_empty_gt=True, min_size=8),
        )
        if classes:
            dataset['metainfo'] = dict(classes=classes)
        if split == 'train':
            dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
        return dict(
            dataset=dataset, batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler')
        )

    names = ('bbox_head', 'mask_head')
    heads = {name: dict(num_classes=num) for name, num in zip(names, heads, strict=True)}
    return Config(
        dict(
            train_dataloader=loader('train'),
            val_dataloader=loader('val'),
            test_dataloader=loader('val'),
            val_evaluator=dict(type='CocoMetric', ann_file=str(root / 'val.json'), metric='segm'),
            model=dict(roi_head=heads),
        )
    )


class Parts(SimpleNamespace):
    """What ``check_coco_files`` reads of a Runner; the model is two empty heads."""

    def __init__(self, cfg):
        heads = torch.nn.ModuleDict({name: torch.nn.Identity() for name in cfg.model.roi_head})
        for name, head in heads.items():
            head.num_classes = cfg.model.roi_head[name].num_classes
        super().__init__(cfg=cfg, model=torch.nn.ModuleDict({'roi_head': heads}))

    def _loop(self, split):
        loader = Runner.build_dataloader(self.cfg[f'{split}_dataloader'])
        return SimpleNamespace(dataloader=loader)

    @property
    def train_loop(self):
        return self._loop('train')

    @property
    def val_loop(self):
        loop = self._loop('val')
        loop.evaluator = Runner.build_evaluator(None, self.cfg.val_evaluator)
        return loop


def refusal(cfg):
    with pytest.raises(ValueError) as caught:
        check_coco_files(Parts(cfg))
    return str(caught.value)


def paste(cfg, message):
    """Apply the options that a message advises."""
    apply_options(cfg, shlex.split(message.rpartition('--cfg-options')[2]))


def rename(data):
    data['categories'][1]['name'] = 'Traffic Light'


def swap(data):
    data['categories'].reverse()


# Classes


@pytest.mark.parametrize('kind', ['mmpatchmix.CocoDataset', 'CocoDataset'])
def test_a_run_that_fits_passes(root, kind):
    check_coco_files(Parts(config(root, kind)))


@pytest.mark.parametrize('kind', ['mmpatchmix.CocoDataset', 'CocoDataset'])
@pytest.mark.parametrize(
    'classes',
    [['red', 'Traffic light', '2'], OTHER_ORDER, None, ['red'] * 3, 'red', ['red', '2', 'x', 'y']],
)
def test_other_classes_are_refused_with_options_that_mend_them(root, kind, classes):
    cfg = config(root, kind, classes)
    message = refusal(cfg)
    assert 'train.json: 3 classes (red, traffic light, 2)' in message
    paste(cfg, message)
    check_coco_files(Parts(cfg))


def test_data_equal_those_of_mmdet(root):
    change(root, 'train', lambda data: data['annotations'].pop())
    change(root, 'train', lambda data: data['annotations'].pop())
    ours, upstream = (
        build(config(root, kind), 'train') for kind in ('mmpatchmix.CocoDataset', 'CocoDataset')
    )
    assert len(ours) == len(upstream) == 5  # the last image has no objects
    assert [ours.get_data_info(n) for n in range(5)] == [
        upstream.get_data_info(n) for n in range(5)
    ]


def test_classes_may_be_a_part_of_the_categories(root):
    cfg = config(root, classes=['red', '2'], heads=(2, 2))
    check_coco_files(Parts(cfg))
    dataset = Parts(cfg).train_loop.dataloader.dataset
    labels = dataset[0]['data_samples'].gt_instances.labels
    assert labels.tolist() == [0]  # the other object is a traffic light


def test_no_categories_are_refused(root):
    change(root, 'train', lambda data: data['categories'].clear())
    assert 'train.json: 0 classes ()' in refusal(config(root))


@pytest.mark.parametrize('edit', [rename, swap])
@pytest.mark.parametrize('split', ['train', 'val'])
def test_files_with_different_categories_are_refused(root, split, edit):
    change(root, split, edit)
    message = refusal(config(root))
    assert f'{split}.json: 3 classes' in message
    assert 'config: 3 classes (red, traffic light, 2)' in message


def test_different_classes_of_training_and_evaluation_are_refused(root):
    cfg = config(root)
    cfg.val_dataloader.dataset.metainfo.classes = ['red', 'traffic light']
    message = refusal(cfg)
    assert '3 classes (red, traffic light, 2) and 2 classes (red, traffic light)' in message
    paste(cfg, message)
    check_coco_files(Parts(cfg))


def test_file_of_the_metric_is_checked(root):
    data = json.loads((root / 'val.json').read_text())
    swap(data)
    (root / 'other.json').write_text(json.dumps(data))
    cfg = config(root)
    cfg.val_evaluator.ann_file = str(root / 'other.json')
    assert 'val_evaluator.ann_file: 3 classes (2, traffic light, red)' in refusal(cfg)


def test_other_ids_of_the_same_categories_pass(root):
    def renumber(data):
        for each in data['categories']:
            each['id'] += 100
        for each in data['annotations']:
            each['category_id'] += 100

    change(root, 'val', renumber)
    check_coco_files(Parts(config(root)))


@pytest.mark.parametrize('heads', [(80, 3), (3, 2), (2, 80)])
def test_num_classes_of_every_head_is_compared(root, heads):
    cfg = config(root, heads=heads)
    message = refusal(cfg)
    wrong = message.partition('To set them')[0]
    for name, num in zip(('bbox_head', 'mask_head'), heads, strict=True):
        assert (f'model.roi_head.{name}.num_classes={num}' in wrong) == (num != 3)
    paste(cfg, message)
    check_coco_files(Parts(cfg))


# Annotations


def edit_first(**values):
    """Change annotation 10; remove keys whose value is None."""

    def edit(data):
        entry = next(each for each in data['annotations'] if each['id'] == 10)
        entry.update(values)
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]

    return edit


RLE = {'size': [30, 40], 'counts': [0, 1200]}
FAULTS = [
    (edit_first(segmentation=None), 'lack segmentation'),
    (edit_first(segmentation=[]), 'lack segmentation'),
    (edit_first(segmentation=[4, 5, 14, 5, 14, 17]), 'neither a list of polygons nor an RLE'),
    (
        edit_first(segmentation=RLE | {'size': [40, 30]}),
        'RLE that is incomplete or of',
    ),
    (
        edit_first(segmentation=RLE | {'counts': [0, 1]}),
        'RLE that is incomplete or of',
    ),
    (edit_first(segmentation={'size': [30, 40]}), 'RLE that is incomplete'),
    (edit_first(area=None), 'lack area'),
    (edit_first(bbox=None, area=None), 'lack area, bbox'),
    (edit_first(bbox=[1, 2, 3]), 'not finite numbers'),
    (edit_first(bbox=[1, 2, 3, float('nan')]), 'not finite numbers'),
    (edit_first(bbox=[1, 2, 3, '4']), 'not finite numbers'),
    (edit_first(category_id=0), 'category_id that is not listed'),
]
FAULTS_OF_EVALUATION = [
    (edit_first(iscrowd=None), 'lack iscrowd'),
    (edit_first(segmentation=[[4, 5, 9, 9]]), 'fewer than three points'),
]
LEFT_OUT = [
    (edit_first(bbox=[50, 5, 10, 12]), 'no area inside of their image'),
    (edit_first(bbox=[4, 5, 0, 12]), 'no area inside of their image'),
    (edit_first(area=0), 'no area inside of their image'),
    (edit_first(image_id=77), 'of images that are not listed'),
    (edit_first(bbox=[30, 5, 20, 12]), 'reaches out of its image'),
    (edit_first(segmentation=[[4, 5, 9, 9]]), 'fewer than three points'),
]


@pytest.mark.parametrize('kind', ['mmpatchmix.CocoDataset', 'CocoDataset'])
@pytest.mark.parametrize('number', range(len(FAULTS)))
def test_faulty_annotations_are_named_by_id(root, kind, number):
    edit, message = FAULTS[number]
    change(root, 'train', edit)
    text = refusal(config(root, kind))
    assert '\n  1 annotations' in text
    assert message in text
    assert text.endswith(': id 10')


@pytest.mark.parametrize('number', range(len(FAULTS_OF_EVALUATION)))
def test_faults_that_end_the_evaluation_are_refused_there(root, number):
    edit, message = FAULTS_OF_EVALUATION[number]
    change(root, 'train', edit)
    check_coco_files(Parts(config(root)))
    change(root, 'val', edit)
    text = refusal(config(root))
    assert 'val.json' in text
    assert message in text
    assert text.endswith(': id 10')


@pytest.mark.parametrize('number', range(len(LEFT_OUT)))
def test_annotations_that_mmdet_leaves_out_are_counted(root, number, monkeypatch):
    edit, message = LEFT_OUT[number]
    change(root, 'train', edit)
    lines = []
    monkeypatch.setattr(coco_files.MMLogger, 'info', lambda _, text: lines.append(text))
    check_coco_files(Parts(config(root)))
    assert message in lines[0]
    assert lines[0].endswith(': id 10')


def test_boxes_need_neither_segmentation_nor_iscrowd(root):
    change(root, 'train', edit_first(segmentation=None, iscrowd=None))
    cfg = config(root)
    cfg.train_dataloader.dataset.dataset.pipeline[1].with_mask = False
    check_coco_files(Parts(cfg))


@pytest.mark.parametrize('part', ['images', 'annotations'])
def test_repeated_ids_are_refused(root, part):
    change(root, 'train', lambda data: data[part].append(dict(data[part][2])))
    number = dict(images=2, annotations=10)[part]
    assert f'1 {part} have the id of another one: id {number}' in refusal(config(root))


@pytest.mark.parametrize('text', ['{"images": [', '[]', '{"images": []}'])
def test_files_that_hold_no_annotations_are_refused(root, text):
    (root / 'train.json').write_text(text)
    assert str(root / 'train.json') in refusal(config(root))


# Images


@pytest.mark.parametrize('orientation', [1, 6])
def test_recorded_size_is_compared_with_the_decoded_image(root, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (30, 40)).save(root / 'train/4.jpg', exif=exif)
    if orientation == 1:
        assert '1 of 6 images' in refusal(config(root))
        assert 'train/4.jpg (30, 40), recorded (40, 30)' in refusal(config(root))
        return
    check_coco_files(Parts(config(root)))  # turned by its orientation, as recorded
    Image.new('RGB', (40, 30)).save(root / 'train/4.jpg', exif=exif)
    assert 'train/4.jpg (30, 40), recorded (40, 30)' in refusal(config(root))
    cfg = config(root)
    cfg.train_dataloader.dataset.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    check_coco_files(Parts(cfg))


def test_a_wrong_image_folder_is_refused(root):
    cfg = config(root)
    cfg.train_dataloader.dataset.dataset.data_prefix.img = 'trian/'
    assert 'no image can be read, such as' in refusal(cfg)


def build(cfg, split):
    dataset = cfg[f'{split}_dataloader'].dataset
    return DATASETS.build(dataset.get('dataset', dataset))


def test_unreadable_images_are_skipped_in_training_up_to_the_limit(root):
    for number in range(3):
        (root / f'train/{number}.jpg').write_bytes(b'no image')
    dataset = build(config(root), 'train')
    ids = {dataset[n]['data_samples'].img_id for n in range(6)}
    assert ids <= {3, 4, 5}
    assert dataset.num_unreadable == 3
    (root / 'train/3.jpg').write_bytes(b'no image')
    with pytest.raises(UnreadableImagesError, match='4 of 6 images cannot be read; 3 are allowed'):
        dataset[3]


def test_objects_of_an_unreadable_image_count_as_missed_in_the_evaluation(root):
    (root / 'val/0.jpg').write_bytes(b'no image')
    dataset = build(config(root), 'val')
    samples = [dataset[n] for n in range(2)]
    assert [each['data_samples'].img_id for each in samples] == [0, 1]
    assert samples[0]['inputs'].shape == (3, 30, 40)
    assert samples[0]['data_samples'].ori_shape == (30, 40)
    assert dataset.num_unreadable == 1
    metric = CocoMetric(ann_file=str(root / 'val.json'), metric='bbox')
    metric.dataset_meta = dataset.metainfo
    for sample in samples:
        truth = sample['data_samples'].gt_instances
        num = 0 if sample['data_samples'].img_id == 0 else 2
        found = dict(bboxes=truth.bboxes.tensor, labels=truth.labels, scores=torch.ones(2))
        pred = {key: value[:num] for key, value in found.items()}
        metric.process({}, [sample['data_samples'].to_dict() | {'pred_instances': pred}])
    result = metric.evaluate(2)
    assert result['coco/bbox_mAP'] == pytest.approx(
        0.505, abs=0.001
    )  # recall 1/2: 51 of 101 points


def test_a_million_annotations_are_checked_in_seconds():
    images = [{'id': n, 'file_name': '', 'width': 40, 'height': 30} for n in range(10_000)]
    annotations = [annotation(n, n % 10_000, n % 3) for n in range(50_000)]
    categories = [{'id': 3 * n + 1, 'name': name} for n, name in enumerate(CLASSES)]
    data = dict(images=images, annotations=annotations, categories=categories)
    began = time.process_time()
    check_coco(data, 'train.json', CLASSES, with_mask=True)
    assert time.process_time() - began < 0.5  # a twentieth of a million; 3.7 s per million
