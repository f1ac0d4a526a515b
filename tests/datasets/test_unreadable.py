import logging

import pytest
from mmengine.logging import MMLogger

from mmpatchmix.datasets.unreadable import UnreadableFiles


def make(num: int, share: float) -> UnreadableFiles:
    return UnreadableFiles([{'img_path': f'{i}.jpg'} for i in range(num)], share)


@pytest.mark.parametrize(
    ('num', 'share', 'limit'),
    [
        (50, 0.01, 3),  # half a file: the floor holds
        (300, 0.01, 3),
        (399, 0.01, 3),
        (400, 0.01, 4),
        (1_281_167, 0.01, 12_811),
        (50, 0.0, 0),
        (50, 0.5, 25),
    ],
)
def test_limit(num, share, limit):
    assert make(num, share).limit == limit


def test_stops_right_above_the_limit():
    files = make(500, 0.01)
    for number in (7, 3, 7, 7, 100, 3, 200, 300):
        files.note(number, OSError('broken'))
    assert files.count == files.limit == 5
    with pytest.raises(RuntimeError, match='6 of 500 images cannot be read') as error:
        files.note(400, OSError('broken for good'))
    message = str(error.value)
    assert [line.strip() for line in message.splitlines()[1:6]] == [
        f'{number}.jpg' for number in (3, 7, 100, 200, 300)
    ]
    assert 'OSError: broken for good' in message
    # A worker that meets a file again must stop as well.
    with pytest.raises(RuntimeError, match='6 of 500'):
        files.note(3, OSError('broken'))


def test_warns_about_the_first_few_files_once_each():
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    try:
        files = make(2000, 0.01)
        for number in (9, 9, 11, 12, 13, 14, 15, 16, 9):
            files.note(number, AssertionError('failed to load image: x'))
    finally:
        logger.removeHandler(handler)
    assert [record.split(': ')[1].split()[0] for record in records] == [
        f'{number}.jpg' for number in (9, 11, 12, 13, 14)
    ]
    assert 'counted in silence' in records[-1]
    assert 'counted in silence' not in records[0]
