"""Runs as a list and side by side, from what they leave in their work dirs."""

import json

import pytest

from mmpatchmix.cli.runs import compare_runs, list_runs
from mmpatchmix.report.run_record import flatten


def write_run(work_dir, lr, top1, ended=True, iters=20):
    """Leave what a run of 2 epochs of 10 iterations leaves."""
    data = work_dir / '20260101_000000' / 'vis_data'
    data.mkdir(parents=True)
    records = [{'loss': 9.0 - n, 'iter': n, 'epoch': -(-n // 10)} for n in range(10, iters + 1, 10)]
    records += [{'knn/top1': value, 'step': epoch} for epoch, value in enumerate(top1, 1)]
    (data / 'scalars.json').write_text('\n'.join(map(json.dumps, records)))
    about = dict(config_name='my.py', recipe='patchmix_vit-digits', max_epochs=2, max_iters=20)
    about |= dict(started='2026-01-01T12:34:56+00:00', values=flatten(dict(optimizer=dict(lr=lr))))
    about |= dict(ended='2026-01-01T13:00:00+00:00') if ended else {}
    (data.parent / 'run.json').write_text(json.dumps(about))
    return data


@pytest.fixture
def work_dirs(tmp_path):
    write_run(tmp_path / 'one', 0.1, [50.0, 40.0])
    data = write_run(tmp_path / 'deep' / 'two', 0.2, [30.0], ended=False, iters=10)
    warning = dict(iter=10, epoch=1, name='plateau', message='...', hint='...')
    (data / 'health.jsonl').write_text(json.dumps(warning))
    return tmp_path


def test_all_runs_below_a_folder_are_listed(work_dirs):
    titles, two, one = list_runs(work_dirs)
    assert titles.split()[:4] == ['run', 'config', 'state', 'done']
    for part in ('deep/two', 'my.py', 'not finished', 'iteration 10 of 20', 'plateau'):
        assert part in two
    for part in ('one', 'finished', 'epoch 2 of 2', 'knn/top1 50', '2026-01-01 12:34'):
        assert part in one
    assert one.index('finished') == two.index('not finished') == titles.index('state')
    assert list_runs(work_dirs / 'one')[1].startswith('one ')


def test_two_runs_differ_in_figures_and_config(work_dirs):
    lines = [line.split() for line in compare_runs([work_dirs / 'one', work_dirs / 'deep/two'])]
    assert lines[0] == ['run', 'one', 'two']
    assert ['best', 'knn/top1', '50', '30'] in lines
    assert lines[-2:] == [['config', 'one', 'two'], ['optimizer.lr', '0.1', '0.2']]
    same = compare_runs([work_dirs / 'one', work_dirs / 'one'])
    assert same[-1] == 'the configs do not differ'


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no run below'):
        list_runs(tmp_path)
    with pytest.raises(FileNotFoundError, match='holds no run'):
        compare_runs([tmp_path, tmp_path])
