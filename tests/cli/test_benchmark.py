"""``benchmark``: rates of a simulated machine, verdicts, and the verb in one process and two."""

import itertools
import json
import signal
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import mmpatchmix.registry  # noqa: F401
from mmpatchmix.cli import benchmark
from mmpatchmix.cli.benchmark import Speeds, make_step, measure, verdict, write_sample_photos
from tests.engine.tiny_run import tiny_run_config
from tests.faults.processes import run_ranks

BATCH = 8
ROOT = Path(__file__).parents[2]


class Machine:
    """A simulated clock, and a device that may lag behind it."""

    def __init__(self):
        self.now = self.device_done = 0.0

    def sleep(self, seconds):
        self.now += seconds

    def wait_for_device(self):
        self.now = max(self.now, self.device_done)


class Loader:
    """Simulates torch's loader: workers take batches in turn, two prefetched by each."""

    dataset = range(100)

    def __init__(self, machine, batch_seconds, num_workers, startup_seconds):
        self.machine, self.cost, self.num_workers = machine, batch_seconds, num_workers
        self.startup_seconds = startup_seconds
        self.prefetch_factor = 2 if num_workers else None
        self.batch_sampler = SimpleNamespace(sampler=None)

    def __iter__(self):
        machine, workers = self.machine, self.num_workers
        free_at = [machine.now + self.startup_seconds] * workers
        taken_at = [0.0] * 2 * workers  # a batch is requested when an earlier one is taken
        for index in itertools.count():
            if workers:
                requested, worker = taken_at[index], index % workers
                free_at[worker] = max(requested, free_at[worker]) + self.cost
                machine.now = max(machine.now, free_at[worker])
            else:
                machine.now += self.cost
            taken_at.append(machine.now)
            yield index


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    clock = SimpleNamespace(perf_counter=lambda: machine.now, sleep=machine.sleep)
    monkeypatch.setattr(benchmark, 'time', clock)
    monkeypatch.setattr(torch.accelerator, 'is_available', lambda: True)
    monkeypatch.setattr(torch.accelerator, 'synchronize', machine.wait_for_device)
    return machine


@pytest.mark.parametrize('lags', [False, True], ids=['host', 'device'])
@pytest.mark.parametrize(
    ('data_seconds', 'num_workers', 'step_seconds'),
    [
        (0.5, 2, 1.0),  # the step limits
        (4.0, 10, 0.1),  # the loader limits
        (3.0, 0, 1.0),  # no workers
        (0.01, 4, 45.0),  # slow steps
    ],
)
def test_rates_of_a_simulated_machine(machine, data_seconds, num_workers, step_seconds, lags):
    steps = []

    def step(batch):
        steps.append(batch)
        warmup = 100.0 * (len(steps) == 1)  # compiling must not count
        machine.device_done = max(machine.now, machine.device_done) + step_seconds + warmup
        if not lags:
            machine.wait_for_device()

    loader = Loader(machine, data_seconds, num_workers, startup_seconds=7.0 * bool(num_workers))
    speeds = measure(loader, step, BATCH, seconds=600.0)
    per_batch = data_seconds / max(1, num_workers)
    # Without workers, only a device computes while the process loads.
    both = max(per_batch, step_seconds) if num_workers or lags else per_batch + step_seconds
    assert speeds.data_rate == pytest.approx(BATCH / per_batch)
    assert speeds.step_rate == pytest.approx(BATCH / step_seconds)
    # The first and the last counted step do not overlap with loading, hence not exactly.
    ends = 0 if num_workers else 0.01 * lags
    assert speeds.together_rate == pytest.approx(BATCH / both, rel=max(1e-6, ends))


def test_rates_of_ranks_add_up_and_all_take_the_same_number_of_steps(machine, monkeypatch):
    def gather(mine):  # the other rank has another speed and asks for 50 rounds
        if isinstance(mine, list):
            return [mine, [10.0, 20.0, 30.0]]
        return [mine, 50] if type(mine) is int else [mine, False]

    monkeypatch.setattr('mmengine.dist.all_gather_object', gather)
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
    data, batches = TensorDataset(torch.arange(10)), []
    sampler = BatchSampler(RandomSampler(data), batch_size=4, drop_last=True)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=num_workers)
    measure(loader, lambda batch: batches.append(batch[0]), 4, seconds=0.05)
    assert all(len(batch) == 4 for batch in batches)
    assert set(torch.cat(batches).tolist()) == set(range(10))


def test_a_step_includes_accumulation_momentum_update_and_ema(tmp_path, monkeypatch):
    cfg = tiny_run_config(tmp_path, **{'optim_wrapper.accumulative_counts': 2})
    cfg.custom_hooks = [dict(type='EMAHook')]
    cfg.param_scheduler = None  # a warm-up starts at 0
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


# Rates of loader, step and both over all ranks; (ranks, workers, cores, threads of the step); and
# by hand: limiting side, workers needed, parts of the verdict.
REGIMES = {
    # 4 workers at 800 images/s: 5 ms an image. 6 images/s take 30 ms of a worker per second.
    'step': ((800, 6, 6), (1, 4, 16, 0), 'step', 1, ['133.3 times', '--workers 1 would']),
    'step, just': ((800, 700, 700), (1, 4, 4, 0), 'step', 4, ['1.1 times']),
    'step, no workers': ((200, 1, 0.995), (1, 0, 2, 2), 'step', 1, ['200.0 times']),
    # 2000 x 5 ms = 10 s of a worker per second.
    'loader': ((800, 2000, 800), (1, 4, 16, 0), 'loader', 10, ['2.5', '--workers 10 instead of 4']),
    'loader, no free core': ((800, 1e3, 800), (1, 4, 4, 0), 'loader', 5, ['1.2 times', '4 cores']),
    'loader, on a CPU': ((200, 500, 200), (1, 1, 4, 2), 'loader', 3, ['2.5 times', '2 cores']),
    # One after the other: 1 / (1/200 + 1/500) = 142.9; 500 / 142.9 = 3.5.
    'loader, no workers': ((200, 500, 1e3 / 7), (1, 0, 16, 0), 'loader', 3, ['3.5', '--workers 3']),
    # 8 workers on 2 cores load as 2 do: 400 images/s are 5 ms of a core each.
    'few cores': ((400, 1e3, 400), (1, 8, 2, 0), 'loader', 5, ['5 workers', '2 cores']),
    'balanced': ((800, 840, 780), (1, 4, 4, 0), 'neither', 5, ['less than 10 %']),
    'competition': ((800, 500, 300), (1, 4, 4, 4), 'step', 3, ['--workers 3', '60%', 'compete']),
    # As "loader", four times.
    'ranks': ((3200, 8000, 3200), (4, 4, 8, 0), 'loader', 10, ['10 workers', '8 cores are free']),
}


@pytest.mark.parametrize(
    ('rates', 'setup', 'side', 'needed', 'parts'), REGIMES.values(), ids=REGIMES
)
def test_verdict(rates, setup, side, needed, parts):
    speeds = Speeds(*setup, *rates)
    assert (speeds.limit, speeds.workers_needed) == (side, needed)
    text = verdict(speeds)
    for part in parts:
        assert part in text
    assert ('compete' in text) == ('compete' in parts)
    assert ('are free' in text) == any('cores' in part for part in parts)
    assert ('--workers' in text) == any('--workers' in part for part in parts)
    assert text.count('. ') <= 2  # three sentences


# The verb


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """A folder for temporary files, which must be empty at the end.

    Sockets of workers are created there; their paths are limited to 107 characters, which excludes
    pytest's own folder.
    """
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(tempfile, 'tempdir', folder)
        handler, before = signal.getsignal(signal.SIGTERM), sorted(ROOT.glob('work_dirs/*'))
        yield folder
        signal.signal(signal.SIGTERM, handler)
        assert sorted(ROOT.glob('work_dirs/*')) == before
        assert not [path for path in Path(folder).iterdir() if path.name.startswith('mmpatchmix')]


@pytest.fixture
def digits(tmp_path):
    """The digits recipe with a toy network and 6 iterations an epoch."""
    tiny_run_config('', epochs=80).dump(tmp_path / 'digits.py')
    return tmp_path / 'digits.py'


def read_figures(text):
    """Return the JSON line, checked against the lines above."""
    *lines, last = text.strip().splitlines()
    figures = json.loads(last)
    assert f'verdict    {figures["verdict"]}' in lines
    assert min(figures['data_rate'], figures['step_rate']) > 0 <= figures['memory_gib']
    seconds = figures['num_images'] / figures['together_rate']
    assert figures['epoch_seconds'] == pytest.approx(seconds)
    return figures


def test_benchmark_prints_figures_and_leaves_no_files(scratch, digits, capfd):
    benchmark.main([str(digits), '--seconds', '0.2', '--workers', '1', '--json'])
    text, phases = capfd.readouterr()
    figures = read_figures(text)
    assert phases.count('measuring: ') == 3
    assert (figures['num_images'], figures['num_epochs'], figures['batch_size']) == (48, 80, 8)
    assert (figures['num_workers'], figures['num_ranks']) == (1, 1)
    assert f'{digits} on ' in text and 'WARNING' not in text + phases
    with pytest.raises(SystemExit, match='ImageFolder, not mmpatchmix'):
        benchmark.main([str(digits), '--synthetic'])


def test_synthetic_images_stand_for_imagenet(scratch, tmp_path, capfd):
    config = tmp_path / 'folder.py'
    cfg = Config.fromfile('configs/patchmix_vit-s_folder.py')
    toy = tiny_run_config('').model
    cfg.model.update(neck=toy.neck, head=toy.head)
    cfg.model.backbone.update(arch=toy.backbone.arch, patch_size=32)
    cfg.model.data_preprocessor.patch_size = 32
    cfg.dump(config)
    options = ['--synthetic', '--seconds', '0.2', '--batch-size', '4', '--workers', '0', '--no-amp']
    benchmark.main([str(config), *options, '--json'])
    figures = read_figures(capfd.readouterr().out)
    assert (figures['num_workers'], figures['batch_size']) == (0, 4)
    assert (figures['num_images'], figures['num_epochs']) == (1_281_167, 300)


def test_two_ranks_measure_together_and_one_prints(digits, tmp_path):
    options = ['--launcher', 'pytorch', '--seconds', '0.2', '--images', '1600', '--json']
    first, other = run_ranks(tmp_path, benchmark.main, [str(digits), *options])
    figures = read_figures(first[: first.rindex('}') + 1])
    assert (figures['num_ranks'], figures['num_images']) == (2, 1600)
    assert '}' not in other


def test_photos_are_distinct_reproducible_and_sized_like_imagenet(tmp_path):
    write_sample_photos(tmp_path / 'a', num_images=12, num_distinct=5)
    write_sample_photos(tmp_path / 'b', num_images=2)
    files = sorted((tmp_path / 'a').rglob('*.*'))
    assert len(files) == 12
    images = [Image.open(path) for path in files]
    assert all(image.format == 'JPEG' and image.mode == 'RGB' for image in images)
    sizes = [sorted(image.size) for image in images]
    assert np.mean(sizes, axis=0) == pytest.approx([375, 500], rel=0.06)
    assert np.mean([path.stat().st_size for path in files]) == pytest.approx(90e3, rel=0.4)
    contents = [{path.read_bytes() for path in (tmp_path / 'a' / name).iterdir()} for name in '01']
    assert [len(distinct) for distinct in contents] == [2, 2]  # of 5, evenly
    assert not contents[0] & contents[1]
    first, same = (tmp_path / name / '0/0000000.jpg' for name in 'ab')
    assert same.read_bytes() == first.read_bytes()
