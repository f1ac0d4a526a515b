"""ImageFolder on folders: images, classes, splits, links, and refused folders."""

import os
import pickle
from hashlib import blake2b

import pytest
from mmpretrain.registry import DATASETS

from mmpatchmix.datasets import ImageFolder, image_folder
from mmpatchmix.datasets.survey import survey_images
from tests.datasets.folders import PIPELINE, make_classes, make_folder, write_image


def list_names(dataset) -> list[str]:
    items = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [os.path.relpath(item['img_path'], dataset.img_prefix) for item in items]


def list_labels(dataset) -> list:
    return [dataset.get_data_info(index).get('gt_label') for index in range(len(dataset))]


def test_flat_folder_is_unlabelled(tmp_path):
    make_folder(tmp_path, '.hidden.jpg', '.cache/b.jpg', '._a.jpg')
    (tmp_path / 'notes.txt').write_text('no image')
    dataset = ImageFolder(str(make_folder(tmp_path, 'b.png', 'a.JPG', 'c.webp')), pipeline=PIPELINE)
    assert list_names(dataset) == ['a.JPG', 'b.png', 'c.webp']
    assert list_labels(dataset) == [None] * 3
    assert dataset.metainfo['labelled'] is False
    assert dataset.CLASSES is None
    assert 'gt_label' not in dataset[0]['data_samples']
    plain = [dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')]
    assert ImageFolder(str(tmp_path), pipeline=plain)[1]['inputs'].shape == (3, 20, 24)


def test_class_folders_are_labelled_in_order_of_their_names(tmp_path):
    make_folder(tmp_path, 'n02/x.JPEG', 'n01/y.JPEG', 'n10/z.JPEG', 'n01/a.JPEG')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert list_names(dataset) == ['n01/a.JPEG', 'n01/y.JPEG', 'n02/x.JPEG', 'n10/z.JPEG']
    assert list_labels(dataset) == [0, 0, 1, 2]
    assert dataset.metainfo['labelled'] is True
    assert dataset[3]['data_samples'].gt_label.item() == 2
    dataset = ImageFolder(str(tmp_path), labels=False)
    assert list_labels(dataset) == [None] * 4 and dataset.metainfo['labelled'] is False
    (tmp_path / 'n05').mkdir()  # a class without images
    dataset = ImageFolder(str(tmp_path))
    assert dataset.metainfo['classes'] == ('n01', 'n02', 'n05', 'n10')
    assert list_labels(dataset) == [0, 0, 1, 3]
    dataset = ImageFolder(str(tmp_path), classes=['n10', 'n02', 'n01', 'n05'])
    assert list_labels(dataset) == [2, 2, 1, 0]


def test_same_labels_as_mmpretrains_own_dataset(tmp_path):
    make_classes(tmp_path / 'train', 4)
    config = dict(data_root=str(tmp_path), data_prefix='train')
    ours = DATASETS.build(dict(type='mmpatchmix.ImageFolder', **config))
    theirs = DATASETS.build(dict(type='mmpretrain.CustomDataset', **config))
    assert len(ours) == len(theirs) == 12
    for index in range(12):
        first, second = ours.get_data_info(index), theirs.get_data_info(index)
        assert os.path.samefile(first.pop('img_path'), second.pop('img_path'))
        assert first == second


def test_indices_and_subsets(tmp_path):
    dataset = ImageFolder(str(make_classes(tmp_path, 4)), pipeline=PIPELINE)
    names, last = list_names(dataset), dataset.get_data_info(11)
    assert last['sample_idx'] == 11 and last['gt_label'] == 2 and type(last['gt_label']) is int
    assert dataset.get_data_info(-1) == last
    for outside in (12, -13):
        with pytest.raises(IndexError):
            dataset.get_data_info(outside)
    assert list_names(ImageFolder(str(tmp_path), indices=5)) == names[:5]
    subset = dataset.get_subset([7, 2])
    assert list_names(subset) == [names[7], names[2]] and list_labels(subset) == [1, 0]
    (tmp_path / names[2]).write_bytes(b'no image')
    assert subset.prepare_data(1) is None


def test_names_of_any_length_and_letters(tmp_path):
    # The last is no UTF-8, as names from old archives are.
    names = ['größe.png', 'x' * 200 + '.png', '日本.png', 'with space\nand line.png', '\udcff.png']
    write_image(tmp_path / 'a.png')
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / 'a.png')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert list_names(dataset) == sorted(['a.png', *names])
    again = pickle.loads(pickle.dumps(dataset))
    for index in range(6):
        assert os.path.samefile(again.get_data_info(index)['img_path'], tmp_path / 'a.png')
    assert again.get_data_info(2) == dataset.get_data_info(2)


def test_memory_per_image_is_the_longest_name_and_four_bytes(tmp_path, monkeypatch):
    classes = [f'n{i:08d}' for i in range(10)]
    folders = [(f'{name}/', [f'{name}_{i:06d}.JPEG' for i in range(100)]) for name in classes]
    monkeypatch.setattr(image_folder, 'walk', lambda root, left_out: iter(folders))
    dataset = ImageFolder(str(tmp_path), classes=classes)
    assert len(folders[0][0] + folders[0][1][0]) == 31
    assert dataset.data_list.nbytes == 1000 * (31 + 4)


def test_links_are_followed_except_in_a_cycle(tmp_path):
    root = make_folder(tmp_path / 'root', 'ant/1.jpg', 'bee/2.jpg')
    make_folder(tmp_path, 'elsewhere/3.jpg')
    (root / 'cow').symlink_to(tmp_path / 'elsewhere')
    (root / 'dog').mkdir()
    (root / 'dog/4.jpg').symlink_to(root / 'ant/1.jpg')
    (root / 'self').symlink_to(root)
    (root / 'ant/up').symlink_to('..')
    (root / 'ant/bees').symlink_to('../bee')
    (root / 'bee/ants').symlink_to('../ant')
    (root / 'itself').symlink_to('itself')
    dataset = ImageFolder(str(root), labels=True)
    circle = ['ant/1.jpg', 'ant/bees/2.jpg', 'bee/2.jpg', 'bee/ants/1.jpg']
    assert list_names(dataset) == [*circle, 'cow/3.jpg', 'dog/4.jpg']
    assert dataset.metainfo['classes'] == ('ant', 'bee', 'cow', 'dog')


def test_splits_share_nothing_and_depend_on_names_alone(tmp_path):
    make_classes(tmp_path / 'large', 60)
    make_classes(tmp_path / 'small', 30)
    whole, train, val = (
        ImageFolder(str(tmp_path / 'large'), split=split, holdout=0.2)
        for split in (None, 'train', 'val')
    )
    label_of, of_train, of_val = (
        dict(zip(list_names(each), list_labels(each), strict=True)) for each in (whole, train, val)
    )
    assert of_train | of_val == label_of and of_train.keys().isdisjoint(of_val)
    assert 180 * 0.2 - 22 < len(val) < 180 * 0.2 + 22  # four standard deviations
    small = set(list_names(ImageFolder(str(tmp_path / 'small'))))
    small_val = ImageFolder(str(tmp_path / 'small'), split='val', holdout=0.2)
    assert set(list_names(small_val)) == set(of_val) & small != set()


def test_missing_and_empty_folders_are_refused(tmp_path):
    message = rf'(?s){tmp_path}/missing.*--data-root.*--cfg-options'
    with pytest.raises(FileNotFoundError, match=message):
        ImageFolder(str(tmp_path / 'missing'))
    with pytest.raises(ValueError, match=r'\.jpeg.*found no file at all'):
        ImageFolder(str(tmp_path))
    for name in ('a.heic', 'b.heic', 'README', 'images.tar'):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r'\.png.*found 2 x \.heic, such as .\.heic; 1 x '):
        ImageFolder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'images.tar: a file; unpack'):
        ImageFolder(str(tmp_path / 'images.tar'))


def test_labels_need_two_class_folders(tmp_path):
    make_folder(tmp_path / 'one', 'ant/1.jpg', 'ant/2.jpg')
    with pytest.raises(ValueError, match=r'the 2 images of .*, but all are in ant\. Use labels'):
        ImageFolder(str(tmp_path / 'one'), labels=True)
    make_folder(tmp_path / 'loose', 'ant/1.jpg', 'bee/2.jpg', '3.jpg')
    with pytest.raises(ValueError, match=r'the 3 images of .*, but 1 lie in none'):
        ImageFolder(str(tmp_path / 'loose'), labels=True)


def test_wrong_arguments_are_refused(tmp_path):
    for message, settings in {
        'no image folder was given.*--data-root': dict(data_root=''),
        "split must be None, 'train' or 'val'; got 'test'": dict(split='test'),
        'holdout': dict(holdout=1.0),
        'max_unreadable': dict(max_unreadable=-0.1),
        r'ann_file.*mmpatchmix\.CustomDataset': dict(ann_file='train.txt'),
    }.items():
        with pytest.raises(ValueError, match=message):
            ImageFolder(**{'data_root': str(tmp_path), **settings})


def test_train_and_val_folders_are_used_as_such(tmp_path):
    make_classes(tmp_path / 'train', 3)
    make_classes(tmp_path / 'val', 2, ('ant', 'cow'))
    (tmp_path / 'val/bee').mkdir()
    train, val = (ImageFolder(str(tmp_path), split=split) for split in ('train', 'val'))
    assert list_labels(train) == [0] * 3 + [1] * 3 + [2] * 3
    assert list_names(val) == [f'{c}/00{n}.jpg' for c in ('ant', 'cow') for n in range(2)]
    assert list_labels(val) == [0, 0, 2, 2]
    assert val.img_prefix == str(tmp_path / 'val')


def test_a_train_folder_alone_is_split_by_names(tmp_path):
    make_classes(tmp_path / 'train', 10)
    train, val = (ImageFolder(str(tmp_path), split=s, holdout=0.3) for s in ('train', 'val'))
    told = f'{len(val)} of 30, chosen by their names (dataset.holdout)'
    assert train.understood['held out'] == told
    assert len(train) + len(val) == 30 and 0 < len(val) < 20
    # The first 8 bytes of the hash as a number, so that another version holds out the same.
    digests = {name: blake2b(name.encode(), digest_size=8).hexdigest() for name in list_names(val)}
    assert all(int(digest, 16) < 0.3 * 16**16 for digest in digests.values())


@pytest.mark.parametrize(
    ('names', 'labelled', 'told'),
    [
        (['a.jpg', 'b.jpg'], False, 'none: images lie in no folder'),
        (['a.jpg', 'x/b.jpg'], False, 'none: images lie at several depths'),
        (['x/a.jpg', 'x/b.jpg'], False, 'none: all images lie in x'),
        (['train/a.jpg', 'val/b.jpg'], False, 'none: train, val are splits'),
        (['x/a/1.jpg', 'y/b/2.jpg'], False, 'none: images lie 2 folders deep'),
        (['part-1/a.jpg', 'Part2/b.jpg'], False, 'none: Part2, part-1 are numbered parts'),
        (['0/a.jpg', '1/b.jpg'], True, '2 folders are classes: 0, 1  <- only numbered'),
        (['n01/a.jpg', 'n02/b.jpg'], True, '2 folders are classes: n01, n02'),
        (['set/a.jpg', 'trainer/b.jpg'], True, '2 folders are classes: set, trainer'),
    ],
)
def test_labels_and_the_reason(tmp_path, names, labelled, told):
    dataset = ImageFolder(str(make_folder(tmp_path, *names)))
    assert dataset.metainfo['labelled'] is labelled
    assert dataset.understood['labels'].startswith(told)


@pytest.mark.parametrize(
    ('train', 'val'), [('training_set2', 'held-out'), ('TrainImages', 'TEST'), ('tr', 'dev')]
)
def test_split_folders_are_found_by_many_names(tmp_path, train, val):
    make_classes(tmp_path / train, 2)
    make_classes(tmp_path / val, 1)
    make_folder(tmp_path, 'unlabeled2017/a.jpg', 'loose.jpg')
    parts = [ImageFolder(str(tmp_path), split=split) for split in ('train', 'val')]
    assert [list_labels(part) for part in parts] == [[0, 0, 1, 1, 2, 2], [0, 1, 2]]
    told = parts[0].understood['folders']
    assert told.startswith(f'{train} is trained on, {val} held out, ')
    assert 'unlabeled2017 not used (1 images)' in told
    assert 'images in no folder not used (1 images)' in told


def test_folders_of_the_system_pipes_and_hidden_files_are_left_out(tmp_path):
    make_classes(tmp_path, 1, ('ant', 'bee'))
    for name in ('__MACOSX', '@eaDir', '.ipynb_checkpoints', '$RECYCLE.BIN', 'ant/@eaDir'):
        make_folder(tmp_path / name, 'x.jpg')
    (tmp_path / 'bee/Thumbs.db').touch()
    os.mkfifo(tmp_path / 'ant/pipe.jpg')
    (tmp_path / 'bee/link.jpg').symlink_to('../ant/pipe.jpg')
    dataset = ImageFolder(str(tmp_path))
    assert list_names(dataset) == ['ant/000.jpg', 'bee/000.jpg']
    assert dataset.metainfo['classes'] == ('ant', 'bee')
    told = dataset.understood['left out']
    for part in ('1 x .db, such as bee/', '1 x hidden, such as .ip', '4 x system', '2 x pipes or'):
        assert part in told
    path = tmp_path / 'pipes.csv'
    path.write_text('ant/000.jpg\nant/pipe.jpg\n')
    assert ImageFolder(str(path), pipeline=PIPELINE).prepare_data(1) is None  # without blocking
    assert survey_images([str(tmp_path / 'ant/pipe.jpg')]).damaged


@pytest.mark.parametrize('marker', ['.lock', '20260101_120000/20260101_120000.log'])
def test_work_dirs_in_the_folder_are_never_data(tmp_path, marker):
    make_classes(tmp_path, 1, ('ant', 'bee'))
    run = make_folder(tmp_path / 'work_dirs/run', 'views.png', 'pictures/mixed.png')
    (run / marker).parent.mkdir(exist_ok=True)
    (run / marker).touch()
    dataset = ImageFolder(str(tmp_path))
    assert list_names(dataset) == ['ant/000.jpg', 'bee/000.jpg']
    assert dataset.metainfo['classes'] == ('ant', 'bee')
    assert dataset.understood['left out'] == '1 x work dirs of runs, such as work_dirs/run'
    with pytest.raises(ValueError, match='is the work dir of a run'):
        ImageFolder(str(run))
