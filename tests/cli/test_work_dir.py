"""Earlier runs and checkpoints of a work dir."""

import pytest
import torch

from mmpatchmix.cli.train import clear_earlier_run, find_earlier_run, prepare_work_dir
from mmpatchmix.cli.verb import find_checkpoint


def write(path, text='x'):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_clearing_removes_the_run_only(tmp_path):
    for name in ('epoch_1.pth', 'last_checkpoint', '20260101/vis_data/scalars.json', 'notes.txt'):
        write(tmp_path / name)
    (tmp_path / 'photos').mkdir()
    assert len(find_earlier_run(tmp_path)) == 3
    with pytest.raises(ValueError, match='holds an earlier run'):
        prepare_work_dir(tmp_path, overwrite=False)
    clear_earlier_run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['.lock', 'notes.txt', 'photos']


def test_a_work_dir_is_resolved_to_its_last_checkpoint_or_refused(tmp_path):
    file = tmp_path / 'work' / 'epoch_2.pth'
    file.parent.mkdir()
    torch.save({}, file)
    write(file.with_name('last_checkpoint'), str(file))
    assert find_checkpoint(str(file)) == find_checkpoint(str(file.parent)) == str(file)
    moved = (tmp_path / 'work').rename(tmp_path / 'moved')
    assert find_checkpoint(str(moved)) == str(moved / 'epoch_2.pth')
    with pytest.raises(FileNotFoundError, match='no good checkpoint in'):
        find_checkpoint(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r'no checkpoint .*none\.pth'):
        find_checkpoint(str(tmp_path / 'none.pth'))
