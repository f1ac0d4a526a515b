"""The verdict on scripted speeds, in every regime."""

import pytest

from mmpatchmix.cli.bottleneck import (
    Length,
    Memory,
    Setting,
    describe,
    epoch_seconds,
    format_duration,
    format_rate,
    format_share,
    verdict,
    which_side,
    worker_seconds_per_image,
    workers_needed,
)
from mmpatchmix.cli.throughput import Speeds


def speeds(data_rate, step_rate, together_rate=None, waiting_share=0.0, batch_size=8, ranks=1):
    together_rate = together_rate or min(data_rate, step_rate)
    return Speeds(
        data_rate=data_rate,
        first_batch_seconds=1.5,
        step_rate=step_rate,
        step_seconds=ranks * batch_size / step_rate,
        preprocess_seconds=0.04 * ranks * batch_size / step_rate,
        together_rate=together_rate,
        iteration_seconds=ranks * batch_size / together_rate,
        waiting_share=waiting_share,
    )


def setting(num_workers, num_cores, step_threads=0, num_ranks=1):
    return Setting(num_ranks, 8, num_workers, num_cores, step_threads)


# What 4 workers deliver at 5 ms an image is 800 images/s.
REGIMES = {
    'step': (
        speeds(800, 6),
        setting(4, 16),
        'step',
        1,
        ['could feed 133 of them', '1 worker would'],
    ),
    'step, by less': (
        speeds(800, 500),
        setting(4, 4),
        'step',
        3,
        ['60 % quicker', '3 workers would'],
    ),
    'step, just': (speeds(800, 700), setting(4, 4), 'step', 4, ['14 % quicker']),
    'step, without workers': (
        speeds(200, 1, 0.995, 0.005),
        setting(0, 2, 2),
        'step',
        1,
        ['even without workers', '0.5 % of the time'],
    ),
    'loader, cores to spare': (
        speeds(800, 2000, waiting_share=0.6),
        setting(4, 16),
        'loader',
        10,
        ['2.5 times the images', '10 workers instead of 4', 'up to 2,000 images/s, 2.5 times as'],
    ),
    'loader, some cores to spare': (
        speeds(800, 2000, waiting_share=0.6),
        setting(4, 8),
        'loader',
        10,
        [
            '10 workers would be needed',
            'only 8 cores',
            '8 workers would bring about 1,600 images/s',
        ],
    ),
    'loader, no core to spare': (
        speeds(800, 1000),
        setting(4, 4),
        'loader',
        5,
        [
            '25 % more images',
            '5 workers would be needed; this machine has only 4 cores per process.',
        ],
    ),
    'loader, on a CPU': (
        speeds(400, 700),
        setting(2, 2, step_threads=2),
        'loader',
        4,
        ['4 workers would be needed', 'only 2 cores', 'the step computes on all of them'],
    ),
    'loader, on a CPU that has a free core': (
        speeds(200, 500),
        setting(1, 4, step_threads=2),
        'loader',
        3,
        ['computes on 2 of them', '2 workers would bring about 400 images/s'],
    ),
    'no workers, cores to spare': (
        speeds(200, 500, 1 / (1 / 200 + 1 / 500), 500 / 700),
        setting(0, 16),
        'no workers',
        3,
        ['it waits 71 % of the time', '3 workers would bring up to 500 images/s, 3.5 times as'],
    ),
    'no workers, and the step slower in the loop': (
        speeds(2000, 500, 200, 0.2),
        setting(0, 16),
        'no workers',
        1,
        ['1 worker would bring up to 250 images/s, 1.2 times as many'],  # 200 / (1 - 0.2)
    ),
    'no workers, no core to spare': (
        speeds(200, 50, 40, 0.2),
        setting(0, 2, 2),
        'no workers',
        1,
        ['it waits 20 % of the time', '1 worker would be needed', 'all of them'],
    ),
    'balanced': (speeds(800, 760), setting(4, 16), 'balanced', 4, ['the loader is 5 % quicker']),
    'balanced, other way': (
        speeds(800, 840),
        setting(4, 4),
        'balanced',
        5,
        ['the step is 5 % quicker'],
    ),
    'competition': (
        speeds(800, 500, 300, 0.3),
        setting(4, 4, 4),
        'step',
        3,
        ['60 % quicker', '60 % of what the slower one does alone', 'compete for 4 cores'],
    ),
    'ranks': (
        speeds(4 * 800, 4 * 2000, ranks=4),
        setting(4, 8, num_ranks=4),
        'loader',
        10,
        [
            '10 workers per process',
            'only 8 cores per process',
            '8 workers per process',
            '6,400 images',
        ],
    ),
}


@pytest.mark.parametrize(
    ('measured', 'setup', 'side', 'needed', 'parts'), REGIMES.values(), ids=REGIMES
)
def test_verdict(measured, setup, side, needed, parts):
    assert which_side(measured, setup) == side
    assert workers_needed(measured, setup) == needed
    text = ' '.join(verdict(measured, setup))
    for part in parts:
        assert part in text
    assert ('compete' in text) == (side == 'step' and measured.together_rate == 300)


def test_nothing_is_recommended_that_changes_nothing():
    assert len(verdict(speeds(800, 700), setting(4, 4))) == 1  # the 4 workers it has are needed
    no_gain = verdict(speeds(800, 2000), setting(4, 4))
    assert not any('would bring' in sentence for sentence in no_gain)


@pytest.mark.parametrize('num_ranks', [1, 3])
def test_needed_workers_deliver_what_the_step_takes_and_one_less_does_not(num_ranks):
    for step_rate in (1, 99, 100, 101, 250, 999):
        measured = speeds(100 * num_ranks, step_rate * num_ranks, ranks=num_ranks)
        setup = setting(2, 64, num_ranks=num_ranks)
        of_one_worker = 1 / worker_seconds_per_image(measured, setup)
        assert of_one_worker == pytest.approx(50)
        needed = workers_needed(measured, setup)
        assert needed * of_one_worker >= step_rate * (1 - 1e-9)
        assert needed == 1 or (needed - 1) * of_one_worker < step_rate


def test_an_epoch_begins_with_a_wait_for_its_first_batch():
    measured = speeds(800, 4)  # 2 s an iteration; a batch of 8 is 40 ms of a worker
    again, stay = Length(80, 10, 100, restarts=True), Length(80, 10, 100)
    assert epoch_seconds(measured, setting(4, 4), again) == pytest.approx(20 + 1.5)
    assert epoch_seconds(measured, setting(4, 4), stay) == pytest.approx(20 + 0.04)
    assert epoch_seconds(measured, setting(0, 4), again) == pytest.approx(20)
    assert stay.num_epochs == 10


def test_description_holds_what_was_measured():
    setup = Setting(4, 8, 2, 2, precision='bfloat16', workers_configured=10)
    measured = speeds(3200, 32, ranks=4, waiting_share=0.001)
    memory = Memory(3 * 2**30, 80 * 2**30)
    text = '\n'.join(describe(measured, setup, memory, Length(3200, 100, 30_000)))
    for part in (
        '3,200 images/s',
        '(2 workers, 10 configured, 2.5 ms of a worker per image; first batch after 1.5 s)',
        'batch 8 x 4 processes, bfloat16, 1 s a step; 4 % of it in the data preprocessor',
        '0.1 % of the time waiting',
        '3.0 GiB peak of 80.0 GiB per process',
        '100 s an epoch of 3,200 images, 8.3 h for 300 epochs',
    ):
        assert part in text
    on_cpu = '\n'.join(describe(measured, setting(0, 2), Memory(2**30), Length(80, 10, 10)))
    assert '1.0 GiB peak, workers not counted' in on_cpu and 'no workers' in on_cpu
    assert 'for 1 epoch,' in on_cpu


def test_figures_for_people():
    assert [format_rate(rate) for rate in (1234.5, 100, 56.74, 0.0812)] == [
        '1,234',
        '100',
        '56.7',
        '0.0812',
    ]
    assert [format_share(share) for share in (0, 0.0004, 0.0099, 0.5, 1)] == [
        '0 %',
        '0.04 %',
        '1 %',
        '50 %',
        '100 %',
    ]
    seconds = (0.0048, 0.5, 2.58, 90, 1200, 7300, 20 * 3600, 10 * 86400, 1e8)
    assert [format_duration(value) for value in seconds] == [
        '4.8 ms',
        '500 ms',
        '2.6 s',
        '90 s',
        '20 min',
        '2 h',
        '20 h',
        '10 days',
        '3.2 years',
    ]
