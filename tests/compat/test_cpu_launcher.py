"""Which process group the pytorch launcher starts; ``test_any_runner.py`` runs it for real."""

from datetime import timedelta

import pytest
import torch
from mmengine.dist import init_dist, utils

from mmpatchmix.compat import cpu_launcher


@pytest.fixture
def calls(monkeypatch):
    """Install the launcher around a function that only records; record gloo's start as well."""
    calls = []

    def original(backend, init_backend='torch', **kwargs):
        calls.append(('mmengine', backend, init_backend, kwargs))

    def start(**kwargs):
        calls.append(('ours', kwargs))

    monkeypatch.setattr(utils, '_init_dist_pytorch', original)
    monkeypatch.setattr(torch.distributed, 'init_process_group', start)
    cpu_launcher.install()
    cpu_launcher.install()
    return calls


def test_cpus_meet_over_gloo_with_the_timeout_of_the_config(calls, monkeypatch):
    monkeypatch.setattr(cpu_launcher, 'get_device', lambda: 'cpu')
    init_dist('pytorch', backend='nccl', timeout=90)
    init_dist('pytorch', backend='mpi')
    timeout = timedelta(seconds=90)
    assert calls == [('ours', dict(backend='gloo', timeout=timeout)), ('ours', dict(backend='mpi'))]


@pytest.mark.parametrize(('device', 'init'), [('cuda', 'torch'), ('cpu', 'deepspeed')])
def test_everything_else_is_left_to_mmengine(calls, monkeypatch, device, init):
    monkeypatch.setattr(cpu_launcher, 'get_device', lambda: device)
    init_dist('pytorch', backend='nccl', init_backend=init, timeout=90)
    assert calls == [('mmengine', 'nccl', init, dict(timeout=timedelta(seconds=90)))]
