"""The scenes against what COCO's format and their description promise."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmpatchmix.datasets.digits import INK, crop_ink, write_digit_scenes, write_ink_crops

SETTINGS = dict(num_train=12, num_val=6, image_size=96, num_digits=(3, 5), min_visible=0.5)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(root, **SETTINGS)
    return root


def scenes(root, split):
    """Per scene: the picture, and label and mask of each digit, by pycocotools."""
    api = COCO(str(root / f'annotations/instances_{split}.json'))
    for image in api.imgs.values():
        picture = cv2.imread(str(root / split / image['file_name']), cv2.IMREAD_UNCHANGED)
        annotations = api.imgToAnns[image['id']]
        yield picture, annotations, [api.annToMask(one).astype(bool) for one in annotations]


@pytest.mark.parametrize(('split', 'count'), [('train', 12), ('val', 6)])
def test_annotations_describe_their_masks(root, split, count):
    assert len(list((root / split).glob('*.png'))) == count
    seen = list(scenes(root, split))
    assert len(seen) == count
    for picture, annotations, masks in seen:
        assert picture.shape == (96, 96)
        assert 1 <= len(masks) <= 5
        for annotation, mask in zip(annotations, masks, strict=True):
            rows, columns = np.nonzero(mask)
            left, top, width, height = annotation['bbox']
            assert (left, top) == (columns.min(), rows.min())
            assert (width, height) == (np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == 0


def test_masks_are_disjoint_and_cover_exactly_the_ink(root):
    for picture, _, masks in scenes(root, 'train'):
        total = np.sum(masks, axis=0)
        assert total.max() == 1
        assert np.array_equal(picture > INK, total == 1)
        assert not picture[total == 0].any()


def test_digits_overlap_somewhere(root):
    """Boxes of different digits intersect; else the masks would prove nothing."""
    overlaps = 0
    for _, annotations, _ in scenes(root, 'train'):
        boxes = [np.array(one['bbox']) for one in annotations]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                low = np.maximum(a[:2], b[:2])
                high = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
                overlaps += (high > low).all()
    assert overlaps > 5


def test_categories_are_the_digits(root):
    content = json.loads((root / 'annotations/instances_val.json').read_text())
    assert [(c['id'], c['name']) for c in content['categories']] == [
        (digit + 1, str(digit)) for digit in range(10)
    ]
    ids = [annotation['id'] for annotation in content['annotations']]
    assert ids == list(range(1, len(ids) + 1))  # pycocotools takes 0 for "no match"


def test_labels_name_the_digit_that_is_drawn(tmp_path):
    """One digit at its full size per scene: its nearest original has the label."""
    from sklearn.datasets import load_digits

    write_digit_scenes(
        tmp_path, num_train=0, num_val=20, image_size=32, num_digits=(1, 1), digit_size=(32, 32)
    )
    digits = load_digits()
    originals = digits.images.reshape(len(digits.images), -1)
    right = 0
    for picture, annotations, _ in scenes(tmp_path, 'val'):
        small = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA).reshape(-1) / 16
        nearest = ((originals - small) ** 2).sum(1).argmin()
        right += digits.target[nearest] == annotations[0]['category_id'] - 1
    assert right == 20


def test_equal_seeds_give_equal_files(root, tmp_path):
    write_digit_scenes(tmp_path / 'same', **SETTINGS)
    write_digit_scenes(tmp_path / 'other', **SETTINGS, seed=1)
    files = sorted(path.relative_to(root) for path in root.rglob('*.*'))
    for file in files:
        assert (tmp_path / 'same' / file).read_bytes() == (root / file).read_bytes()
    name = 'annotations/instances_train.json'
    assert (tmp_path / 'other' / name).read_bytes() != (root / name).read_bytes()


def test_mmdet_reads_every_scene(root):
    from mmdet.datasets import CocoDataset
    from mmengine.registry import init_default_scope

    init_default_scope('mmdet')
    dataset = CocoDataset(
        data_root=str(root),
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=tuple('0123456789')),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    assert len(dataset) == 12
    for sample, (_, annotations, masks) in zip(dataset, scenes(root, 'train'), strict=True):
        assert np.array_equal(sample['gt_masks'].masks.astype(bool), np.stack(masks))
        labels = [annotation['category_id'] - 1 for annotation in annotations]
        assert sample['gt_bboxes_labels'].tolist() == labels


@pytest.mark.parametrize(
    ('wrong', 'message'),
    [
        (dict(num_digits=(0, 3)), 'num_digits'),
        (dict(digit_size=(24, 200)), 'digit_size'),
        (dict(min_visible=0), 'min_visible'),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        write_digit_scenes(tmp_path, **wrong)


def test_pieces_of_ink_are_cut_out_centred_and_whole():
    scene = np.zeros((96, 96), np.uint8)
    scene[10:30, 20:34] = 255  # 20 high, 14 wide
    scene[90:96, 80:96] = 200  # at the border, 16 wide
    scene[50:54, 50:54] = 255  # a rest
    scene[60:70, 0:60] = 255  # too long for a digit
    tall, low = crop_ink(scene, smallest=10, largest=40, size=24)  # 1.2 * 20: nothing is resized
    expected = np.zeros((24, 24), np.uint8)
    expected[2:22, 5:19] = 255
    assert np.array_equal(tall, expected)
    filled = low > 100
    assert low.shape == (24, 24)
    assert abs(np.argwhere(filled).mean(axis=0) - 11.5).max() < 1
    assert filled.any(axis=0).sum() == pytest.approx(24 / 1.2, abs=1)


def test_crops_of_scenes_are_counted_and_need_no_annotations(root, tmp_path):
    (tmp_path / 'scenes').mkdir()
    for path in (root / 'train').glob('*.png'):
        (tmp_path / 'scenes' / path.name).write_bytes(path.read_bytes())
    count = write_ink_crops(tmp_path / 'scenes', tmp_path / 'crops')
    files = list((tmp_path / 'crops').glob('*.png'))
    assert len(files) == count > 0
    assert cv2.imread(str(files[0]), cv2.IMREAD_UNCHANGED).shape == (32, 32)
