"""A resumed run equals an uninterrupted one bit for bit; plans, samplers and seeds."""

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils._pytree import tree_map

from mmpatchmix.cli.arguments import set_epochs
from mmpatchmix.datasets import Digits
from mmpatchmix.engine.exact_order import (
    WORKER_SECONDS,
    ExactSampler,
    SampleIndex,
    SeededSamples,
    make_exact,
)
from mmpatchmix.engine.schedules import compare_plans, describe_plan
from tests.engine.tiny_run import tiny_run_config

EPOCHS, PER_EPOCH, BATCH = 3, 4, 8
ITERS = EPOCHS * PER_EPOCH
LOGGED = ('loss', 'acc_source', 'lr', 'base_lr', 'momentum')


def build(work_dir, checkpoint=None, epochs=EPOCHS, workers=(0, False), **options):
    """Build a run of 12 iterations with seed=None that keeps the checkpoint of each iteration."""
    cfg = tiny_run_config(work_dir, EPOCHS, num_images=PER_EPOCH * BATCH, batch_size=BATCH)
    cfg.randomness.seed = None
    cfg.train_cfg.val_interval = 1
    cfg.train_dataloader.update(num_workers=workers[0], persistent_workers=workers[1])
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    cfg.model.backbone.drop_path_rate = 0.2
    cfg.merge_from_dict(options)
    set_epochs(cfg, epochs)
    cfg.resume, cfg.load_from = checkpoint is not None, checkpoint and str(checkpoint)
    return Runner.from_cfg(cfg)


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    build(folder).train()
    return folder


def assert_same_end(path, expected_path):
    """Weights, optimizer, schedules, random states and log are equal, bit for bit."""
    found, expected = read(path), read(expected_path)
    for name, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value), name
    for key in ('optimizer', 'param_schedulers', 'exact_resume'):
        assert repr(to_lists(found[key])) == repr(to_lists(expected[key])), key
    for name in [f'train/{name}' for name in LOGGED] + ['val/knn/top1']:
        histories = [
            file['message_hub']['log_scalars'][name]['values'] for file in (found, expected)
        ]
        assert torch.equal(*histories), name


def to_lists(state):
    return tree_map(lambda leaf: leaf.tolist() if torch.is_tensor(leaf) else leaf, state)


@pytest.mark.parametrize(
    ('iteration', 'workers'),
    [(2, (2, True)), (PER_EPOCH, (2, False)), (ITERS - 1, (0, False))],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    whole, tmp_path, monkeypatch, iteration, workers
):
    seen, read_sample = [], SeededSamples._read

    def record(samples, index):
        if isinstance(index, SampleIndex):
            seen.append(int(index))
        return read_sample(samples, index)

    monkeypatch.setattr(SeededSamples, '_read', record)
    content = read(whole / f'iter_{iteration}.pth')
    content['message_hub']['resumed_keys']['described'] = False  # a key without a value
    torch.save(content, tmp_path / 'begin.pth')
    runner = build(tmp_path, tmp_path / 'begin.pth', workers=workers)
    runner.train()
    assert_same_end(tmp_path / f'iter_{ITERS}.pth', whole / f'iter_{ITERS}.pth')
    assert 'esumed key' not in next(tmp_path.glob('*/*.log')).read_text()  # mmengine's warning
    if workers[0] == 0:  # consumed samples are not read again, the order is mmengine's
        seed = runner.train_dataloader.sampler.seed
        sampler = DefaultSampler(range(PER_EPOCH * BATCH), seed=seed)
        sampler.set_epoch(EPOCHS - 1)
        assert seen == list(sampler)[-BATCH:]


@pytest.mark.parametrize('change', [False, True])
def test_another_plan_is_refused_with_the_differences(whole, tmp_path, change):
    options = {'model.data_preprocessor.num_mix': 3, 'optim_wrapper.optimizer.lr': 1e-3}
    options |= {'model.data_preprocessor.std': [60.0] * 3, 'model.head.temperature': 0.5}
    options['model.loss_weights'] = dict(mix_mix=0)
    options['optim_wrapper.paramwise_cfg'] = dict(flat_decay_mult=0.5)
    options['default_hooks.exact_resume.change_schedule'] = change
    runner = build(tmp_path, whole / 'iter_5.pth', epochs=6, **options)
    with pytest.raises(ValueError, match='this run differs from the run') as refusal:
        runner.train()
    for line in (
        'epochs: 3 in the checkpoint, 6 now',
        'learning rate: 0.003 in the checkpoint, 0.001 now',
        'mixing: num_mix [2]',
        '60, 60, 60 now',
        "'mix_mix': 0, ",
        'temperature 0.5',
        '"paramwise_cfg": {"flat_decay_mult": 0.5}} now',
        '--change-schedule',
    ):
        assert line in str(refusal.value)
    assert runner.iter == 5
    runner.cfg.train_dataloader.dataset.pipeline.append(dict(value_range='0,4095'))
    plan = describe_plan(runner)
    for keys in (dict(a=1, b=dict(c=2, d=3)), dict(b=dict(d=3, c=2), a=1)):  # as it is dumped
        runner.cfg.optim_wrapper.paramwise_cfg = keys
        runner.cfg.optim_wrapper.constructor = DefaultSampler  # any class, as in Python configs
        assert '{"a": 1, "b": {"c": 2, "d": 3}}' in describe_plan(runner)['parameter groups']
    assert plan['values'] == "['0,4095']"
    former = {
        name: plan[name]
        for name in plan
        if name not in ('values', 'mean', 'std', 'loss', 'parameter groups')
    }
    assert compare_plans(former, plan) == ([], True)  # of an older checkpoint
    assert compare_plans(plan | dict(values="['dtype']"), plan) == (
        ["values: ['dtype'] in the checkpoint, ['0,4095'] now"],
        False,
    )


class Rates(Hook):
    """Learning rates and momentum of each iteration, as logged."""

    priority = 'LOWEST'

    def __init__(self):
        self.rows = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        names = ('train/lr', 'train/base_lr', 'train/momentum')
        self.rows[runner.iter] = [runner.message_hub.get_scalar(n).current() for n in names]


def test_a_changed_schedule_equals_that_of_a_new_run(whole, tmp_path):
    rates, expected = Rates(), Rates()
    options = {'train_cfg.val_interval': 99}
    for name, hook in (('changed', rates), ('new', expected)):
        start = whole / 'iter_5.pth' if name == 'changed' else None
        change = {'default_hooks.exact_resume.change_schedule': start is not None}
        runner = build(tmp_path / name, start, epochs=4, **change, **options)
        runner.register_hook(hook)
        runner.train()
    assert sorted(rates.rows) == list(range(5, 4 * PER_EPOCH))
    for iteration, row in rates.rows.items():
        assert row == pytest.approx(expected.rows[iteration], rel=1e-12), iteration
    log = next((tmp_path / 'changed').glob('*/*.log')).read_text()
    assert 'epochs: 3 in the checkpoint, 4 now' in log
    assert 'continuing at epoch 2 of 4, iteration 6 of 16' in log


def test_a_changed_batch_size_keeps_the_epoch_and_repeats_no_sample(whole, tmp_path):
    changed = {'default_hooks.exact_resume.change_schedule': True}
    runner = build(tmp_path, whole / 'iter_5.pth', **changed, **{'train_dataloader.batch_size': 16})
    rates = Rates()
    runner.register_hook(rates)
    runner.train()
    # 8 of 32 images of the second epoch are consumed; 2 iterations an epoch from now on.
    assert sorted(rates.rows) == [3, 4, 5]


def test_a_checkpoint_of_mmengine_continues_with_a_warning(whole, tmp_path):
    content = read(whole / f'iter_{ITERS - 1}.pth')
    del content['exact_resume']
    torch.save(content, tmp_path / 'plain.pth')
    build(tmp_path, tmp_path / 'plain.pth').train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'not exactly as an uninterrupted one' in log


@pytest.mark.parametrize('lost', ['optimizer', 'nested'])
def test_a_checkpoint_without_states_is_refused_with_the_remedy(whole, tmp_path, lost):
    content = read(whole / 'iter_5.pth')
    content.pop('optimizer')
    if lost == 'nested':  # the weights without any key around them
        content, lost = content['state_dict'], 'meta, message_hub, optimizer, param_schedulers'
    torch.save(content, tmp_path / 'part.pth')
    message = rf'part\.pth cannot be resumed, it has no {lost}\. .*--init.*load_from'
    with pytest.raises(ValueError, match=message):
        build(tmp_path, tmp_path / 'part.pth').train()


class Noise:
    """Samples that draw from all three generators."""

    metainfo = {'classes': ('a',)}

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return random.random(), np.random.rand(), float(torch.rand(()))


def test_a_sample_depends_on_seed_epoch_and_index_only():
    samples = SeededSamples(dict(type=Noise))

    def draw(*indices, seed=7, epoch=0):
        return samples.__getitems__([SampleIndex(index, seed, epoch) for index in indices])

    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    first = draw(3, 5)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[:2]
    assert torch.equal(torch.get_rng_state(), state[2])
    assert draw(5) + draw(3) == first[::-1]
    # A plain index is not seeded.
    others = first + draw(3, epoch=1) + draw(3, seed=8) + [samples[3]]
    for numbers in zip(*others, strict=True):
        assert len(set(numbers)) == len(others)
    assert samples[3] != samples[3]
    index = pickle.loads(pickle.dumps(SampleIndex(3, 7, 2)))
    assert (index, index.seed, index.epoch) == (3, 7, 2)
    assert samples.metainfo is Noise.metainfo


def test_hooks_of_mmpretrain_and_mmdet_switch_the_pipeline_of_the_training_set():
    from mmpretrain.engine import SwitchRecipeHook

    dataset = Digits(indices=3)  # built before, as mmengine permits
    runner = SimpleNamespace(train_loop=SimpleNamespace(dataloader=SimpleNamespace()))
    runner.train_loop.dataloader.dataset = samples = SeededSamples(dataset)
    SwitchRecipeHook._switch_train_pipeline(runner, lambda sample: sample['gt_label'])
    assert samples[0] == dataset.get_data_info(0)['gt_label']
    samples.pipeline = lambda sample: 'switched again'  # as mmdet's PipelineSwitchHook does
    assert samples[0] == dataset[0] == 'switched again'
    assert pickle.loads(pickle.dumps(SeededSamples(dict(type=Noise)))).metainfo is Noise.metainfo


def test_a_batch_over_all_ranks_has_the_same_samples_on_any_number_of_ranks():
    def order(ranks, skipped=0):
        rows = []
        for rank in range(ranks):
            sampler = ExactSampler(range(32), seed=5)
            sampler.rank, sampler.world_size = rank, ranks
            sampler.num_samples, sampler.total_size = 32 // ranks, 32
            sampler.set_epoch(3)
            sampler.num_skipped = skipped // ranks
            rows.append(list(sampler))
        return [index for step in zip(*rows, strict=True) for index in step]

    assert order(2) == order(1)
    assert order(4, skipped=8) == order(1)[8:]
    assert sorted(order(1)) == list(range(32))


def test_data_workers_have_a_timeout():
    for options, timeout in (({'num_workers': 2}, WORKER_SECONDS), ({}, None)):
        loader = dict(dataset={}, sampler=dict(type='DefaultSampler'), **options)
        assert make_exact(loader).get('timeout') == timeout


def test_a_run_that_saves_its_best_checkpoints_resumes_as_exactly(tmp_path):
    """mmengine saves an epoch again after its evaluation, which draws random numbers."""
    cfg = Config.fromfile('configs/finetune/vit-digits_plain.py')
    cfg.merge_from_dict({
        'model.backbone.drop_path_rate': 0.3,
        'train_dataloader.dataset.indices': 64,
        'val_dataloader.dataset.indices': 32,
        'train_cfg.val_interval': 1,
        'default_hooks.checkpoint': dict(interval=1, max_keep_ckpts=9),
        'default_hooks.report.pictures': False,
    })  # fmt: skip
    set_epochs(cfg, 3)
    for name in ('whole', 'resumed'):
        cfg.work_dir, cfg.experiment_name = str(tmp_path / name), f'best-{name}'
        Runner.from_cfg(cfg).train()
        cfg.resume, cfg.load_from = True, str(tmp_path / 'whole' / 'epoch_1.pth')
    assert list((tmp_path / 'whole').glob('best_*'))
    found, expected = (read(tmp_path / name / 'epoch_3.pth') for name in ('resumed', 'whole'))
    for name, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][name], value), name
