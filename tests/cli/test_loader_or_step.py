"""Rates equal the theory of a simulated machine; verdicts equal arithmetic by hand."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import mmpatchmix.registry  # noqa: F401
from mmpatchmix.cli import benchmark as loader_or_step
from mmpatchmix.cli.benchmark import Speeds, make_step, measure, verdict
from tests.engine.tiny_run import tiny_run_config

BATCH = 8


class Machine:
    """A clock nobody waits for, and a device that may lag behind it."""

    def __init__(self):
        self.now = self.device_done = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def wait_for_device(self):
        self.now = max(self.now, self.device_done)


class Loader:
    """Torch's loader: workers take batches in turn, two each ahead of what was asked for."""

    dataset = range(100)

    def __init__(self, machine, batch_seconds, num_workers, startup_seconds):
        self.machine, self.cost, self.num_workers = machine, batch_seconds, num_workers
        self.startup_seconds = startup_seconds
        self.prefetch_factor = 2 if num_workers else None
        self.batch_sampler = SimpleNamespace(sampler=None)

    def __iter__(self):
        machine, workers = self.machine, self.num_workers
        free_at = [machine.now + self.startup_seconds] * workers
        ready_at = []

        def dispatch():
            worker = len(ready_at) % workers
            free_at[worker] = max(machine.now, free_at[worker]) + self.cost
            ready_at.append(free_at[worker])

        for _ in range(2 * workers):
            dispatch()
        asked = 0
        while True:
            if workers:
                machine.now = max(machine.now, ready_at[asked])
                dispatch()
            else:
                machine.now += self.cost
            asked += 1
            yield asked


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    clock = SimpleNamespace(perf_counter=lambda: machine.now, sleep=machine.sleep)
    monkeypatch.setattr(loader_or_step, 'time', clock)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'synchronize', machine.wait_for_device)
    return machine


@pytest.mark.parametrize('lags', [False, True], ids=['host', 'device'])
@pytest.mark.parametrize(
    ('data_seconds', 'num_workers', 'step_seconds'),
    [
        (0.5, 2, 1.0),  # the step limits, by 4
        (4.0, 2, 1.0),  # the loader limits, by 2
        (4.0, 10, 0.1),  # by 4
        (2.0, 2, 1.0),  # balanced
        (1.0, 1, 3.0),
        (3.0, 0, 1.0),  # no workers
        (0.01, 4, 45.0),  # slow steps
    ],
)
def test_rates_of_a_simulated_machine(machine, data_seconds, num_workers, step_seconds, lags):
    steps = []

    def step(batch):
        steps.append(batch)
        warmup = 100.0 * (len(steps) == 1)  # compiling does not count
        machine.device_done = max(machine.now, machine.device_done) + step_seconds + warmup
        if not lags:
            machine.wait_for_device()

    loader = Loader(machine, data_seconds, num_workers, startup_seconds=7.0 * bool(num_workers))
    speeds = measure(loader, step, BATCH, seconds=600.0)
    per_batch = data_seconds / max(1, num_workers)
    # Only a device works while the process itself loads.
    both = max(per_batch, step_seconds) if num_workers or lags else per_batch + step_seconds
    assert speeds.data_rate == pytest.approx(BATCH / per_batch)
    assert speeds.step_rate == pytest.approx(BATCH / step_seconds)
    # The first and the last step that count have no load beside them, hence not exactly.
    ends = 0 if num_workers else 0.01 * lags
    assert speeds.together_rate == pytest.approx(BATCH / both, rel=max(1e-6, ends))
    assert (speeds.num_ranks, speeds.num_workers, speeds.step_threads) == (1, num_workers, 0)


def test_ranks_add_up_and_step_equally_often(machine, monkeypatch):
    """The other rank has another speed and asks for 50 rounds."""

    def gather(mine):
        if isinstance(mine, list):
            return [mine, [10.0, 20.0, 30.0]]
        return [mine, 50] if type(mine) is int else [mine, False]

    monkeypatch.setattr(loader_or_step, 'all_gather_object', gather)
    steps = []

    def step(batch):
        steps.append(batch)
        machine.now += 2.0

    speeds = measure(Loader(machine, 1.0, 1, 0.0), step, BATCH, seconds=4.0)
    assert (speeds.data_rate, speeds.step_rate, speeds.together_rate) == (18.0, 24.0, 34.0)
    assert speeds.num_ranks == 2
    assert len(steps) == 2 + (1 + 50) + (1 + 50)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_a_short_epoch_does_not_end_a_measurement(num_workers):
    data, seen = TensorDataset(torch.arange(10)), []
    sampler = BatchSampler(RandomSampler(data), batch_size=4, drop_last=True)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=num_workers)
    measure(loader, lambda batch: seen.append(batch[0]), 4, seconds=0.05)
    assert all(len(batch) == 4 for batch in seen)
    assert set(torch.cat(seen).tolist()) == set(range(10))


def test_a_step_does_all_that_computes_on_the_model(tmp_path, monkeypatch):
    cfg = tiny_run_config(tmp_path, **{'optim_wrapper.accumulative_counts': 2})
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.param_scheduler = None  # a warm-up begins with 0
    runner = Runner.from_cfg(cfg)
    step, model, updates = make_step(runner), runner.model, []
    update = model.update_momentum_encoder
    monkeypatch.setattr(
        model, 'update_momentum_encoder', lambda share: updates.append(share) or update(share)
    )
    changed = []
    for batch, _ in zip(runner.train_dataloader, range(4), strict=False):
        before = torch.nn.utils.parameters_to_vector(model.backbone.parameters()).clone()
        step(batch)
        after = torch.nn.utils.parameters_to_vector(model.backbone.parameters())
        changed.append(not torch.equal(before, after))
    assert changed == [False, True, False, True]
    assert len(updates) == 2  # once per optimizer step
    (average,) = (hook for hook in runner.hooks if hasattr(hook, 'ema_model'))
    assert int(average.ema_model.steps) == 4
    assert not list(tmp_path.rglob('*.pth'))


# Rates of all ranks, (ranks, workers, cores, threads of the step), and what follows by hand.
REGIMES = {
    # 4 workers at 800 images/s: 5 ms an image. 6 images/s take 30 ms of a worker a second.
    'step': ((800, 6, 6), (1, 4, 16, 0), 'step', 1, ['133.3 times as quick', '--workers 1 would']),
    'step, by less': ((800, 500, 500), (1, 4, 4, 0), 'step', 3, ['1.6 times', '--workers 3']),
    'step, just': ((800, 700, 700), (1, 4, 4, 0), 'step', 4, ['1.1 times']),
    'step, no workers': ((200, 1, 0.995), (1, 0, 2, 2), 'step', 1, ['even without workers']),
    'loader': (
        (800, 2000, 800),
        (1, 4, 16, 0),
        'loader',
        10,  # 2000 x 5 ms = 10 s of a worker a second
        ['The loader limits: the step alone is 2.5 times', '--workers 10 instead of 4 would do.'],
    ),
    'loader, no core to spare': (
        (800, 1000, 800),
        (1, 4, 4, 0),
        'loader',
        5,
        ['1.2 times', '5 workers on as many cores', 'of its 4 cores a process has 4 to spare'],
    ),
    'loader, on a CPU': (
        (200, 500, 200),
        (1, 1, 4, 2),
        'loader',
        3,
        ['2.5 times', '3 workers on as many cores', 'of its 4 cores a process has 2 to spare'],
    ),
    # One after the other: 1 / (1/200 + 1/500) = 142.9; 500 / 142.9 = 3.5.
    'loader, no workers': (
        (200, 500, 1000 / 7),
        (1, 0, 16, 0),
        'loader',
        3,
        ['3.5 times', '--workers 3 instead of 0'],
    ),
    # 8 workers on 2 cores load as 2 do: 400 images/s are 5 ms of a core each.
    'more workers than cores': (
        (400, 1000, 400),
        (1, 8, 2, 0),
        'loader',
        5,
        ['5 workers on', '2 to spare', '8 workers take turns: a process has cores for 2'],
    ),
    'balanced': ((800, 760, 740), (1, 4, 16, 0), 'neither', 4, ['less than 10 %']),
    'balanced, other way': ((800, 840, 780), (1, 4, 4, 0), 'neither', 5, ['less than 10 %']),
    'competition': (
        (800, 500, 300),
        (1, 4, 4, 4),
        'step',
        3,
        ['--workers 3', 'reach 60% of what', 'compete'],
    ),
    # The same as "loader", four times.
    'ranks': (
        (3200, 8000, 3200),
        (4, 4, 8, 0),
        'loader',
        10,
        ['10 workers on', 'of its 8 cores a process has 8 to spare'],
    ),
}


@pytest.mark.parametrize(
    ('rates', 'setup', 'side', 'needed', 'parts'), REGIMES.values(), ids=REGIMES
)
def test_verdict(rates, setup, side, needed, parts):
    speeds = Speeds(*setup, *rates)
    assert (speeds.limit, speeds.workers_needed) == (side, needed)
    text = ' '.join(verdict(speeds))
    for part in parts:
        assert part in text
    # Nothing is said that does not apply.
    assert ('compete' in text) == ('compete' in parts)
    assert ('to spare' in text) == any('to spare' in part for part in parts)
    assert ('--workers' in text) == any('--workers' in part for part in parts)
    assert ('take turns' in text) == (setup[1] > setup[2])


@pytest.mark.parametrize('num_ranks', [1, 3])
@pytest.mark.parametrize('step_rate', [1, 99, 100, 101, 250, 999])
def test_needed_workers_deliver_what_the_step_takes_and_one_less_does_not(num_ranks, step_rate):
    speeds = Speeds(num_ranks, 2, 64, 0, 100 * num_ranks, step_rate * num_ranks, 1)
    needed = speeds.workers_needed  # of workers that deliver 50 images/s each
    assert 50 * needed >= step_rate
    assert needed == 1 or 50 * (needed - 1) < step_rate
