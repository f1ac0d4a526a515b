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
    images = folder / 'images'  # the work dir itself is never data
    images.mkdir(exist_ok=True)
    for number, image in enumerate(load_digits().images[:60]):
        large = cv2.resize((image * 15).astype('uint8'), (32, 32))
        cv2.imwrite(f'{images}/{number:02}.png', large)
    dataset = dict(type='mmpatchmix.ImageFolder', data_root=str(images), labels=False)
    dataset.update(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')])
    cfg.val_dataloader.dataset = cfg.val_cfg.bank_dataloader.dataset = dataset
    cfg.default_hooks.checkpoint.save_best = None
    return cfg


def run(cfg, *hooks):
    """Return the trained Runner, the messages of the guard with their levels, and its error."""
    runner, said, fault = Runner.from_cfg(cfg), [], ''
    for hook in hooks:
        runner.register_hook(hook)
    handler = logging.Handler()
    handler.emit = lambda record: said.append((record.levelname, record.getMessage()))
    runner.logger.addHandler(handler)
    try:
        runner.train()
    except ValueError as error:
        fault = str(error)
    runner.logger.removeHandler(handler)
    return runner, [(level, text) for level, text in said if text.startswith('continue g')], fault


def run_report(cfg):
    """Train with a report that draws nothing; forget in the second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunReportHook, '_attempt', lambda *args: None)
        runner, said, fault = run(cfg, Forget())
    report = next(hook for hook in runner.hooks if isinstance(hook, RunReportHook))
    assert [epoch for epoch, _ in report.metrics] == [0, 1, 2]  # with the start
    return report, said, fault


def test_a_worse_network_is_reported_and_the_start_is_kept(tmp_path):
    cfg = guarded(tmp_path, report=True)
    cfg.default_hooks.checkpoint.update(save_best='knn/top1', rule='greater')
    for loader in (cfg.val_dataloader, cfg.val_cfg.bank_dataloader):
        loader.dataset.indices = 300  # of features that are all equal any images are the nearest
    report, said, fault = run_report(cfg)
    (_, random), (level, start), (_, worse) = said  # nothing after the first epoch
    assert 'starts from random weights' in random and '--init FILE' in random
    assert level == 'INFO' and 'before the first step, kNN top-1' in start
    assert worse.startswith(WORSE.format(2)) and not fault
    for part in ('kNN top-1 is ', 'optimizer.lr=3e-10 (a third)', '--epochs 1', 'stop_if_worse'):
        assert part in worse
    assert [path.name for path in tmp_path.glob('best_*.pth')] == ['best_knn_top1_epoch_0.pth']
    summary = '\n'.join(report.summarise_metrics())
    assert 'untrained' in summary and 'kNN top-1' in summary


def test_a_run_without_labels_is_stopped_by_geometry_and_resumes_with_the_first_start(tmp_path):
    cfg = guarded(tmp_path, epochs=3, report=True, stop_if_worse=True)
    report, said, fault = run_report(without_labels(cfg, tmp_path))
    assert [level for level, _ in said] == ['WARNING', 'INFO', 'INFO', 'INFO']
    assert 'random weights' in said[0][1] and 'before the first step, RankMe' in said[1][1]
    assert '100 % of the nearest neighbours are those of the start' in said[2][1]
    first, last = report.metrics[1][1], report.metrics[2][1]
    assert first['geometry/lidar_images'] == 16 and 0 < first['geometry/alignment'] < 4
    summary = '\n'.join(report.summarise_metrics())
    assert f'after 2 epochs  {last["geometry/rank_me"]:.2f}' in summary
    assert fault.startswith(f'{WORSE.format(2)} RankMe is 1.0, it was ')
    assert (tmp_path / 'epoch_2.pth').is_file() and not (tmp_path / 'epoch_3.pth').exists()
    again = without_labels(guarded(tmp_path, epochs=3), tmp_path)
    again.resume, again.load_from = True, str(tmp_path / 'epoch_2.pth')
    _, said, _ = run(again)
    # First the evaluation that the error cut short.
    warned = [text.split(' RankMe')[0] for level, text in said if level == 'WARNING']
    assert warned == [WORSE.format(2), WORSE.format(3)]
    assert not any('before the first step' in text for _, text in said)


def test_the_guard_does_not_change_the_weights(tmp_path):
    states = []
    for name in ('with', 'without'):
        cfg = guarded(tmp_path / name, epochs=1)
        cfg.optim_wrapper.optimizer.lr = 1e-3
        if name == 'without':
            cfg.default_hooks.pop('guard')
        states.append(run(cfg)[0].model.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_changes_of_knn_within_chance_are_ignored():
    guard = ContinueGuardHook()
    guard.start = {'knn/top1': 80.0}
    for images, now, is_worse in ((100, 73.0, False), (100, 71.0, True), (10**6, 78.5, True)):
        # Of 100 images two standard errors are 8 points: 2 * sqrt(0.8 * 0.2 / 100)
        figures = {'knn/top1': now, 'images': images}
        assert bool(guard._compare_knn(None, figures)) == is_worse


def test_invalid_settings_and_a_run_without_evaluation_raise(tmp_path):
    for arguments in (dict(min_kept=1.5), dict(min_rank_me=-1), dict(num_neighbors=0)):
        ((name, value),) = arguments.items()
        with pytest.raises(ValueError, match=f'{name}={value}'):
            ContinueGuardHook(**arguments)
    cfg = guarded(tmp_path)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    assert 'of mmpatchmix.KNNLoop, and the run has none' in run(cfg)[2]
