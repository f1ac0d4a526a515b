"""Files that cannot be read, through real DataLoader workers."""

import os
import traceback
from pathlib import Path

import pytest
import torch
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.registry import TRANSFORMS
from torch.utils.data import DataLoader

from mmpatchmix.datasets import ImageFolder
from tests.datasets.folders import PIPELINE, make_classes, make_folder


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
