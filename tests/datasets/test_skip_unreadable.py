"""Files that cannot be read, through real DataLoader workers."""

import logging
import os
import traceback
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
        self.num_files, self.max_unreadable = num_files, max_unreadable
        super().__init__(ann_file='', pipeline=[LoadImageFromFile()], serialize_data=False)

    def load_data_list(self) -> list[dict]:
        return [{'img_path': f'{number}.jpg'} for number in range(self.num_files)]


# The count


@pytest.mark.parametrize(
    ('num_files', 'share', 'limit'),
    [
        (50, 0.01, 3),  # half a file: three are always put up with
        (300, 0.01, 3),
        (399, 0.01, 3),
        (400, 0.01, 4),
        (20_000, 0.01, 200),
        (50, 0.0, 0),
        (50, 0.5, 25),
    ],
)
def test_stops_right_above_the_limit(num_files, share, limit):
    dataset = NoImages(num_files, share)
    for number in range(limit):
        assert dataset.prepare_data(number) is None
        assert dataset.prepare_data(0) is None  # a file counts once
    assert dataset.num_unreadable == limit
    expected = f'{limit + 1} of {num_files} images cannot be read; the run puts up with {limit} '
    with pytest.raises(UnreadableImagesError, match=expected):
        dataset.prepare_data(num_files - 1)
    if limit:  # a worker that meets a file again must stop as well
        with pytest.raises(UnreadableImagesError, match=expected):
            dataset.prepare_data(0)


def test_the_message_names_the_first_files_and_the_last_reason():
    dataset = NoImages(500, 0.01)
    for number in (7, 3, 7, 7, 100, 3, 200, 300):
        dataset.prepare_data(number)
    with pytest.raises(UnreadableImagesError, match='6 of 500 images cannot be read') as error:
        dataset.prepare_data(-100)  # counted from the end
    message = str(error.value)
    assert [line.strip() for line in message.splitlines()[1:6]] == [
        f'{number}.jpg' for number in (3, 7, 100, 200, 300)
    ]
    assert "No such file or directory: '400.jpg'" in message


def test_warns_about_the_first_few_files_once_each():
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        dataset = NoImages(2000, 0.01)
        for number in (9, 9, 11, 12, 13, 14, 15, 16, 9):
            dataset.prepare_data(number)
    finally:
        logger.removeHandler(handler)
    assert [record.split(': ')[1].split()[0] for record in records] == [
        f'{number}.jpg' for number in (9, 11, 12, 13, 14)
    ]
    assert 'counted in silence' in records[-1]
    assert 'counted in silence' not in records[0]


# Through data loaders


def list_unreadable(dataset) -> list[str]:
    numbers = dataset._is_unreadable.nonzero()[:, 0].tolist()
    return [dataset.get_data_info(number)['img_path'] for number in numbers]


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
    assert list_unreadable(dataset) == sorted(map(str, bad))
    # Loaders made later go on counting where these stopped.
    load_epoch(dataset, num_workers)
    assert dataset.num_unreadable == 3


def test_bad_files_are_counted_by_a_spawned_worker(tmp_path):
    make_folder(tmp_path, *(f'{i}.jpg' for i in range(12)))
    spoil(tmp_path / '7.jpg', 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert len(load_epoch(dataset, 1, 'spawn')) == 12
    assert list_unreadable(dataset) == [str(tmp_path / '7.jpg')]


@pytest.mark.parametrize('num_workers', [0, 2])
def test_too_many_bad_files_stop_the_run_with_one_message(tmp_path, num_workers):
    make_classes(tmp_path, 17)
    bad = [tmp_path / f'bee/{number:03d}.jpg' for number in range(4)]  # in a small folder 3 may be
    for path in bad:
        spoil(path, 'text')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    for _ in range(2):  # a second attempt does not get past them
        with pytest.raises(ValueError) as error:
            load_epoch(dataset, num_workers)
        assert error.type is UnreadableImagesError
        # No traceback of a worker, which torch puts into the message.
        assert str(error.value).splitlines() == [
            '4 of 51 images cannot be read; the run puts up with 3 (max_unreadable=0.01). '
            'The first of them:',
            *(f'  {path}' for path in bad),
            'The last reason was: not an image, or an incomplete one. Replace or delete these '
            'files, or raise max_unreadable of the dataset.',
        ]


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
    with pytest.raises(UnreadableImagesError, match=r'1 of 6 .* puts up with 0'):
        dataset[4]


def test_a_folder_of_bad_files_only_stops_the_run(tmp_path):
    make_folder(tmp_path, 'a.jpg', 'b.jpg')
    spoil(tmp_path / 'a.jpg', 'text')
    spoil(tmp_path / 'b.jpg', 'empty')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    with pytest.raises(UnreadableImagesError, match='2 of 2 images cannot be read'):
        dataset[0]


def test_a_file_that_vanishes_counts_as_unreadable(tmp_path):
    make_folder(tmp_path, 'a.jpg', 'b.jpg', 'c.jpg')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    (tmp_path / 'b.jpg').unlink()
    assert dataset[1]['data_samples'].img_path != str(tmp_path / 'b.jpg')
    assert dataset.num_unreadable == 1


def test_a_link_to_nothing_counts_as_unreadable(tmp_path):
    make_folder(tmp_path, 'a.jpg', 'c.jpg')
    (tmp_path / 'b.jpg').symlink_to('moved/b.jpg')
    dataset = ImageFolder(str(tmp_path), pipeline=PIPELINE)
    assert len(load_epoch(dataset, 0)) == 3
    assert list_unreadable(dataset) == [str(tmp_path / 'b.jpg')]


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
    pipeline = [PIPELINE[0], _RaisingTransform(error), *PIPELINE[1:]]
    dataset = ImageFolder(str(tmp_path), pipeline=pipeline)
    with pytest.raises((OSError, AssertionError, KeyError), match='a bug, not a bad file'):
        load_epoch(dataset, num_workers)
    assert dataset.num_unreadable == 0
