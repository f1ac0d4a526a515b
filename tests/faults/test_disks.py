"""Real disks, of checkpoints and logs, that fill up or become read-only during a run."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mmpatchmix.checkpoints.sealing import find_good_checkpoint
from tests.faults.processes import finish, start
from tests.faults.runs import append, at, differences, iteration_of, numbers, read_log, train

FAILS_AT, WORKS_AT = 6, 11  # iterations; checkpoints are due after 8, 10 and 12


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 3 MB; a run's four checkpoints take half of it."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    result = mount('-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', folder, check=False)
    if result.returncode:
        pytest.skip(f'mounting is not permitted here: {result.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '-l', folder], check=True)


def mount(*arguments, check=True):
    command = ['mount', *map(str, arguments)]
    return subprocess.run(command, check=check, capture_output=True, text=True)


def fill(folder: Path, num_left: int = 0) -> None:
    """Write a file until only ``num_left`` bytes are free."""
    size = shutil.disk_usage(folder).free - num_left
    with open(folder / 'ballast', 'wb', buffering=0) as file:
        assert file.write(bytes(size)) >= size - 4096
    assert shutil.disk_usage(folder).free <= num_left + 4096


def newest(folder: Path) -> Path:
    return max(folder.glob('run/*.pth'), key=lambda path: path.stat().st_mtime_ns)


FAILURES = {  # functions that break and repair the disk, and the message
    'full': (
        fill,
        lambda disk: (disk / 'ballast').unlink(),
        'OSError: 0.1 MB are needed, 0.0 MB are free',
    ),
    'full in the middle of a file': (
        lambda disk: fill(disk, newest(disk).stat().st_size * 9 // 10),
        lambda disk: (disk / 'ballast').unlink(),
        'OSError: [Errno 28] No space left on device',
    ),
    'read-only': (
        lambda disk: mount('-o', 'remount,ro', disk),
        lambda disk: mount('-o', 'remount,rw', disk),
        'OSError: [Errno 30] Read-only file system',
    ),
}


@pytest.mark.parametrize('failure', FAILURES)
def test_the_run_continues_and_saves_again_when_possible(failure, uninterrupted, disk, tmp_path):
    fail, repair, message = FAILURES[failure]

    def check_and_repair():
        good, damaged = find_good_checkpoint(disk / 'run')
        assert not damaged
        append(tmp_path / 'good.txt', iteration_of(good))
        repair(disk)

    work_dir, log = tmp_path / 'run', tmp_path / 'log.txt'
    hooks = (
        at('before_train_iter', FAILS_AT, lambda: fail(disk)),
        at('before_train_iter', WORKS_AT, check_and_repair),
    )
    options = {'default_hooks.checkpoint.out_dir': str(disk)}
    assert finish(start(log, train, work_dir, options, hooks)) == 0, log.read_text()[-3000:]
    assert numbers(tmp_path / 'good.txt') == [6]
    assert numbers(work_dir / 'saved.txt') == [2, 4, 5, 6, 12, 14, 15]
    text = read_log(work_dir)
    for name in ('iter_8.pth', 'iter_10.pth', 'epoch_2.pth'):
        assert f'{name} was not saved ({message}' in text
    assert text.count('was not saved') == 3
    assert f'The run continues; the last good checkpoint is {disk / "run" / "iter_6.pth"}' in text
    assert not list(disk.glob('run/.*'))
    assert (work_dir / 'last_checkpoint').read_text() == str(disk / 'run' / 'epoch_3.pth')
    shutil.copy(disk / 'run' / 'epoch_3.pth', work_dir)
    assert differences(work_dir, uninterrupted(0)[0]) == []


def test_a_missing_last_checkpoint_is_an_error_that_resuming_repairs(uninterrupted, disk, tmp_path):
    fail, repair, message = FAILURES['read-only']
    work_dir, log = tmp_path / 'run', tmp_path / 'log.txt'
    options = {'default_hooks.checkpoint.out_dir': str(disk)}
    hooks = (at('before_train_iter', FAILS_AT, lambda: fail(disk)),)
    assert finish(start(log, train, work_dir, options, hooks)) == 1
    assert f'the run is over, but its last checkpoint is missing: {message}' in log.read_text()
    assert numbers(work_dir / 'saved.txt') == [2, 4, 5, 6]
    repair(disk)
    assert finish(start(log, train, work_dir, options)) == 0, log.read_text()[-3000:]
    shutil.copy(disk / 'run' / 'epoch_3.pth', work_dir)
    assert differences(work_dir, uninterrupted(0)[0]) == []


def test_a_full_disk_for_logs_does_not_end_the_run(disk, tmp_path):
    log, work_dir = tmp_path / 'log.txt', disk / 'run'
    # Enough records to exceed the last page of a file.
    hooks = (
        at('before_train_iter', 3, lambda: fill(disk)),
        at('before_train_iter', 14, (disk / 'ballast').unlink),
    )
    backends = [dict(type=f'{name}VisBackend') for name in ('Tensorboard', 'Local')]
    options = {'visualizer.vis_backends': backends}
    assert finish(start(log, train, work_dir, options, hooks)) == 0, log.read_text()[-3000:]
    assert numbers(work_dir / 'saved.txt')[-1] == 15
    assert iteration_of(work_dir / 'epoch_3.pth') == 15
    assert 'epoch_2.pth was not saved' in log.read_text()
    assert read_log(work_dir)
