"""Runs of random small configs, stopped by a signal and resumed, end bit for bit the same."""

import os
import signal

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults import SOAK
from tests.faults.processes import finish, start
from tests.faults.runs import EPOCHS, WORKERS, at, choose_workers, differences, train

PER_EPOCH = 4  # even: gradients of two batches may be accumulated
AUGMENT = {f'view_{number}': dict(type='mmpatchmix.ViewAugment') for number in (1, 2)}


@st.composite
def configs(draw):
    """Draw options of a valid config."""
    batch = draw(st.integers(4, 9))
    micro_batch = None if batch % 3 else draw(st.sampled_from([None, 3]))
    preprocessor = 'model.data_preprocessor.'
    options = {
        'batch_size': batch,
        'num_images': PER_EPOCH * batch,
        'randomness.seed': draw(st.integers(0, 2**31 - 1)),
        preprocessor + 'num_mix': draw(st.sampled_from([1, 2, 3, [1, 2, 4]])),
        preprocessor + 'mix_prob': draw(st.sampled_from([0.5, 1.0])),
        'model.backbone.drop_path_rate': draw(st.sampled_from([0.0, 0.3])),
        'model.micro_batch_size': micro_batch,
        'default_hooks.momentum.momentum': draw(st.floats(0, 1)),
        'optim_wrapper.accumulative_counts': 1 if micro_batch else draw(st.sampled_from([1, 2])),
    }
    if draw(st.booleans()):
        options[preprocessor + 'augment'] = AUGMENT
    if draw(st.booleans()):
        options['model.momentum_encoder'] = None
    if draw(st.booleans()):
        crops = dict(global_size=32, local_size=16, num_local=draw(st.integers(0, 2)))
        pipeline = [dict(type='mmpatchmix.MultiCrop', **crops), dict(type='mmpatchmix.PackViews')]
        options['train_dataloader.dataset.pipeline'] = pipeline
    return options


def test_random_configs_stopped_and_resumed(tmp_path_factory, record_property):
    def run(folder, name, code, options, workers, hooks=()):
        log = folder / 'log.txt'
        options = options | choose_workers(*workers)
        found = finish(start(log, train, folder / name, options, hooks))
        assert found == code, log.read_text()[-4000:]

    workers_of_three_runs = st.tuples(*[st.sampled_from(WORKERS)] * 3)

    # Without shrinking, which would take minutes.
    @settings(
        max_examples=(SOAK or 2) // 2,
        deadline=None,
        derandomize=not SOAK,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(configs(), st.integers(0, EPOCHS * PER_EPOCH - 1), workers_of_three_runs)
    def stop_and_resume(options, stop, workers):
        record_property('trial', 'a random config, stopped and resumed')
        folder = tmp_path_factory.mktemp('config')
        run(folder, 'whole', 0, options, workers[0])
        stopping = at('before_train_iter', stop, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        run(folder, 'stopped', 75, options, workers[1], (stopping,))
        run(folder, 'stopped', 0, options, workers[2])
        assert differences(folder / 'stopped', folder / 'whole') == []

    stop_and_resume()
