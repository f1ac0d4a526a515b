"""Pictures show what happened, and the report leaves the run as it was."""

import json
import random

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from mmengine.runner import Runner

from mmpatchmix.engine.exact_order import random_states_kept
from mmpatchmix.models import draw_groups, mix_patches, mix_to_source
from mmpatchmix.report.run_record import read_scalars
from mmpatchmix.report.run_report_hook import RunReportHook
from mmpatchmix.report.sheets import draw_mixed, to_array
from tests.engine.tiny_run import tiny_run_config


def test_mixed_figure_shows_the_source_of_each_patch_and_the_target():
    num_images, patch_size = 4, 4
    images = torch.rand(num_images, 3, 12, 16)
    groups = draw_groups(12, 3, torch.Generator().manual_seed(1))
    mixed = mix_patches(images, groups, patch_size)
    figure = draw_mixed(images, mixed, groups, patch_size, mix_to_source(groups, 3))
    axes = np.array(figure.axes).reshape(4, num_images)
    for n in range(num_images):
        np.testing.assert_allclose(axes[0, n].images[0].get_array(), images[n].permute(1, 2, 0))
        np.testing.assert_allclose(axes[1, n].images[0].get_array(), mixed[n].permute(1, 2, 0))
        colours = axes[2, n].images[0].get_array()
        numbers = {text.get_position(): text.get_text() for text in axes[2, n].texts}
        shares = np.zeros(num_images)
        for row in range(3):
            for column in range(4):
                source = next(  # found by looking at the pixels, not at the groups
                    m
                    for m in range(num_images)
                    if torch.equal(
                        mixed[n, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4],
                        images[m, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4],
                    )
                )
                assert numbers[(column, row)] == str(source)
                shares[source] += 1 / 12
                np.testing.assert_allclose(colours[row, column], colormaps['tab10'](source)[:3])
        heights = [bar.get_height() for bar in axes[3, n].patches]
        np.testing.assert_allclose(heights, shares, atol=1e-6)
    assert to_array(figure).std() > 10


def write_scalars(work_dir, name, records):
    folder = work_dir / name / 'vis_data'
    folder.mkdir(parents=True)
    (folder / 'scalars.json').write_text('\n'.join(json.dumps(record) for record in records))


def test_the_scalars_of_a_run_that_was_resumed_are_joined(tmp_path):
    def step(iteration, loss):
        return {'iter': iteration, 'epoch': iteration / 2, 'loss': loss, 'loss_source': loss}

    first = [step(1, 5.0), step(2, 4.0), {'knn/top1': 40.0, 'step': 1}, step(3, 9.9)]
    second = [step(3, 3.0), step(4, 2.0), {'knn/top1': 60.0, 'step': 2}]
    second.append({'guard/neighbors_kept': 0.5, 'step': 2})  # another writer's
    write_scalars(tmp_path, '20260101_000000', first)
    write_scalars(tmp_path, '20260102_000000', second)
    training, validation = read_scalars(tmp_path)
    assert [record['loss'] for record in training] == [5.0, 4.0, 3.0, 2.0]
    assert [record['knn/top1'] for record in validation] == [40.0, 60.0]
    assert validation[1]['guard/neighbors_kept'] == 0.5


def losses(work_dir, report):
    cfg = tiny_run_config(work_dir, epochs=1, num_images=24, report=True)
    if not report:
        cfg.default_hooks.pop('report')
    else:
        cfg.default_hooks.report.pictures = True
    runner = Runner.from_cfg(cfg)
    runner.train()
    training, _ = read_scalars(work_dir)
    return [record['loss'] for record in training], runner


def test_the_report_does_not_change_the_run(tmp_path):
    with_report, runner = losses(tmp_path / 'with', True)
    without, _ = losses(tmp_path / 'without', False)
    assert len(with_report) == 3
    assert with_report == without
    report = next(hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    assert [epoch for epoch, _ in report.metrics] == [0, 1]  # untrained, trained
    summary = '\n'.join(report.summary(runner))
    trained = report.metrics[-1][1]['knn/top1']
    rows = {line[:20].strip(): line[20:].split() for line in summary.splitlines()}
    assert 'untrained' in rows and rows['after 1 epoch'][:2] == [f'{trained:.2f}', '%']
    for name in ('mixed.png', 'report.html', 'epoch_1.pth'):
        assert str(tmp_path / 'with' / name) in summary


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    write_scalars(tmp_path, '20260101_000000', [{'iter': 1, 'epoch': 1, 'loss': 5.0}])
    (path,) = tmp_path.glob('*/vis_data/scalars.json')
    path.write_text(path.read_text() + '\n{"iter": 2, "epo')
    assert read_scalars(tmp_path) == ([{'iter': 1, 'epoch': 1, 'loss': 5.0}], [])


def test_a_figure_that_fails_ends_no_run(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError('no space left on device')

    cfg = tiny_run_config(tmp_path, epochs=1, num_images=16, report=True)
    runner = Runner.from_cfg(cfg)
    monkeypatch.setattr('matplotlib.figure.Figure.savefig', fail)
    monkeypatch.setattr('mmpatchmix.report.report.write_text', fail)
    runner.train()
    assert (tmp_path / 'epoch_1.pth').exists()
    log = next(tmp_path.glob('*/*.log')).read_text()
    for name in ('mixed.png', 'report.html'):
        assert f'{name} was not written: OSError: no space left on device' in log
        assert not (tmp_path / name).exists()


def test_random_states_return_after_an_error():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0]), np.random.set_state(states[1]), torch.set_rng_state(states[2])
    with pytest.raises(ZeroDivisionError), random_states_kept():
        draw()
        raise ZeroDivisionError
    assert draw() == expected


def test_one_image_is_no_mix():
    with pytest.raises(ValueError, match='at least 2'):
        RunReportHook(num_images=1)


def test_mixed_figure_of_another_mixing_has_no_row_of_origins():
    images = torch.rand(3, 3, 8, 8)
    figure = draw_mixed(images, images, None, 4)
    assert len(figure.axes) == 6
    assert 'PatchMix' not in figure.get_suptitle()


def test_summary_has_a_column_for_each_set_of_queries():
    report = RunReportHook()
    before = {'knn/top1': 50.0, 'knn/top1_k10': 50.0, 'knn_changed/top1': 20.0}
    after = {'knn/top1': 96.0, 'knn_changed/top1': 80.0}
    pixels = {'pixels/top1': 98.0, 'pixels_changed/top1': 40.0}
    report.metrics = [(0, before | pixels), (1, {}), (70, after | pixels)]
    lines = [line.split() for line in report.summarise_metrics()[1:]]
    assert lines == [
        ['as', 'they', 'are', 'changed'],
        ['untrained', '50.00', '%', '20.00', '%'],
        ['after', '70', 'epochs', '96.00', '%', '80.00', '%'],
        ['raw', 'pixels', '98.00', '%', '40.00', '%', '(no', 'network', 'at', 'all)'],
    ]


def test_summary_without_evaluation_has_no_table():
    assert RunReportHook().summarise_metrics() == []
