"""Which lines of scalars.json are of training, and which of an evaluation."""

import json

from mmpatchmix.report.report import compare, write_report
from mmpatchmix.report.run_record import read_run, read_scalars


def test_metrics_without_a_prefix_are_those_of_an_evaluation(tmp_path):
    """As mmseg names them; an evaluation without metrics is none."""
    (tmp_path / 'x/vis_data').mkdir(parents=True)
    (tmp_path / 'x/vis_data/scalars.json').write_text(
        '{"loss": 1.0, "iter": 1, "epoch": 1}\n'
        '{"aAcc": 80.0, "mIoU": 7.5, "step": 1}\n'
        '{"data_time": 0.1, "time": 0.2, "step": 2}\n'
    )
    training, validation = read_scalars(tmp_path)
    assert [each['loss'] for each in training] == [1.0]
    assert validation == [dict(aAcc=80.0, mIoU=7.5, step=1)]
    page = write_report([tmp_path], tmp_path / 'report.html').read_text()
    assert 'Nothing has been evaluated' not in page and '>mIoU<' in page
    found = compare([read_run(tmp_path)], ['x'])
    assert dict(zip(found['columns'], found['rows'][0], strict=True))['best mIoU'] == '7.5'


def test_epochs_of_a_run_within_its_first_epoch(tmp_path):
    """The last record is of iteration 15 of 22; its epoch is that in progress."""
    (tmp_path / 'x/vis_data').mkdir(parents=True)
    (tmp_path / 'x/vis_data/scalars.json').write_text('{"loss": 1.0, "iter": 15, "epoch": 1}\n')
    assert read_run(tmp_path).epochs_per_iter == 1 / 15  # as well as it can be known
    (tmp_path / 'x/run.json').write_text(json.dumps(dict(max_epochs=1, max_iters=22)))
    assert read_run(tmp_path).epochs_per_iter == 1 / 22
