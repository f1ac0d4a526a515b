"""Measured rates equal the theory of a simulated machine, whose clock nobody waits for."""

import math

import pytest
import torch
from mmengine.dataset import DefaultSampler
from mmengine.runner import Runner
from torch.utils.data import DataLoader, TensorDataset

from mmpatchmix.cli import throughput
from mmpatchmix.cli.endless_loader import EndlessBatches, endless_loader
from mmpatchmix.cli.throughput import (
    Speeds,
    Stopwatch,
    TrainStep,
    combine,
    count_images,
    measure_data,
    measure_step,
    measure_together,
)
from tests.engine.tiny_run import tiny_run_config

BATCH = 8


class Machine:
    """A clock, and a device that may lag behind it."""

    def __init__(self):
        self.now = 0.0
        self.device_done = 0.0

    def clock(self):
        return self.now

    def wait_for_device(self):
        self.now = max(self.now, self.device_done)

    def watch(self, seconds=60.0, **kwargs):
        return Stopwatch(
            seconds=seconds, clock=self.clock, synchronize=self.wait_for_device, **kwargs
        )


class Loader:
    """Torch's loader: workers take batches in turn, a few ahead of what was asked for."""

    prefetch_factor = 2

    def __init__(self, machine, batch_seconds, num_workers, startup_seconds=0.0):
        self.machine, self.cost, self.num_workers = machine, batch_seconds, num_workers
        self.startup = startup_seconds
        self.asked = 0

    def __iter__(self):
        machine, workers = self.machine, self.num_workers
        free_at = [machine.now + self.startup] * workers
        ready_at = []

        def dispatch():
            worker = len(ready_at) % workers
            free_at[worker] = max(machine.now, free_at[worker]) + self.cost
            ready_at.append(free_at[worker])

        for _ in range(workers * self.prefetch_factor):
            dispatch()
        while True:
            if workers:
                machine.now = max(machine.now, ready_at[self.asked])
                dispatch()
            else:
                machine.now += self.cost
            self.asked += 1
            yield {'inputs': range(BATCH)}


class Step:
    """A step the host waits for, or one that it hands to the device."""

    def __init__(self, machine, seconds, preprocess_seconds=0.0, warmup_seconds=0.0, lags=False):
        self.machine, self.seconds, self.preprocess_seconds = machine, seconds, preprocess_seconds
        self.warmup_seconds, self.lags = warmup_seconds, lags
        self.num_steps = 0

    def __call__(self, batch):
        assert len(batch['inputs']) == BATCH
        begun = max(self.machine.now, self.machine.device_done)
        self.machine.device_done = begun + self.seconds + self.warmup_seconds * (not self.num_steps)
        if not self.lags:
            self.machine.wait_for_device()
        self.num_steps += 1

    def preprocess(self, batch):
        self.machine.now += self.preprocess_seconds


@pytest.mark.parametrize('num_workers', [0, 1, 3, 10])
def test_loader_alone(num_workers):
    machine = Machine()
    loader = Loader(machine, 0.5, num_workers, startup_seconds=7.0 * bool(num_workers))
    rate, first_batch_seconds, first = measure_data(machine.watch(), loader)
    assert rate == pytest.approx(max(1, num_workers) * BATCH / 0.5)
    assert first_batch_seconds == pytest.approx(7.5 if num_workers else 0.5)
    assert count_images(first) == BATCH
    assert machine.now - first_batch_seconds == pytest.approx(
        60, abs=1.1
    )  # start-up, then what was asked for


def test_iters_come_in_whole_rounds_of_the_workers():
    machine = Machine()
    loader = Loader(machine, 0.5, num_workers=3)
    measure_data(machine.watch(iters=7), loader)
    assert loader.asked == 3 + 9  # one round ahead of what counts


@pytest.mark.parametrize('lags', [False, True])
def test_step_alone(lags):
    machine = Machine()
    step = Step(machine, 0.25, preprocess_seconds=0.01, warmup_seconds=100.0, lags=lags)
    seconds, preprocess_seconds = measure_step(machine.watch(), step, {'inputs': range(BATCH)})
    assert seconds == pytest.approx(0.25)  # compiling in the first step does not count
    assert preprocess_seconds == pytest.approx(0.01)
    assert step.num_steps == 3 + 240


def test_slow_steps_are_measured_all_the_same():
    machine = Machine()
    step = Step(machine, 45.0, preprocess_seconds=1.0)
    assert measure_step(machine.watch(10), step, {'inputs': range(BATCH)})[0] == pytest.approx(45)
    assert step.num_steps == 2 + 2


@pytest.mark.parametrize(
    ('data_seconds', 'num_workers', 'step_seconds'),
    [
        (0.5, 2, 1.0),  # the step limits
        (4.0, 2, 1.0),  # the loader limits, by 2
        (4.0, 10, 0.1),  # by 4
        (2.0, 2, 1.0),  # balanced
        (1.0, 1, 3.0),
        (3.0, 0, 1.0),  # one after the other
    ],
)
def test_together(data_seconds, num_workers, step_seconds):
    machine = Machine()
    loader, step = Loader(machine, data_seconds, num_workers), Step(machine, step_seconds)
    per_batch = data_seconds / max(1, num_workers)
    rate, seconds, waiting = measure_together(
        machine.watch(), step, loader, per_batch, step.seconds
    )
    overlaps = num_workers > 0
    expected = max(per_batch, step_seconds) if overlaps else per_batch + step_seconds
    assert seconds == pytest.approx(expected)
    assert rate == pytest.approx(BATCH / expected)
    assert waiting == pytest.approx(1 - step_seconds / expected)


@pytest.mark.parametrize(('load', 'waiting'), [(0.3, 0.0), (2.0, 0.5)])
def test_the_gpu_waits_only_when_it_has_nothing_to_do(monkeypatch, load, waiting):
    """The host hands over a step and loads meanwhile; its own wait says nothing."""
    machine = Machine()

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = max(machine.now, machine.device_done)

        def elapsed_time(self, later):
            return 1000 * (later.at - self.at)

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    watch = machine.watch(600, use_events=True)
    step = Step(machine, 1.0, lags=True)
    rate, _, share = measure_together(watch, step, Loader(machine, load, 0), load, 1.0)
    # The first and the last step that count have no other beside them, hence not exactly.
    assert share == pytest.approx(waiting, abs=0.004)
    assert rate == pytest.approx(BATCH / max(load, 1.0), rel=0.004)


def test_a_step_does_all_that_computes_on_the_model(tmp_path, monkeypatch):
    cfg = tiny_run_config(tmp_path, **{'optim_wrapper.accumulative_counts': 2})
    cfg.custom_hooks = [dict(type='EMAHook')]
    runner = Runner.from_cfg(cfg)
    step = TrainStep(runner)
    model, updates = runner.model, []
    update = model.update_momentum_encoder
    monkeypatch.setattr(
        model,
        'update_momentum_encoder',
        lambda momentum: updates.append(momentum) or update(momentum),
    )
    batch = next(iter(runner.train_dataloader))

    def weights():
        return torch.nn.utils.parameters_to_vector(model.backbone.parameters()).clone()

    for group in runner.optim_wrapper.param_groups:
        group['lr'] = 0.1  # the warm-up begins with 0
    before, changed = weights(), []
    for _ in range(4):
        step(batch)
        changed.append(not torch.equal(weights(), before))
        before = weights()
    assert changed == [False, True, False, True]
    assert updates == [0.996, 0.996]  # once per optimizer step
    (average,) = step.averages
    assert int(average.ema_model.steps) == 4
    step.preprocess(batch)
    assert torch.equal(weights(), before)


@pytest.mark.parametrize('waits', [False, True])
def test_losses_are_read_where_the_run_reads_them(tmp_path, monkeypatch, waits):
    """mmengine's own hook reads them in every iteration, ours does not."""
    cfg = tiny_run_config(tmp_path)
    if waits:
        cfg.default_hooks.runtime_info = dict(type='RuntimeInfoHook')
    step = TrainStep(Runner.from_cfg(cfg))
    read = []

    class Loss:
        def item(self):
            read.append(1)

    monkeypatch.setattr(throughput, 'take_step', lambda *args, **kwargs: {'loss': Loss()})
    step({})
    assert len(read) == int(waits)


def test_all_ranks_take_as_many_steps_as_rank_0():
    def steps_of(rank_0_plan):
        machine = Machine()
        step = Step(machine, 1.0 + rank_0_plan)
        watch = machine.watch(agree=lambda number: rank_0_plan if number > 1 else number)
        measure_together(watch, step, Loader(machine, 0.1, 2), 0.05, step.seconds)
        return step.num_steps

    assert [steps_of(plan) for plan in (5, 17)] == [1 + 5, 1 + 17]


def test_progress_goes_from_nothing_to_all():
    machine, seen = Machine(), {}
    watch = machine.watch(progress=lambda phase, share: seen.setdefault(phase, []).append(share))
    measure_data(watch, Loader(machine, 7.0, 2))
    measure_step(watch, Step(machine, 1.0, 0.1), {'inputs': range(BATCH)})
    measure_together(watch, Step(machine, 1.0), Loader(machine, 0.5, 2), 0.25, 1.0)
    assert list(seen) == ['data only', 'step only', 'data preprocessor', 'together']
    for shares in seen.values():
        assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)


def test_ranks_add_up():
    ranks = [Speeds(10, 1, 5, 2, 0.1, 4, 2.5, 0.2), Speeds(20, 3, 6, 1, 0.2, 3, 2.0, 0.4)]
    assert combine(ranks) == Speeds(30, 3, 11, 2, 0.2, 7, 2.5, 0.4)


def test_images_are_counted_in_every_shape_of_inputs():
    images = torch.zeros(5, 3, 4, 4)
    for inputs in (images, list(images), {'view_1': images, 'local_views': images}):
        assert count_images({'inputs': inputs, 'data_samples': [None] * 5}) == 5


def test_an_endless_loader_shows_every_image_once_an_epoch_in_another_order():
    data = TensorDataset(torch.arange(12))
    loader = DataLoader(data, batch_size=4, sampler=DefaultSampler(data, shuffle=True, seed=1))
    batches = iter(endless_loader(loader, first_epoch=3))
    epochs = [torch.cat([next(batches)[0] for _ in range(3)]).tolist() for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert epochs[0] != epochs[1]
    loader.sampler.set_epoch(3)
    assert torch.cat([batch for (batch,) in loader]).tolist() == epochs[0]


def test_an_endless_loader_keeps_workers_and_what_they_start_with():
    def init(worker):
        return None

    data = TensorDataset(torch.arange(12))
    loader = DataLoader(data, batch_size=4, num_workers=2, prefetch_factor=5, worker_init_fn=init)
    endless = endless_loader(loader)
    assert (endless.num_workers, endless.prefetch_factor) == (2, 5)
    assert endless.worker_init_fn is init and endless.collate_fn is loader.collate_fn


def test_too_few_images_for_a_batch_do_not_hang():
    with pytest.raises(ValueError, match='do not fill one batch'):
        next(iter(EndlessBatches([])))


def test_a_plan_covers_the_goal():
    watch = Stopwatch(seconds=10)
    assert watch.plan(3.0) == math.ceil(10 / 3)
    assert watch.plan(3.0, multiple_of=3) == 6
    assert watch.plan(100.0) == 2
    assert Stopwatch(iters=1).plan(3.0) == 1
