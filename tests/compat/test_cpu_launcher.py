"""The process group that the pytorch launcher starts; ``test_any_runner.py`` starts real ones."""

import os
from datetime import timedelta

import pytest
from mmengine.dist import init_dist, utils

from mmpatchmix.compat import cpu_launcher

PLACE = dict(store='store', rank=1, world_size=2)


@pytest.fixture
def calls(monkeypatch):
    """Record calls of mmengine's launcher."""
    calls = []

    def original(backend, init_backend='torch', **kwargs):
        calls.append((backend, init_backend, kwargs))

    monkeypatch.setattr(utils, '_init_dist_pytorch', original)
    monkeypatch.setattr(cpu_launcher, 'open_store', lambda: 'store')
    for name, value in dict(RANK=1, WORLD_SIZE=2, MASTER_ADDR='127.0.0.1').items():
        monkeypatch.setenv(name, str(value))
    cpu_launcher.install()
    cpu_launcher.install()
    return calls


@pytest.mark.parametrize(
    ('device', 'init', 'place'),
    [('cuda', 'torch', PLACE), ('npu', 'torch', {}), ('cpu', 'deepspeed', {})],
)
def test_other_devices_and_backends_use_the_launcher_of_mmengine(
    calls, monkeypatch, device, init, place
):
    monkeypatch.setattr(cpu_launcher, 'get_device', lambda: device)
    init_dist('pytorch', backend='nccl', init_backend=init, timeout=90)
    assert calls == [('nccl', init, dict(timeout=timedelta(seconds=90), **place))]


@pytest.mark.parametrize(
    ('before', 'master', 'expected'),
    [
        ({}, '127.0.0.1', None),
        (dict(GLOO_SOCKET_IFNAME='eth7'), '192.0.2.1', 'eth7'),
    ],
)
def test_the_interface_of_gloo_is_not_set_without_need(monkeypatch, before, master, expected):
    monkeypatch.delenv('GLOO_SOCKET_IFNAME', raising=False)
    for name, value in dict(before, MASTER_ADDR=master).items():
        monkeypatch.setenv(name, value)
    cpu_launcher.set_gloo_interface()
    assert os.environ.get('GLOO_SOCKET_IFNAME') == expected
