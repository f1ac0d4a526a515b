"""One run at a time writes into a work dir."""

import os
import signal
import sys
import time

import pytest

from mmpatchmix.files import is_in_use, lock_work_dir


def fork_holder(folder):
    """Return the number of a process that holds the lock of a folder until it is killed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ['train.py', 'holder.py']
            lock_work_dir(folder)
            os.write(write_end, b'1')
            time.sleep(60)
        finally:
            os._exit(1)
    assert os.read(read_end, 1) == b'1'
    return child


def test_a_second_run_is_refused_and_told_who_holds_the_folder(tmp_path):
    child = fork_holder(tmp_path / 'run')
    try:
        with pytest.raises(ValueError, match='is in use by') as refusal:
            lock_work_dir(tmp_path / 'run')
        for part in (f'process {child} on ', 'train.py holder.py', '--work-dir'):
            assert part in str(refusal.value)
        lock_work_dir(tmp_path / 'other')
        assert is_in_use(tmp_path / 'run') and is_in_use(tmp_path / 'other')
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not is_in_use(tmp_path / 'run') and not is_in_use(tmp_path / 'none')
    lock_work_dir(tmp_path / 'run')  # it went with its holder
    lock_work_dir(tmp_path / 'run')  # one's own is no obstacle
    assert f'process {os.getpid()}' in (tmp_path / 'run/.lock').read_text()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr('fcntl.lockf', lockf)
    with pytest.warns(UserWarning, match='cannot be locked'):
        lock_work_dir(tmp_path)
