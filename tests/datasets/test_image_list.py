"""Lists of images: columns of paths, labels and splits; errors name the line."""

import os

import numpy as np
import pytest

from mmpatchmix.datasets import ImageFolder
from mmpatchmix.datasets.image_list import read_image_list
from tests.datasets.folders import PIPELINE, make_folder
from tests.datasets.test_image_folder import list_labels, list_names

NAMES = ('ant/1.jpg', 'ant/2.jpg', 'bee/3.jpg', 'bee/with space 4.jpg')


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path, *NAMES)


def write(folder, text, name='images.csv'):
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


def test_paths_alone_are_unlabelled(folder):
    for name, text in (
        ('a.csv', '\n'.join(NAMES)),
        ('b.txt', '# mine\n\n' + '\r\n'.join(NAMES) + '\n'),
        ('c.csv', '\ufeffpath\n' + '\n'.join(NAMES)),
    ):
        dataset = ImageFolder(write(folder, text, name), pipeline=PIPELINE)
        assert list_names(dataset) == [*NAMES]
        assert list_labels(dataset) == [None] * 4
        assert dataset.metainfo['labelled'] is False
        assert dataset[3]['inputs']['view_1'].shape == (16, 16, 3)


def test_labels_are_names_or_numbers(folder):
    lines = [f'{name},{label}' for name, label in zip(NAMES, 'bbac', strict=True)]
    dataset = ImageFolder(write(folder, '\n'.join(lines)))
    assert dataset.metainfo['classes'] == ('a', 'b', 'c') and list_labels(dataset) == [1, 1, 0, 2]
    text = 'class,x,set,file\n' + ''.join(
        f'{label},-,train,{name}\n' for name, label in zip(NAMES, (10, 9, 9, 2), strict=True)
    )
    dataset = ImageFolder(write(folder, text, 'b.csv'))
    assert dataset.metainfo['classes'] == ('2', '9', '10')
    assert list_labels(dataset) == [2, 1, 1, 0]
    for separator in ('\t', ' '):
        text = ''.join(f'{name}{separator}{n // 2}\n' for n, name in enumerate(NAMES))
        dataset = ImageFolder(write(folder, text, 'c.txt'))
        assert (list_names(dataset), list_labels(dataset)) == ([*NAMES], [0, 0, 1, 1])
    ignored = ImageFolder(write(folder, '\n'.join(lines)), labels=False)
    assert list_labels(ignored) == [None] * 4


def test_a_first_line_whose_file_is_missing_is_no_header(tmp_path):
    for name in ('1.npy', '2.npy', '3.npy'):
        np.save(tmp_path / name, np.zeros((4, 4), np.uint8))
    text = 'gone.npy,cat\n1.npy,cat\n2.npy,dog\n3.npy,dog\n'
    dataset = ImageFolder(write(tmp_path, text))
    assert list_names(dataset) == ['gone.npy', '1.npy', '2.npy', '3.npy']
    assert dataset.metainfo['classes'] == ('cat', 'dog')


def test_missing_and_repeated_images_are_counted(folder):
    (folder / 'lists').mkdir()
    paths = [f'../{name}' for name in NAMES[:2]] + [f'{folder}/{name}' for name in NAMES[2:]]
    path = write(folder / 'lists', '\n'.join([*paths, 'no.jpg', 'images.csv']))
    dataset = ImageFolder(path, pipeline=PIPELINE)
    assert len(dataset) == 6
    assert [dataset.prepare_data(n) is None for n in range(6)] == [False] * 4 + [True] * 2
    assert dataset.num_unreadable == 2
    dataset = ImageFolder(write(folder, '\n'.join([*NAMES, *NAMES[:2]])))
    assert len(dataset) == 6 and dataset.understood['repeated'].startswith('2 lines')


def test_splits_of_the_list(folder):
    splits = ('train', 'val', 'Training', 'test')
    lines = [f'{n},x{i % 2},{s}' for i, (n, s) in enumerate(zip(NAMES, splits, strict=True))]
    path = write(folder, '\n'.join(lines))
    train, val = (ImageFolder(path, split=split) for split in ('train', 'val'))
    assert list_names(train) == [NAMES[0], NAMES[2]] and list_labels(train) == [0, 0]
    assert list_names(val) == [NAMES[1], NAMES[3]] and list_labels(val) == [1, 1]
    assert val.metainfo['classes'] == train.metainfo['classes'] == ('x0', 'x1')
    assert val.understood['held out'] == train.understood['held out'] == '2 of 4, as the list says'
    assert len(ImageFolder(path)) == 4


def test_without_splits_names_decide_as_in_a_folder(folder):
    names = [f'{c}/{n:03d}.jpg' for c in ('ant', 'bee') for n in range(20)]
    make_folder(folder, *names)
    path = write(folder, '\n'.join(f'{name},{name[:3]}' for name in names))
    listed, found = (ImageFolder(p, split='val', holdout=0.3) for p in (path, str(folder)))
    assert list_names(listed) == [name for name in list_names(found) if name in names]
    assert set(list_labels(listed)) == {0, 1}


def test_incomplete_lists_are_refused_with_their_line(folder):
    for text, message in (
        ('path,label\n', 'names no image'),
        ('ant/1.jpg,x\nant/2.jpg\n', 'line 2 of .* has no label in column 2: fill it in'),
        ('ant/1.jpg,x,val\nant/2.jpg,x,some\n', "line 2 of .* has the split 'some' in column 3; "),
        ('path,label\nant/1.jpg,x\n,y\n', r'line 3 of .* has no path in column 1 \(path\)'),
        ('path,split\nant/1.jpg,a', r"line 2 .* split 'a' in column 2 \(split\); it must be"),
        (
            'ant/1.jpg,"x\nant/2.jpg,x\n',
            'line 2 of .* has an open quote in label .*: close it, or',
        ),
        ('path\nno.jpg\n', r"such as column 1 of line 2, 'no\.jpg'\. Paths are relative to the"),
    ):
        with pytest.raises(ValueError, match=message):
            read_image_list(write(folder, text))


def test_images_beside_their_masks_are_read_though_one_is_missing(folder):
    text = 'image,mask\n' + ''.join(
        f'{name},{NAMES[0]}\n' for name in [*NAMES, *NAMES, *NAMES[:2], 'x.jpg']
    )
    assert read_image_list(write(folder, text))[0][-2:] == [NAMES[1], 'x.jpg']
    text = 'thumb,image\n' + ''.join(
        f'{n % 2 * "ant/1.jpg"},{name}\n' for n, name in enumerate(NAMES)
    )
    assert read_image_list(write(folder, text))[0] == [*NAMES]


def test_lists_that_contradict_the_arguments_are_refused(folder):
    with pytest.raises(FileNotFoundError, match=r'there is no list .*none\.csv'):
        ImageFolder(str(folder / 'none.csv'))
    path = write(folder, '\n'.join(NAMES))
    with pytest.raises(ValueError, match=r'labels=True, but .* has no labels'):
        ImageFolder(path, labels=True)
    with pytest.raises(ValueError, match="data_prefix='train' is a folder"):
        ImageFolder(path, data_prefix='train')
    with pytest.raises(ValueError, match=r"no line of .* is of 'val'"):
        ImageFolder(write(folder, f'{NAMES[0]},ant,train'), split='val')


@pytest.mark.parametrize(
    ('separator', 'header'),
    [(',', 'image_id,label'), (';', 'path,class_name'), ('\t', 'Image Path,Labels'), ('|', 'x,y')],
)
def test_headers_and_separators_are_found_by_the_files(folder, header, separator):
    rows = [f'"{name}",{name[:3]}' for name in NAMES]
    text = '\r\n'.join([header, *rows]).replace(',', separator)
    for name in ('images.csv', 'images.txt'):
        dataset = ImageFolder(write(folder, text, name))
        assert list_names(dataset) == [*NAMES] and list_labels(dataset) == [0, 0, 1, 1]
        assert dataset.metainfo['classes'] == ('ant', 'bee')
        assert dataset.understood['columns'].startswith('paths 1 (')


@pytest.mark.parametrize(
    ('column', 'values'),
    [
        ('Subset', ('train2017', 'val2017', 'train2017', 'validation')),
        ('is_valid', ('False', 'True', 'false', 'true')),
        ('is_train', ('1', '0', '1', '0')),
        ('fold', ('train', 'held-out', 'train', 'test')),
    ],
)
def test_columns_of_splits_are_used_by_many_names(folder, column, values):
    lines = [f'7,{v},{n},{n[:3]}' for n, v in zip(NAMES, values, strict=True)]
    path = write(folder, '\n'.join([f'weight,{column},file,category', *lines]))
    train, val = (ImageFolder(path, split=split) for split in ('train', 'val'))
    assert list_names(train) == [NAMES[0], NAMES[2]] and list_names(val) == [NAMES[1], NAMES[3]]
    note = f'paths 3 (file), labels 4 (category), splits 2 ({column}); not used: 1 (weight) '
    assert train.understood['columns'].startswith(note)
    lines = [f'{name},{number % 2}' for number, name in enumerate(NAMES)]
    dataset = ImageFolder(write(folder, '\n'.join(['path,fold', *lines])), split='train')
    assert len(dataset) == 4 and '; not used: 2 (fold) (name' in dataset.understood['columns']


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-16-be', 'latin-1'])
def test_encodings_of_lists(tmp_path, encoding):
    make_folder(tmp_path, 'größe/1.jpg', 'maß/2.jpg')
    path = tmp_path / 'images.csv'
    path.write_bytes('path,label\ngröße/1.jpg,größe\nmaß/2.jpg,maß\n'.encode(encoding))
    dataset = ImageFolder(str(path), pipeline=PIPELINE)
    assert list_names(dataset) == ['größe/1.jpg', 'maß/2.jpg']
    assert dataset.metainfo['classes'] == ('größe', 'maß') and dataset[1] is not None


def test_names_of_windows_and_names_in_latin_1_are_found(tmp_path):
    make_folder(tmp_path, 'ant/1.jpg')
    (tmp_path / os.fsdecode(b'ma\xdf.jpg')).touch()
    path = tmp_path / 'images.csv'
    path.write_bytes(b'ant\\1.jpg\nma\xdf.jpg\n')
    assert list_names(ImageFolder(str(path))) == ['ant/1.jpg', os.fsdecode(b'ma\xdf.jpg')]
