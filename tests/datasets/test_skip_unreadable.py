"""Unreadable images, in the process itself and in DataLoader workers."""

import os
import pickle
import traceback
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.logging import MMLogger
from torch.utils.data import DataLoader

from mmpatchmix.datasets import ImageFolder
from mmpatchmix.datasets.skip_unreadable import SkipUnreadable, UnreadableImagesError
from tests.datasets.folders import PIPELINE, make_classes, make_folder


class NoImages(SkipUnreadable):
    """A list of files that do not exist."""

    def __init__(self, num_files: int, max_unreadable: float) -> None:
        self.num_files = num_files
        settings = dict(pipeline=[LoadImageFromFile()], serialize_data=False)
        super().__init__(ann_file='', max_unreadable=max_unreadable, **settings)

    def load_data_list(self) -> list[dict]:
        return [{'img_path': f'{number}.jpg'} for number in range(self.num_files)]


@pytest.mark.parametrize(
    ('num_files', 'share', 'limit'),
    [(399, 0.01, 3), (400, 0.01, 4), (50, 0.0, 0), (50, 0.5, 25)],  # three are always allowed
)
def test_stops_right_above_the_limit(num_files, share, limit):
    dataset = NoImages(num_files, share)
    for number in range(limit):
        assert dataset.prepare_data(number) is None
        assert dataset.prepare_data(0) is None  # a file counts once
    assert dataset.num_unreadable == limit
    expected = f'{limit + 1} of {num_files} images cannot be read; {limit} are allowed '
    with pytest.raises(UnreadableImagesError, match=expected):
        dataset.prepare_data(num_files - 1)
    if limit:  # a worker that meets a file again must stop as well
        with pytest.raises(UnreadableImagesError, match=expected):
            dataset.prepare_data(0)


def test_warns_about_the_first_few_files_once_each(monkeypatch):
    records = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'warning', records.append)
    dataset = NoImages(2000, 0.01)
    for number in (9, 9, 11, 12, 13, 14, 15, 16, 9):
        dataset.prepare_data(number)
    assert [record.split(': ')[1].split()[0] for record in records] == [
        f'{number}.jpg' for number in (9, 11, 12, 13, 14)
    ]
    assert ['not logged' in record for record in records] == [False] * 4 + [True]


def list_unreadable(dataset) -> list[str]:
    numbers = dataset._is_unreadable.nonzero()[:, 0].tolist()
    return [dataset.get_data_info(number)['img_path'] for number in numbers]


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({'text': b'no image', 'empty': b'', 'cut': content[: len(content) // 2]}[how])


def load_epoch(dataset, num_workers: int) -> list[str]:
    """Paths of an epoch's samples; two epochs' worth of persistent workers."""
    sampler = DefaultSampler(dataset, shuffle=not dataset.test_mode)
    options = dict(num_workers=num_workers, persistent_workers=num_workers > 0)
    loader = DataLoader(dataset, 8, sampler=sampler, collate_fn=default_collate, **options)
    try:
        for _ in range(2):
            paths = [sample.img_path for batch in loader for sample in batch['data_samples']]
        return paths
    except Exception as error:
        # torch's re-raise makes a reference cycle that would keep the workers until some later
        # garbage collection, which then waits 5 seconds for each.
        traceback.clear_frames(error.__traceback__)
        del loader
        raise


def test_bad_files_are_replaced_and_counted_once_by_workers(tmp_path):
    make_classes(tmp_path, 17)
    names = ('ant/003', 'ant/004', 'bee/001', 'bee/002', 'cow/016')
    bad = [tmp_path / f'{name}.jpg' for name in names]
    for path, how in zip(bad[:3], ('text', 'empty', 'cut'), strict=True):
        spoil(path, how)
    torch.manual_seed(0)
    bad[3].unlink()
    bad[3].symlink_to('moved.jpg')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE, max_unreadable=0.1)
    bad[4].unlink()
    paths = load_epoch(dataset, 2)
    assert len(paths) == 51
    assert not {str(path) for path in bad} & set(paths)
    assert list_unreadable(dataset) == sorted(map(str, bad))


def test_copies_for_spawned_workers_share_the_count(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(4)))
    spoil(tmp_path / '2.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    copy = pickle.loads(ForkingPickler.dumps(dataset))  # as multiprocessing does
    assert copy.prepare_data(2) is None
    assert list_unreadable(dataset) == [str(tmp_path / '2.jpg')]


def test_too_many_bad_files_stop_the_run_with_one_message(tmp_path):
    make_classes(tmp_path, 17)
    bad = [tmp_path / f'bee/{number:03d}.jpg' for number in range(4)]  # 3 are allowed
    for path in bad:
        spoil(path, 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    with pytest.raises(UnreadableImagesError) as error:
        load_epoch(dataset, 2)
    # No traceback of a worker, which torch puts into the message.
    assert str(error.value).splitlines() == [
        '4 of 51 images cannot be read; 3 are allowed (max_unreadable=0.01). The first of them:',
        *(f'  {path}' for path in bad),
        'The last error was: not an image, or an incomplete one. Replace or delete these '
        'files, or increase max_unreadable of the dataset.',
    ]


def test_test_mode_takes_the_next_image(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(6)))
    for name in ('2', '3', '5'):
        spoil(tmp_path / f'{name}.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE, test_mode=True)
    names = [os.path.basename(path) for path in load_epoch(dataset, 0)]
    assert names == ['0.jpg', '1.jpg', '4.jpg', '4.jpg', '4.jpg', '0.jpg']
    assert dataset.num_unreadable == 3


@pytest.mark.parametrize(('error', 'num_workers'), [(OSError, 0), (AssertionError, 2)])
def test_errors_of_other_transforms_are_raised(tmp_path, num_workers, error):
    def fail(results):
        raise error('a bug, not a bad file')

    make_folder(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')
    dataset = ImageFolder(str(tmp_path), pipeline=[PIPELINE[0], fail, *PIPELINE[1:]])
    with pytest.raises(error, match='a bug, not a bad file'):
        load_epoch(dataset, num_workers)
    assert dataset.num_unreadable == 0
