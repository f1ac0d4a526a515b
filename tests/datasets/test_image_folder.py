"""Folders of every shape: what is an image, what is a class, what is held out."""

import os

import numpy as np
import pytest
from mmpretrain.registry import DATASETS

from mmpatchmix.datasets import ImageFolder
from tests.datasets.folders import PIPELINE, make_classes, make_folder


def list_names(dataset) -> list[str]:
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [os.path.relpath(item['img_path'], dataset.img_prefix) for item in items]


def list_labels(dataset) -> list:
    return [dataset.get_data_info(index).get('gt_label') for index in range(len(dataset))]


# What is in the folder


def test_flat_folder_is_unlabelled(tmp_path):
    dataset = ImageFolder(str(make_folder(tmp_path, 'b.png', 'a.JPG', 'c.webp')), pipeline=PIPELINE)
    assert list_names(dataset) == ['a.JPG', 'b.png', 'c.webp']
    assert list_labels(dataset) == [None] * 3
    assert dataset.metainfo['labelled'] is False
    assert dataset.CLASSES is None
    assert 'gt_label' not in dataset[0]['data_samples']
    plain = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    assert ImageFolder(str(tmp_path), pipeline=plain)[1]['inputs'].shape == (3, 20, 24)


def test_class_folders_are_labelled_in_order_of_their_names(tmp_path):
    make_folder(tmp_path, 'n02/x.JPEG', 'n01/y.JPEG', 'n10/z.JPEG', 'n01/a.JPEG')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert list_names(dataset) == ['n01/a.JPEG', 'n01/y.JPEG', 'n02/x.JPEG', 'n10/z.JPEG']
    assert list_labels(dataset) == [0, 0, 1, 2]
    assert dataset.metainfo['classes'] == ('n01', 'n02', 'n10')
    assert dataset.metainfo['labelled'] is True
    assert dataset[3]['data_samples'].gt_label.item() == 2


def test_same_labels_as_mmpretrains_own_dataset(tmp_path):
    make_classes(tmp_path / 'train', 4)
    config = dict(data_root=str(tmp_path), data_prefix='train')
    ours = DATASETS.build(dict(type='mmpatchmix.ImageFolder', **config))
    theirs = DATASETS.build(dict(type='CustomDataset', **config))
    assert len(ours) == len(theirs) == 12
    for index in range(12):
        first, second = ours.get_data_info(index), theirs.get_data_info(index)
        assert os.path.samefile(first.pop('img_path'), second.pop('img_path'))
        assert first == second


def test_class_folders_can_be_read_without_labels(tmp_path):
    dataset = ImageFolder(str(make_classes(tmp_path, 2)), labels=False)
    assert list_labels(dataset) == [None] * 6
    assert dataset.metainfo['labelled'] is False


def test_nested_images_are_unlabelled_unless_asked(tmp_path):
    make_folder(tmp_path, 'ant/red/1.jpg', 'ant/2.jpg', 'bee/x/y/3.jpg')
    assert list_labels(ImageFolder(str(tmp_path))) == [None] * 3
    dataset = ImageFolder(str(tmp_path), labels=True)
    assert dict(zip(list_names(dataset), list_labels(dataset), strict=True)) == {
        'ant/2.jpg': 0,
        'ant/red/1.jpg': 0,
        'bee/x/y/3.jpg': 1,
    }


def test_one_folder_and_split_folders_are_no_classes(tmp_path):
    make_folder(tmp_path / 'one', 'all/1.jpg', 'all/2.jpg')
    assert ImageFolder(str(tmp_path / 'one')).metainfo['labelled'] is False
    make_folder(tmp_path / 'two', 'train/1.jpg', 'val/2.jpg')
    assert ImageFolder(str(tmp_path / 'two')).metainfo['labelled'] is False
    assert ImageFolder(str(tmp_path / 'two'), labels=True).metainfo['classes'] == ('train', 'val')


def test_a_class_without_images_keeps_its_number(tmp_path):
    make_classes(tmp_path, 2, ('ant', 'cow'))
    (tmp_path / 'bee').mkdir()
    dataset = ImageFolder(str(tmp_path))
    assert dataset.metainfo['classes'] == ('ant', 'bee', 'cow')
    assert list_labels(dataset) == [0, 0, 2, 2]


def test_given_classes_decide_the_numbers(tmp_path):
    make_classes(tmp_path, 1)
    dataset = ImageFolder(str(tmp_path), classes=['cow', 'bee', 'ant', 'dog'])
    assert list_labels(dataset) == [2, 1, 0]
    with pytest.raises(ValueError, match='not in the given classes: bee'):
        ImageFolder(str(tmp_path), classes=['cow', 'ant'])


def test_hidden_files_and_other_files_are_left_out(tmp_path):
    make_folder(tmp_path, 'a.jpg', '.hidden.jpg', '.cache/b.jpg', '._a.jpg')
    (tmp_path / 'notes.txt').write_text('no image')
    assert list_names(ImageFolder(str(tmp_path))) == ['a.jpg']


def test_subset_and_indices(tmp_path):
    dataset = ImageFolder(str(make_classes(tmp_path, 4)), pipeline=PIPELINE)
    names = list_names(dataset)
    assert list_names(dataset.get_subset([7, 2])) == [names[7], names[2]]
    assert list_names(dataset.get_subset(3)) == names[:3]
    assert list_names(ImageFolder(str(tmp_path), indices=5)) == names[:5]
    subset = dataset.get_subset([7, 2])
    assert len(subset.unreadable.flags) == 2
    assert subset[1]['data_samples'].img_path.endswith(names[2])
    dataset.get_subset_([1, 5])
    assert list_names(dataset) == [names[1], names[5]]
    assert len(dataset.unreadable.flags) == 2


# Splits


def test_splits_share_nothing_and_leave_nothing_out(tmp_path):
    make_classes(tmp_path, 100)
    whole = ImageFolder(str(tmp_path))
    train = ImageFolder(str(tmp_path), split='train', holdout=0.2)
    val = ImageFolder(str(tmp_path), split='val', holdout=0.2)
    assert sorted(list_names(train) + list_names(val)) == list_names(whole)
    assert set(list_names(train)).isdisjoint(list_names(val))
    assert 300 * 0.2 - 28 < len(val) < 300 * 0.2 + 28  # four standard deviations
    assert val.metainfo['classes'] == whole.metainfo['classes']
    label_of = dict(zip(list_names(whole), list_labels(whole), strict=True))
    assert list_labels(val) == [label_of[name] for name in list_names(val)]


def test_split_of_an_image_depends_on_its_name_alone(tmp_path):
    make_classes(tmp_path / 'small', 30)
    make_classes(tmp_path / 'large', 60, ('ant', 'bee', 'cow', 'dog'))
    np.random.seed(3)
    small = set(list_names(ImageFolder(str(tmp_path / 'small'), split='val', holdout=0.2)))
    large = set(list_names(ImageFolder(str(tmp_path / 'large'), split='val', holdout=0.2)))
    common = set(list_names(ImageFolder(str(tmp_path / 'small'))))
    assert small == large & common
    assert small


def test_unlabelled_splits_are_both_the_whole_folder(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(5)))
    train, val = (ImageFolder(str(tmp_path), split=split) for split in ('train', 'val'))
    assert list_names(train) == list_names(val)
    assert val.metainfo['labelled'] is False
    assert val.metainfo['split'] == 'val'


# What is refused before training


@pytest.mark.parametrize('name', ['missing', 'missing/deep'])
def test_missing_root_says_how_to_set_it(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=r'(?s)missing.*--data-root.*--cfg-options'
    ) as error:
        ImageFolder(path)
    assert path in str(error.value)


def test_empty_folder_says_what_was_looked_for_and_found(tmp_path):
    with pytest.raises(ValueError, match=r'\.jpeg.*found no file at all'):
        ImageFolder(str(tmp_path))
    for name in ('a.heic', 'deep/b.heic', 'README'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r'\.png.*found 2 x \.heic, 1 x no extension'):
        ImageFolder(str(tmp_path))


def test_archive_instead_of_a_folder(tmp_path):
    (tmp_path / 'images.tar').touch()
    with pytest.raises(ValueError, match=r'images.tar is a file.*unpack'):
        ImageFolder(str(tmp_path / 'images.tar'))


def test_labels_need_two_class_folders(tmp_path):
    make_folder(tmp_path / 'one', 'ant/1.jpg', 'ant/2.jpg')
    with pytest.raises(ValueError, match=r'all 2 images lie in one class folder.*labels=False'):
        ImageFolder(str(tmp_path / 'one'), labels=True)
    make_folder(tmp_path / 'loose', 'ant/1.jpg', 'bee/2.jpg', '3.jpg')
    with pytest.raises(ValueError, match=r'1 images lie in no class folder, such as .*3.jpg'):
        ImageFolder(str(tmp_path / 'loose'), labels=True)


def test_holdout_that_takes_nothing(tmp_path):
    make_classes(tmp_path, 2)
    with pytest.raises(ValueError, match=r"leaves none for split='val'. Change holdout"):
        ImageFolder(str(tmp_path), split='val', holdout=1e-6)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(data_root=''), 'no image folder was given.*--data-root'),
        (dict(labels='yes'), 'labels'),
        (dict(split='test'), 'split'),
        (dict(holdout=1.0), 'holdout'),
        (dict(max_unreadable=-0.1), 'max_unreadable'),
        (dict(ann_file='train.txt'), 'ann_file.*CustomDataset'),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder(**{'data_root': str(tmp_path), **settings})
