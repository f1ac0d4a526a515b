"""Folders of every shape, and files that cannot be read, through real DataLoader workers."""

import os
import traceback
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import DataLoader

from mmpatchmix.datasets import ImageFolder

PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='mmpatchmix.MultiCrop', global_size=16),
    dict(type='mmpatchmix.PackViews'),
]


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(abs(hash(path.name)) % 1000)
    assert cv2.imwrite(str(path), rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))


def make_folder(root: Path, *names: str) -> Path:
    for name in names:
        write_image(root / name)
    return root


def make_classes(root: Path, num_per_class: int, classes=('ant', 'bee', 'cow')) -> Path:
    return make_folder(root, *(f'{c}/{i:03d}.jpg' for c in classes for i in range(num_per_class)))


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


# Files that cannot be read


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({'text': b'no image', 'empty': b'', 'cut': content[: len(content) // 2]}[how])


def load_epoch(dataset, num_workers: int, start: str | None = None) -> list[str]:
    """Paths of an epoch's samples; two epochs' worth of persistent workers."""
    loader = DataLoader(
        dataset,
        batch_size=8,
        sampler=DefaultSampler(dataset, shuffle=not dataset.test_mode),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=default_collate,
        multiprocessing_context=start,
    )
    paths = []
    try:
        for _ in range(2):
            paths = [sample.img_path for batch in loader for sample in batch['data_samples']]
    except Exception as error:
        # torch's re-raise makes a reference cycle that would keep the workers until some later
        # garbage collection, which then waits 5 seconds for each.
        traceback.clear_frames(error.__traceback__)
        del loader
        raise
    return paths


@pytest.mark.parametrize('num_workers', [0, 2])
def test_bad_files_are_replaced_and_counted_once(tmp_path, num_workers):
    make_classes(tmp_path, 17)
    bad = [tmp_path / name for name in ('ant/003.jpg', 'bee/001.jpg', 'cow/016.jpg')]
    for path, how in zip(bad, ('text', 'empty', 'cut'), strict=True):
        spoil(path, how)
    torch.manual_seed(0)
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    paths = load_epoch(dataset, num_workers)
    assert len(paths) == 51
    assert not {str(path) for path in bad} & set(paths)
    assert dataset.num_unreadable == 3
    assert sorted(dataset.unreadable.first_paths()) == sorted(map(str, bad))
    # Loaders made later go on counting where these stopped.
    load_epoch(dataset, num_workers)
    assert dataset.num_unreadable == 3


def test_bad_files_are_counted_by_a_spawned_worker(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(12)))
    spoil(tmp_path / '7.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert len(load_epoch(dataset, 1, 'spawn')) == 12
    assert dataset.unreadable.first_paths() == [str(tmp_path / '7.jpg')]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_too_many_bad_files_stop_the_run(tmp_path, num_workers):
    make_classes(tmp_path, 17)
    for number in range(4):  # one more than is put up with in a small folder
        spoil(tmp_path / f'bee/{number:03d}.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    with pytest.raises(RuntimeError, match=r'4 of 51 images cannot be read.*=0.01\)'):
        load_epoch(dataset, num_workers)
    with pytest.raises(RuntimeError) as error:  # and a second attempt does not get past them
        load_epoch(dataset, num_workers)
    for number in range(4):
        assert str(tmp_path / f'bee/{number:03d}.jpg') in str(error.value)


def test_test_mode_takes_the_next_image(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(6)))
    for name in ('2', '3', '5'):
        spoil(tmp_path / f'{name}.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE, test_mode=True)
    names = [os.path.basename(path) for path in load_epoch(dataset, 0)]
    assert names == ['0.jpg', '1.jpg', '4.jpg', '4.jpg', '4.jpg', '0.jpg']
    assert dataset.num_unreadable == 3


def test_no_bad_file_at_all_is_put_up_with_on_request(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(6)))
    spoil(tmp_path / '4.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE, max_unreadable=0)
    with pytest.raises(RuntimeError, match='1 of 6 images cannot be read; the run puts up with 0'):
        dataset[4]


def test_a_folder_of_bad_files_only_stops_the_run(tmp_path):
    make_folder(tmp_path, 'a.jpg', 'b.jpg')
    spoil(tmp_path / 'a.jpg', 'text')
    spoil(tmp_path / 'b.jpg', 'empty')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    with pytest.raises(RuntimeError, match='2 of 2 images cannot be read'):
        dataset[0]


def test_a_file_that_vanishes_counts_as_unreadable(tmp_path):
    make_folder(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    (tmp_path / 'b.jpg').unlink()
    assert dataset[1]['data_samples'].img_path != str(tmp_path / 'b.jpg')
    assert dataset.num_unreadable == 1


@TRANSFORMS.register_module()
class _RaisingTransform:
    """A programming error in a pipeline, of a kind that a bad file raises too."""

    def __init__(self, error: str) -> None:
        self.error = {'os': OSError, 'assert': AssertionError, 'key': KeyError}[error]

    def __call__(self, results):
        raise self.error('a bug, not a bad file')


@pytest.mark.parametrize('num_workers', [0, 2])
@pytest.mark.parametrize('error', ['os', 'assert', 'key'])
def test_errors_of_other_transforms_are_not_swallowed(tmp_path, num_workers, error):
    make_folder(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')
    pipeline = [PIPELINE[0], dict(type='_RaisingTransform', error=error), *PIPELINE[1:]]
    dataset = ImageFolder(str(tmp_path), pipeline=pipeline)
    with pytest.raises((OSError, AssertionError, KeyError), match='a bug, not a bad file'):
        load_epoch(dataset, num_workers)
    assert dataset.num_unreadable == 0
