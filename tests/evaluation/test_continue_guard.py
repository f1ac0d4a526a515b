"""The continue guard warns when the network gets worse, and only then."""

import logging

import cv2
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from sklearn.datasets import load_digits

from mmpatchmix.evaluation import ContinueGuardHook
from mmpatchmix.report.run_report_hook import RunReportHook
from tests.engine.tiny_run import tiny_run_config

WORSE = 'continue guard: after epoch {} the network is worse than at the start.'


class Forget(Hook):
    """Overwrite the weights of the momentum encoder at the end of the second epoch."""

    priority = 'VERY_HIGH'

    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            with torch.no_grad():
                for parameter in runner.model.momentum_encoder.backbone.parameters():
                    parameter.zero_()
                runner.model.momentum_encoder.backbone.ln1.bias.normal_()


def guarded(folder, epochs=2, report=False, **guard):
    cfg = tiny_run_config(folder, epochs=epochs, num_images=16, report=report)
    cfg.default_hooks.guard = dict(type='mmpatchmix.ContinueGuardHook', **guard)
    if report:
        cfg.default_hooks.report.evaluate_untrained = False
    cfg.train_cfg.val_interval = 1
    cfg.optim_wrapper.optimizer.lr = 1e-9  # nothing changes by training
    cfg.val_cfg.pixel_baseline = False
    cfg.val_cfg.pop('more_queries')
    for loader in (cfg.val_dataloader, cfg.val_cfg.bank_dataloader):
        loader.dataset.indices = 120
    return cfg


def without_labels(cfg, folder):
    """Evaluate on digits in an unlabelled folder."""
    (folder / 'images').mkdir(exist_ok=True)
    for number, image in enumerate(load_digits().images[:60]):
        large = cv2.resize((image * 15).astype('uint8'), (32, 32))
        cv2.imwrite(str(folder / 'images' / f'{number:02}.png'), large)
    dataset = dict(
        type='mmpatchmix.ImageFolder',
        data_root=str(folder / 'images'),
        labels=False,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
        test_mode=True,
    )
    cfg.val_dataloader.dataset = cfg.val_cfg.bank_dataloader.dataset = dataset
    cfg.default_hooks.checkpoint.save_best = None
    return cfg


def run(cfg, *hooks):
    """Train; return the Runner, the guard's warnings and all its messages."""
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook)
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelno, record.getMessage()))
    runner.logger.addHandler(handler)
    try:
        runner.train()
    finally:
        runner.logger.removeHandler(handler)
    said = [(level, text) for level, text in said if text.startswith('continue guard')]
    warned = [text for level, text in said if level == logging.WARNING and 'random' not in text]
    return runner, warned, [text for _, text in said]


@pytest.mark.parametrize('labels', [True, False])
def test_no_warning_without_a_change(tmp_path, labels):
    cfg = guarded(tmp_path, report=True)
    cfg = cfg if labels else without_labels(cfg, tmp_path)
    runner, warned, said = run(cfg)
    assert not warned
    assert 'starts from random weights' in said[0] and '--init FILE' in said[0]
    figure = 'kNN top-1' if labels else 'RankMe'
    assert f'before the first step, {figure}' in said[1]
    assert labels or '100 % of the nearest neighbours are those of the start' in said[-1]
    report = next(hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    # The report has the start too.
    assert [epoch for epoch, _ in report.metrics] == [0, 1, 2]
    summary = '\n'.join(report.summarise_metrics())
    assert 'untrained' in summary and ('kNN top-1' in summary if labels else 'RankMe' in summary)
    if not labels:
        last = report.metrics[-1][1]
        assert last['geometry/lidar_images'] == 16 and 0 < last['geometry/alignment'] < 4
        assert f'after 2 epochs    {last["geometry/rank_me"]:6.1f}' in summary


def test_the_guard_does_not_change_the_weights(tmp_path):
    states = []
    for name in ('with', 'without'):
        cfg = guarded(tmp_path / name, epochs=1)
        cfg.optim_wrapper.optimizer.lr = 1e-3
        if name == 'without':
            cfg.default_hooks.pop('guard')
        states.append(run(cfg)[0].model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_worse_network_is_reported_and_the_start_is_kept(tmp_path):
    cfg = guarded(tmp_path)
    cfg.default_hooks.checkpoint.update(save_best='knn/top1', rule='greater')
    for loader in (cfg.val_dataloader, cfg.val_cfg.bank_dataloader):
        loader.dataset.indices = 300  # of features that are all equal any images are the nearest
    _, warned, _ = run(cfg, Forget())
    assert len(warned) == 1 and warned[0].startswith(WORSE.format(2))
    for part in ('kNN top-1 is ', 'optimizer.lr=3e-10 (a third)', '--epochs 1', 'stop_if_worse'):
        assert part in warned[0]
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_knn_top1_epoch_0.pth']


def test_the_guard_stops_the_run_and_resumes_with_the_first_start(tmp_path):
    cfg = without_labels(guarded(tmp_path, epochs=3, stop_if_worse=True), tmp_path)
    with pytest.raises(ValueError, match=f'{WORSE.format(2)} RankMe is 1.0, it was '):
        run(cfg, Forget())
    assert (tmp_path / 'epoch_2.pth').is_file() and not (tmp_path / 'epoch_3.pth').exists()
    again = without_labels(guarded(tmp_path, epochs=3), tmp_path)
    again.resume, again.load_from = True, str(tmp_path / 'epoch_2.pth')
    _, warned, said = run(again)
    # First the evaluation that the error cut short.
    assert [text.split(' RankMe')[0] for text in warned] == [WORSE.format(2), WORSE.format(3)]
    assert not any('before the first step' in text for text in said)


def test_changes_of_knn_within_chance_are_ignored():
    guard = ContinueGuardHook()
    guard.start = {'knn/top1': 80.0}
    for images, now, is_worse in ((100, 73.0, False), (100, 71.0, True), (10**6, 78.5, True)):
        # Of 100 images two standard errors are 8 points: 2 * sqrt(0.8 * 0.2 / 100)
        figures = {'knn/top1': now, 'images': images}
        assert bool(guard._compare_knn(None, figures)) == is_worse


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(min_kept=1.5), 'min_kept=1.5'),
        (dict(min_rank_me=-1), 'min_rank_me=-1'),
        (dict(num_neighbors=0), 'num_neighbors=0 must be at least 1'),
    ],
)
def test_invalid_settings_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        ContinueGuardHook(**arguments)


def test_a_run_without_evaluation_raises(tmp_path):
    cfg = guarded(tmp_path)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    with pytest.raises(ValueError, match=r'of mmpatchmix\.KNNLoop, and the run has none'):
        run(cfg)
