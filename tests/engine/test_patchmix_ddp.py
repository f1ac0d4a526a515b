"""The DDP wrapper on CPUs and GPUs."""

import copy

import pytest
import torch
from mmengine.model import convert_sync_batchnorm
from torch import nn

from mmpatchmix.engine.distributed import PatchMixDDP


@pytest.fixture
def alone():
    """Provide a process group of this process only."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_cpus_need_no_device_ids_and_no_sync_batch_norm(alone):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model = convert_sync_batchnorm(copy.deepcopy(plain), 'torch')
    assert isinstance(model[1], nn.SyncBatchNorm)
    parameters = list(model.parameters())
    wrapped = PatchMixDDP(model, device_ids=[0], broadcast_buffers=False)  # as mmengine's Runner
    assert wrapped.device_ids is None
    # The parameters are the same objects, so an optimizer built before still trains them.
    assert all(a is b for a, b in zip(wrapped.module.parameters(), parameters, strict=True))
    batch = torch.randn(8, 3)
    assert torch.equal(wrapped(batch), plain(batch))
    assert wrapped.module.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(wrapped.module.state_dict()[name], value), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_gpus_keep_both(alone):
    model = convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), 'torch')
    wrapped = PatchMixDDP(model.cuda(), device_ids=[0], broadcast_buffers=False)
    assert wrapped.device_ids == [0]
    assert isinstance(wrapped.module[1], nn.SyncBatchNorm)
