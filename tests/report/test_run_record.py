"""Which lines of scalars.json are of training, and which of an evaluation."""

from mmpatchmix.report.run_record import read_scalars


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
