"""Health and probe hooks: their records, that they change nothing, and that they resume."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmpatchmix.evaluation import Features, HealthHook, OnlineProbeHook
from mmpatchmix.evaluation.rank_me import rank_me
from mmpatchmix.report.run_record import read_scalars
from tests.engine.tiny_run import tiny_run_config

HEALTH, PROBE = 'default_hooks.health', 'default_hooks.probe'


def build(work_dir, checkpoint=None, hooks=True, **options):
    """Build a run of 3 epochs of 6 iterations that keeps checkpoints 8, in mid-epoch, and 16."""
    options = {f'{HEALTH}.num_images': 20, f'{PROBE}.lr': 0.01, **options}
    cfg = tiny_run_config(work_dir, 3, **options)
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=8, by_epoch=False)
    cfg.train_cfg.val_interval = 1
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    if not hooks:
        cfg.default_hooks.pop('health'), cfg.default_hooks.pop('probe')
    cfg.resume, cfg.load_from = checkpoint is not None, checkpoint and str(checkpoint)
    return Runner.from_cfg(cfg)


def read(path):
    return torch.load(path, weights_only=True)


def history(file, name):
    return file['message_hub']['log_scalars'][name]['values']


def lower_thresholds(patch):
    """Set thresholds that every run exceeds."""
    for name, value in dict(COLLAPSED=1e9, GUESSING=0.0, LEAST_ITERATIONS=0).items():
        patch.setattr(f'mmpatchmix.evaluation.health.{name}', value)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run with both hooks, and its Runner."""
    folder = tmp_path_factory.mktemp('whole')
    runner = build(folder)
    with pytest.MonkeyPatch.context() as patch:
        lower_thresholds(patch)
        runner.train()
    return folder, runner


@pytest.fixture(scope='module')
def bare(tmp_path_factory):
    """The same run without the hooks, its Runner, and the norms of its gradients."""
    folder, norms = tmp_path_factory.mktemp('bare'), []

    def note(optimizer, *args):
        gradients = [p.grad for group in optimizer.param_groups for p in group['params']]
        norms.append(sum(float(g.double().square().sum()) for g in gradients) ** 0.5)

    handle = register_optimizer_step_pre_hook(note)
    try:
        runner = build(folder, hooks=False)
        runner.train()
    finally:
        handle.remove()
    return folder, runner, norms


def test_weights_equal_those_of_a_run_without_hooks_and_norms_are_of_all_gradients(whole, bare):
    expected, found = read(bare[0] / 'iter_18.pth'), read(whole[0] / 'iter_18.pth')
    torch.testing.assert_close(found['state_dict'], expected['state_dict'], rtol=0, atol=0)
    for name in ('train/loss', 'val/knn/top1'):
        assert torch.equal(*(history(file, name) for file in (found, expected))), name
    _, runner, norms = bare
    logged = runner.message_hub.get_scalar('train/grad_norm').data[0]
    assert len(norms) == 18 and logged.tolist() == pytest.approx(norms, rel=1e-5)


def test_figures_are_in_the_records_but_not_in_the_console_line(whole):
    training, validation = read_scalars(whole[0])
    names = {'rank_me', 'lidar', 'feature_std', 'data_share', 'images_per_second'}
    names |= {'positive_similarity', 'negative_similarity'}
    wanted = {f'health/{name}' for name in names}
    wanted |= {'grad_norm', 'momentum', 'acc_source', 'kl', 'kl_source', 'kl_mix_mix'}
    assert [record['iter'] for record in training] == list(range(1, 19))
    assert wanted <= training[-1].keys()
    assert 'health/rank_me' not in training[1]  # of 16 images, and 20 are asked for
    assert 'health/rank_me' in training[2]
    pairs = torch.cat(read(whole[0] / 'iter_18.pth')['health']['recent'])
    assert pairs.shape == (24, 2, 12)  # the batches that hold the last 20 images
    expected = rank_me(pairs[-20:].flatten(0, 1).double())
    assert training[-1]['health/rank_me'] == pytest.approx(expected, rel=1e-4)
    assert [record['step'] for record in validation] == [1, 2, 3]
    assert all(0 <= record['probe/top1'] <= 100 for record in validation)
    (log,) = whole[0].glob('*/*.log')
    lines = re.findall(r'.* INFO - Epoch .* lr .*', log.read_text())
    assert len(lines) == 18
    for line in lines:
        assert '  loss ' in line and '  acc ' in line and len(line) <= 125
        assert not re.search('health|kl|grad_norm', line)


def test_troubles_are_reported_once(whole):
    (path,) = whole[0].glob('*/vis_data/health.jsonl')
    (record,) = map(json.loads, path.read_text().splitlines())
    assert record.keys() == {'iter', 'epoch', 'name', 'message', 'hint'}
    # A quarter of 18 iterations are 5.
    assert (record['iter'], record['epoch'], record['name']) == (5, 1, 'collapse')
    (log,) = whole[0].glob('*/*.log')
    assert log.read_text().count('collapse: the features of all images have become alike') == 1
    assert record['hint'].startswith('Usual causes: ') and record['hint'] in log.read_text()


def test_a_resumed_run_has_the_state_of_the_whole_run(whole, tmp_path, monkeypatch):
    lower_thresholds(monkeypatch)
    build(tmp_path, whole[0] / 'iter_8.pth').train()
    found, expected = (read(folder / 'iter_18.pth') for folder in (tmp_path, whole[0]))
    assert not list(tmp_path.glob('*/vis_data/health.jsonl'))  # it was reported before
    probes = found['online_probe'], expected['online_probe']
    assert repr(probes[0]) == repr(probes[1])
    classifiers = [probe['classifier'] for probe in probes]
    torch.testing.assert_close(*classifiers, rtol=0, atol=0)
    states = expected['health'], found['health']
    assert all(state['told'] == ['collapse'] for state in states)
    assert torch.equal(*(torch.cat(state['recent']) for state in states))
    lines = [[line[:2] + line[3:] for line in state['lines']] for state in states]
    assert repr(lines[0]) == repr(lines[1])  # all but the times
    for name in ('val/probe/top1', 'train/health/lidar', 'train/health/positive_similarity'):
        assert torch.equal(*(history(file, name) for file in (found, expected))), name


def test_the_probe_learns_separable_classes_and_draws_no_random_number():
    hook, generator = OnlineProbeHook(lr=0.05), torch.Generator().manual_seed(0)
    hook._num_classes, hook._features = 2, SimpleNamespace(take=lambda: torch.ones(4, 2, 3))
    hook.after_train_iter(None, 0, dict(data_samples=[DataSample()] * 4))  # without labels
    assert hook.judge(Features(torch.ones(4, 3), None)) == {}
    state = torch.get_rng_state()

    def draw(number):
        labels = torch.randint(2, (number,), generator=generator)
        features = torch.randn(number, 3, generator=generator) + 100
        features[:, 1] += 6 * labels
        return features, labels

    for _ in range(60):
        features, labels = draw(32)
        pairs = features[:, None].expand(-1, 2, -1)
        hook._features = SimpleNamespace(take=lambda pairs=pairs: pairs)
        samples = [DataSample().set_gt_label(label) for label in labels.tolist()]
        hook.after_train_iter(None, 0, dict(data_samples=samples))
    assert torch.equal(torch.get_rng_state(), state)
    features, labels = draw(200)
    assert hook.judge(Features(features, labels))['probe/top1'] > 97
    assert hook.judge(Features(features, 1 - labels))['probe/top1'] < 3
    with pytest.raises(ValueError, match=r'health.num_images=1 must be at least 2'):
        HealthHook(num_images=1)
