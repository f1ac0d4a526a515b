"""Log files on a full disk."""

import pytest

from tests.faults.processes import finish, start
from tests.faults.runs import at, iteration_of, numbers, read_log, train
from tests.faults.test_disks import disk, fill  # noqa: F401

BACKENDS = {
    'scalars.json': [dict(type='LocalVisBackend')],
    'TensorBoard': [dict(type='TensorboardVisBackend')],
}


@pytest.mark.parametrize('backend', BACKENDS)
def test_a_full_disk_for_logs_does_not_end_the_run(backend, disk, tmp_path):  # noqa: F811
    log, work_dir = tmp_path / 'log.txt', disk / 'run'
    # Enough records to exceed the last page of a file.
    hooks = (
        at('before_train_iter', 3, lambda: fill(disk)),
        at('before_train_iter', 14, (disk / 'ballast').unlink),
    )
    options = {'visualizer.vis_backends': BACKENDS[backend]}
    code = finish(start(log, train, work_dir, options, hooks))
    assert code == 0, log.read_text()[-3000:]
    assert numbers(work_dir / 'saved.txt')[-1] == 15
    assert iteration_of(work_dir / 'epoch_3.pth') == 15
    assert 'epoch_2.pth was not saved' in log.read_text()
    assert read_log(work_dir)
