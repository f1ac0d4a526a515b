"""Class numbers: the list of the training set numbers all others, by name."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.dataset import ConcatDataset
from mmengine.runner import ValLoop
from torch import nn

from mmpatchmix.datasets import Digits, ImageFolder, ShardedImages
from mmpatchmix.datasets.image_folder import adopt_classes
from mmpatchmix.datasets.pack_shards import pack_shards
from mmpatchmix.engine import StrictLoadHook
from tests.datasets.folders import make_classes, make_folder
from tests.datasets.test_image_folder import list_labels


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('classes')
    for part, classes in (('tr', ('ant', 'bee', 'cow')), ('va', ('ant', 'cow'))):
        folder = make_classes(root / part, 3, classes)
        lines = [f'{part}/{f.relative_to(folder)},{f.parent.name}' for f in folder.glob('*/*')]
        (root / f'{part}.csv').write_text('\n'.join(sorted(lines)))
        pack_shards(folder, root / f'{part}-shards', say=lambda line: None)
    return root


def read(root, name):
    kind = ShardedImages if name.endswith('shards') else ImageFolder
    return kind(str(root / name))


@pytest.mark.parametrize(
    ('train', 'val'), [('tr', 'va.csv'), ('tr.csv', 'va-shards'), ('tr-shards', 'va')]
)
def test_a_class_without_validation_images_keeps_the_numbers(root, train, val):
    train, val = read(root, train), read(root, val)
    before = list_labels(val)
    assert val.metainfo['classes'] == ('ant', 'cow')
    adopt_classes(val, train.metainfo)
    assert val.metainfo['classes'] == ('ant', 'bee', 'cow')
    assert list_labels(val) == [2 * label for label in before]


def test_the_training_set_labels_a_single_class_and_no_flat_folder(tmp_path):
    train = ImageFolder(str(make_classes(tmp_path / 'tr', 2)))
    make_folder(tmp_path / 'va', 'cow/1.jpg', 'cow/deep/2.jpg')
    val = ImageFolder(str(tmp_path / 'va'), split='val')
    assert val.metainfo['labelled'] is False
    adopt_classes(val, train.metainfo)
    assert list_labels(val) == [2, 2] and val.metainfo['labelled'] is True
    flat = ImageFolder(str(make_folder(tmp_path / 'flat', '1.jpg', '2.jpg')))
    adopt_classes(flat, train.metainfo)
    assert list_labels(flat) == [None, None] and flat.metainfo['labelled'] is False


def test_classes_of_folders_are_in_the_order_of_their_names_and_reach_joined_sets(tmp_path):
    names = 'cat', 'cat 2', 'cat-big'
    train = ImageFolder(str(make_classes(tmp_path / 'tr', 1, names)))
    assert train.metainfo['classes'] == names
    make_classes(tmp_path / 'va', 1, names[::2])
    parts = [ImageFolder(str(tmp_path / part)) for part in ('tr', 'va')]
    joined = ConcatDataset(parts, ignore_keys=['classes'])
    adopt_classes(joined, train.metainfo)
    for info in map(joined.get_data_info, range(5)):
        assert names[info['gt_label']] == Path(info['img_path']).parent.name


def test_unknown_classes_are_refused_by_name(root, tmp_path):
    train = read(root, 'tr')
    make_classes(tmp_path / 'va', 1, ('bee', 'dog'))
    pack_shards(tmp_path / 'va', tmp_path / 'va-shards', say=lambda line: None)
    for name in ('va', 'va-shards'):
        with pytest.raises(ValueError, match=r'images of dog, and the .* are ant, bee, cow\. Ren'):
            adopt_classes(read(tmp_path, name), train.metainfo)
    with pytest.raises(ValueError, match=r"Digits has the classes \('0', '1'.*'bee'"):
        adopt_classes(Digits(split='test'), train.metainfo)


def test_classifiers_are_evaluated_by_the_list_of_the_training_set_or_checkpoint(root):
    train = SimpleNamespace(dataset=read(root, 'tr'))
    for is_trained in (True, False):
        loop = object.__new__(ValLoop)
        loop.dataloader = SimpleNamespace(dataset=read(root, 'va'))
        model = nn.Linear(1, 1)
        runner = SimpleNamespace(
            model=model, train_dataloader=train, val_loop=loop,
            _val_loop=None, _test_loop=loop, _train_loop={},
        )  # fmt: skip
        if is_trained:
            StrictLoadHook().before_train(runner)
        else:
            meta = dict(dataset_meta=train.dataset.metainfo)
            checkpoint = dict(state_dict=model.state_dict(), meta=meta)
            StrictLoadHook().after_load_checkpoint(runner, checkpoint)
        assert list_labels(loop.dataloader.dataset) == [0] * 3 + [2] * 3
