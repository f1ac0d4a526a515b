"""The lock of a folder."""

import multiprocessing
import os
import shutil
import signal
import sys
import time

import pytest

from mmpatchmix.files import is_in_use, lock_folder, locked


def fork_holder(folder, seconds=60):
    """Return the ID of a process that holds the lock of a folder until it is killed or ends."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sys.argv = ['train.py', 'holder.py']
            lock_folder(folder)
            os.write(write_end, b'1')
            time.sleep(seconds)
        finally:
            os._exit(1)
    assert os.read(read_end, 1) == b'1'
    return child


def test_a_second_process_is_refused_and_the_holder_named(tmp_path):
    child = fork_holder(tmp_path / 'run')
    try:
        with pytest.raises(ValueError, match='is in use by') as refusal:
            lock_folder(tmp_path / 'run')
        for part in (f'process {child} on ', 'train.py holder.py', '--work-dir'):
            assert part in str(refusal.value)
        lock_folder(tmp_path / 'other')
        assert is_in_use(tmp_path / 'run') and is_in_use(tmp_path / 'other')
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not is_in_use(tmp_path / 'run') and not is_in_use(tmp_path / 'none')
    lock_folder(tmp_path / 'run')  # the lock ended with its holder
    lock_folder(tmp_path / 'run')  # taking it twice in one process is allowed
    assert f'process {os.getpid()}' in (tmp_path / 'run/.lock').read_text()
    shutil.rmtree(tmp_path / 'run')  # in a notebook, between two runs
    lock_folder(tmp_path / 'run')
    assert f'process {os.getpid()}' in (tmp_path / 'run/.lock').read_text()


def test_waiting_for_a_lock_ends_with_its_holder(tmp_path):
    child, began = fork_holder(tmp_path, seconds=0.5), time.monotonic()
    with locked(tmp_path, wait=True):
        assert 0.3 < time.monotonic() - began < 30
        assert os.waitpid(child, os.WNOHANG)[0] in (0, child)
        with locked(tmp_path):  # an inner block does not release the lock
            pass
        assert is_in_use(tmp_path)
        # It does not hold the lock. With a handler of SIGTERM it would not end.
        reset = signal.signal, (signal.SIGTERM, signal.SIG_DFL)
        forked = multiprocessing.get_context('fork').Pool(1, *reset)
        with forked, pytest.raises(ValueError, match=f'in use by process {os.getpid()}'):
            forked.apply(lock_folder, (tmp_path,))
    assert not is_in_use(tmp_path)


def test_a_file_system_without_locks_is_warned_about(tmp_path, monkeypatch):
    def lockf(*args):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr('fcntl.lockf', lockf)
    with pytest.warns(UserWarning, match='cannot be locked'):
        lock_folder(tmp_path)
    with pytest.warns(UserWarning, match='cannot be locked'), locked(tmp_path, wait=True):
        pass
