"""COCO files that do not fit config, images or heads are refused; unreadable images are skipped."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmpatchmix.datasets import coco_files
from mmpatchmix.datasets.coco_files import check_coco_files

NO_ENTRIES = json.dumps(dict(images=[], categories=[], annotations=[]))
CLASSES = ['red', 'traffic light', '2']
OTHER_ORDER = ['traffic light', 'red', '2']
LOAD = dict(type='LoadAnnotations', with_bbox=True, with_mask=True)
MASKS = [dict(type='LoadImageFromFile'), LOAD, dict(type='PackDetInputs')]


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
            data['annotations'] += [annotation(10 * number + n or 99, number, n) for n in range(2)]
        (tmp_path / f'{split}.json').write_text(json.dumps(data))
    return tmp_path


def annotation(number, image_id, category):
    ids = dict(id=number, image_id=image_id, category_id=3 * category + 1)
    polygons = [[4, 5, 14, 5, 14, 17, 4, 17]]
    return ids | dict(bbox=[4, 5, 10, 12], area=120, iscrowd=0, segmentation=polygons)


def change(root, split, edit):
    path = root / f'{split}.json'
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def config(root, kind='mmpatchmix.CocoDataset', classes=CLASSES, heads=(3, 3)):
    def loader(split):
        dataset = dict(type=kind, data_root=str(root), ann_file=f'{split}.json', pipeline=MASKS)
        dataset |= dict(data_prefix=dict(img=f'{split}/'), test_mode=split == 'val')
        dataset['filter_cfg'] = dict(filter_empty_gt=True, min_size=8)
        if classes:
            dataset['metainfo'] = dict(classes=classes)
        if split == 'train':
            dataset = dict(type='RepeatDataset', times=2, dataset=dataset)
        sampler = dict(type='DefaultSampler')
        return dict(dataset=dataset, batch_size=1, num_workers=0, sampler=sampler)

    loaders = {f'{split}_dataloader': loader(split) for split in ('train', 'val')}
    bbox_head, mask_head = (dict(num_classes=num) for num in heads)
    loaders['model'] = dict(roi_head=dict(bbox_head=bbox_head, mask_head=mask_head))
    return Config(loaders)


def make_runner(cfg):
    """Return the parts of a Runner that are checked; the model is two empty heads."""
    model = torch.nn.ModuleDict({'roi_head': torch.nn.ModuleDict()})
    for name, head in cfg.model.roi_head.items():
        model['roi_head'][name] = torch.nn.Identity()
        model['roi_head'][name].num_classes = head.num_classes
    return LazyRunner(cfg=cfg, model=model)


class LazyRunner(SimpleNamespace):
    def __getattr__(self, name):
        loader = self.cfg[name.replace('loop', 'dataloader')]
        return SimpleNamespace(dataloader=Runner.build_dataloader(loader))


def refusal(cfg):
    with pytest.raises(ValueError) as caught:
        check_coco_files(make_runner(cfg))
    return str(caught.value)


@pytest.mark.parametrize('kind', ['mmpatchmix.CocoDataset', 'CocoDataset'])
@pytest.mark.parametrize('classes', [['red', 'Traffic light', '2'], OTHER_ORDER, None, 'red'])
def test_other_classes_are_refused_with_those_to_set(root, kind, classes):
    message = refusal(config(root, kind, classes))
    assert 'train.json: 3 classes (red, traffic light, 2)' in message
    assert f'metainfo=dict(classes={CLASSES})' in message
    check_coco_files(make_runner(config(root, kind)))


def test_data_equal_those_of_mmdet(root):
    change(root, 'train', lambda data: data.update(annotations=data['annotations'][:-2]))
    kinds = ('mmpatchmix.CocoDataset', 'CocoDataset')
    ours, upstream = (build(config(root, kind), 'train') for kind in kinds)
    assert len(ours) == len(upstream) == 5  # the last image has no objects
    assert all(ours.get_data_info(n) == upstream.get_data_info(n) for n in range(5))


def test_classes_may_be_a_part_of_the_categories(root):
    cfg = config(root, classes=['red', '2'], heads=(2, 2))
    check_coco_files(make_runner(cfg))
    dataset = make_runner(cfg).train_loop.dataloader.dataset
    labels = dataset[0]['data_samples'].gt_instances.labels
    assert labels.tolist() == [0]  # the other object is a traffic light


def test_other_classes_of_evaluation_and_heads_are_refused(root):
    cfg = config(root)
    cfg.val_dataloader.dataset.metainfo.classes = ['red', 'traffic light']
    names = '3 classes (red, traffic light, 2) and val_dataloader 2 classes (red, traffic light)'
    assert names in refusal(cfg)
    message = refusal(config(root, heads=(3, 80)))
    assert 'model.roi_head.mask_head.num_classes=80' in message and 'bbox_head' not in message


def edit_first(**values):
    """Change annotation 10; remove keys whose value is None."""

    def edit(data):
        entry = next(each for each in data['annotations'] if each['id'] == 10)
        entry.update(values)
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]

    return edit


FEW_POINTS = edit_first(segmentation=[[4, 5, 9, 9]])
FAULTS = [
    ('train', edit_first(segmentation=None), 'lack segmentation'),
    ('train', edit_first(segmentation=[4, 5, 14, 5, 14, 17]), 'lack segmentation'),
    ('train', edit_first(segmentation={'size': [40, 30], 'counts': [0, 1200]}), 'RLE of another'),
    ('train', edit_first(bbox=None, area=None), 'lack area, bbox'),
    ('train', edit_first(bbox=[1, 2, 3, float('nan')]), 'not finite numbers'),
    ('train', edit_first(bbox=[1, 2, 3, '4']), 'not finite numbers'),
    ('train', edit_first(category_id=0), 'category_id that is not listed'),
    ('val', edit_first(iscrowd=None), 'lack iscrowd'),
    ('val', FEW_POINTS, 'fewer than three points'),
    ('val', edit_first(area=0, segmentation=[]), 'lack segmentation'),  # pycocotools reads it
]


@pytest.mark.parametrize('kind', ['mmpatchmix.CocoDataset', 'CocoDataset'])
@pytest.mark.parametrize(('split', 'edit', 'message'), FAULTS)
def test_faulty_annotations_are_named_by_id(root, kind, split, edit, message):
    change(root, split, edit)
    text = refusal(config(root, kind))
    assert f'{split}.json has faulty entries' in text and '\n  1 annotations' in text
    assert message in text and text.endswith(': id 10')


NO_AREA = [edit_first(bbox=[50, 5, 10, 12]), edit_first(area=0), edit_first(image_id=77)]


@pytest.mark.parametrize('edit', [*NO_AREA, FEW_POINTS])
def test_annotations_that_mmdet_leaves_out_are_counted(root, edit, monkeypatch):
    change(root, 'train', edit)
    lines = []
    monkeypatch.setattr(coco_files.MMLogger, 'info', lambda _, text: lines.append(text))
    check_coco_files(make_runner(config(root)))
    reason = 'fewer than three points' if edit is FEW_POINTS else 'no area inside of a listed image'
    assert reason in lines[0] and lines[0].endswith(': id 10')


def test_boxes_need_neither_segmentation_nor_iscrowd(root):
    change(root, 'train', edit_first(segmentation=None, iscrowd=None))
    cfg = config(root)
    cfg.train_dataloader.dataset.dataset.pipeline[1].with_mask = False
    check_coco_files(make_runner(cfg))


@pytest.mark.parametrize('number', [0, 'x1'])
def test_ids_that_pycocotools_takes_for_no_match_are_refused_in_evaluation(root, number):
    change(root, 'train', edit_first(id=number))
    check_coco_files(make_runner(config(root)))
    change(root, 'val', edit_first(id=number))
    assert '1 annotations have 0 or a text as id' in refusal(config(root))


def test_repeated_ids_and_files_without_annotations_are_refused(root):
    change(root, 'val', lambda data: data['categories'][1].update(id=1))
    assert '2 categories have the id of another one: id 1' in refusal(config(root))
    for part, number in (('images', 2), ('annotations', 10)):
        change(root, 'train', lambda data, part=part: data[part].append(dict(data[part][2])))
        assert f'2 {part} have the id of another one: id {number}' in refusal(config(root))
    unnamed = json.dumps(dict(images=[], categories=[{'id': 1}], annotations=[]))
    for text in ('{"images": [', '[]', NO_ENTRIES, unnamed):
        (root / 'train.json').write_text(text)
        assert str(root / 'train.json') in refusal(config(root))


def test_recorded_size_is_compared_with_the_decoded_image(root):
    path = root / 'train/4.jpg'
    Image.new('RGB', (30, 40)).save(path)
    assert '1 of 6 images' in refusal(config(root))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (30, 40)).save(path, exif=exif)
    check_coco_files(make_runner(config(root)))  # turned by its orientation, as recorded
    Image.new('RGB', (40, 30)).save(path, exif=exif)
    assert 'train/4.jpg (30, 40), recorded (40, 30)' in refusal(config(root))
    cfg = config(root)
    cfg.train_dataloader.dataset.dataset.pipeline[0].color_type = 'color_ignore_orientation'
    check_coco_files(make_runner(cfg))


def build(cfg, split):
    dataset = cfg[f'{split}_dataloader'].dataset
    return DATASETS.build(dataset.get('dataset', dataset))


def test_an_unreadable_image_is_skipped_in_training_and_its_objects_missed_in_evaluation(root):
    for split in ('train', 'val'):
        (root / f'{split}/0.jpg').write_bytes(b'no image')
    trained = build(config(root), 'train')
    assert trained[0]['data_samples'].img_id != 0 and trained.num_unreadable == 1
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
    precision = metric.evaluate(2)['coco/bbox_mAP']
    assert precision == pytest.approx(0.505, abs=0.001)  # recall 1/2: 51 of 101 points
