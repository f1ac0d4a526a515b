"""Digits against scikit-learn's originals; scenes against COCO's format and mmdet."""

import json

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from sklearn.datasets import load_digits

from examples.digit_scenes import INK, crop_ink, write_digit_scenes, write_ink_crops
from mmpatchmix.datasets import Digits

SETTINGS = dict(num_train=12, num_val=6, image_size=96, num_digits=(3, 5))


def contents(dataset):
    return [dataset.get_data_info(index) for index in range(len(dataset))]


@pytest.fixture(scope='module')
def splits():
    return {split: contents(Digits(split=split)) for split in ('train', 'test')}


def test_splits_are_disjoint_complete_and_stratified():
    # At 8x8 nothing is interpolated, so every image can be traced to its original.
    originals = load_digits()
    keys = [np.rint(image * (255 / 16)).astype(np.uint8).tobytes() for image in originals.images]
    label_of = dict(zip(keys, originals.target, strict=True))
    assert len(label_of) == 1797  # no two digits are equal
    items = {split: contents(Digits(split, image_size=8)) for split in ('train', 'test')}
    ours = {split: [i['img'][..., 0].tobytes() for i in items[split]] for split in items}
    assert (len(ours['train']), len(ours['test'])) == (1437, 360)
    assert set(ours['train']).isdisjoint(ours['test'])
    assert set(ours['train']) | set(ours['test']) == set(keys)
    for split, names in ours.items():
        assert [i['gt_label'] for i in items[split]] == [label_of[name] for name in names]
    counts = np.bincount([item['gt_label'] for item in items['test']])
    np.testing.assert_allclose(counts / np.bincount(originals.target), 0.2, atol=0.01)


def test_samples_are_enlarged_grey_images(splits):
    item = splits['train'][0]
    assert item['img'].shape == (32, 32, 3) and item['img'].dtype == np.uint8
    assert item['img_shape'] == item['ori_shape'] == (32, 32)
    assert isinstance(item['gt_label'], int)
    for item in splits['test'][:100]:
        channels = item['img'].transpose(2, 0, 1).astype(int)
        assert (channels == channels[0]).all() and channels.max() > 200
        # Bicubic overshoots 0 and 255; a cast without a clip would wrap around.
        assert np.abs(np.diff(channels[0], axis=1)).max() < 160
    # Means of 4x4 blocks equal the original but for bicubic's sharpening.
    original = load_digits().images * (255 / 16)
    means = splits['train'][3]['img'][..., 0].reshape(8, 4, 8, 4).mean((1, 3))
    assert np.abs(original - means).mean((1, 2)).min() < 12


def test_changed_digits_are_shifted_resized_and_rotated_the_same_every_time(splits):
    changed, again = (contents(Digits(split='test', changed=True)) for _ in range(2))
    areas, shifts = [], []
    for one, two, before in zip(changed, again, splits['test'], strict=True):
        assert np.array_equal(one['img'], two['img'])
        assert one['gt_label'] == before['gt_label']
        assert not np.array_equal(one['img'], before['img'])
        areas.append(one['img'].sum() / before['img'].sum())  # of ink, the squared factor
        inks = (np.argwhere(item['img'][..., 0] > 100) for item in (one, before))
        shifts.append(np.subtract(*(ink.mean(axis=0) for ink in inks)))
    assert 0.5 < np.quantile(areas, 0.05) < 0.7 and 1.0 < np.quantile(areas, 0.95) < 1.25
    shifts = np.array(shifts)
    assert (np.abs(shifts) < 7).all() and (shifts.std(axis=0) > 1.5).all()  # up to 4 pixels


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(root, **SETTINGS)
    return root


def scenes(root, split):
    """Per scene: the picture, annotations, and masks of the digits, by pycocotools."""
    api = COCO(str(root / f'annotations/instances_{split}.json'))
    for image in api.imgs.values():
        picture = cv2.imread(str(root / split / image['file_name']), cv2.IMREAD_UNCHANGED)
        annotations = api.imgToAnns[image['id']]
        yield picture, annotations, [api.annToMask(one).astype(bool) for one in annotations]


@pytest.mark.parametrize(('split', 'count'), [('train', 12), ('val', 6)])
def test_annotations_describe_disjoint_masks_that_cover_the_ink(root, split, count):
    seen = list(scenes(root, split))
    assert len(seen) == len(list((root / split).glob('*.png'))) == count
    overlaps = 0
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
        total = np.sum(masks, axis=0)
        assert total.max() == 1
        assert np.array_equal(picture > INK, total == 1)
        assert not picture[total == 0].any()
        boxes = [np.array(one['bbox']) for one in annotations]
        for i, a in enumerate(boxes):
            for b in boxes[i + 1 :]:
                ends = np.minimum(a[:2] + a[2:], b[:2] + b[2:])
                overlaps += (ends > np.maximum(a[:2], b[:2])).all()
    assert overlaps > 1  # without overlaps the masks would prove nothing
    content = json.loads((root / f'annotations/instances_{split}.json').read_text())
    assert content['categories'] == [{'id': n + 1, 'name': str(n)} for n in range(10)]
    ids = [annotation['id'] for annotation in content['annotations']]
    assert ids == list(range(1, len(ids) + 1))  # pycocotools reads 0 as "no match"


def test_labels_are_those_of_the_digits_drawn(tmp_path):
    """One digit at full size per scene: its nearest original has the label."""
    sizes = dict(image_size=32, num_digits=(1, 1), digit_size=(32, 32))
    write_digit_scenes(tmp_path, num_train=0, num_val=20, **sizes)
    digits = load_digits()
    originals = digits.images.reshape(len(digits.images), -1)
    for picture, annotations, _ in scenes(tmp_path, 'val'):
        small = cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA).reshape(-1) / 16
        nearest = ((originals - small) ** 2).sum(1).argmin()
        assert digits.target[nearest] == annotations[0]['category_id'] - 1


def test_pieces_of_ink_are_cropped_centred_and_whole(root, tmp_path):
    count = write_ink_crops(root / 'train', tmp_path / 'crops')
    assert len(list((tmp_path / 'crops').glob('*.png'))) == count > 0
    scene = np.zeros((96, 96), np.uint8)
    scene[10:30, 20:34] = 255  # 20 high, 14 wide
    scene[90:96, 80:96] = 200  # at the border, 16 wide
    scene[50:54, 50:54] = 255  # too small
    scene[60:70, 0:60] = 255  # too long for a digit
    tall, low = crop_ink(scene, smallest=10, largest=40, size=24)  # 1.2 * 20: not resized
    expected = np.zeros((24, 24), np.uint8)
    expected[2:22, 5:19] = 255
    assert np.array_equal(tall, expected)
    assert abs(np.argwhere(low > 100).mean(axis=0) - 11.5).max() < 1
    assert (low > 100).any(axis=0).sum() == pytest.approx(24 / 1.2, abs=1)
