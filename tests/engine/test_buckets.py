"""The order in which DDP sums gradients over ranks is that of an uninterrupted run."""

import os

import torch
from torch import distributed, nn

from mmpatchmix.engine import PatchMixDDP
from tests.faults.processes import finish, free_port, start

RANKS, STEPS = 3, 4  # sums of two numbers do not depend on their order


class Model(nn.Module):
    """Layers in another order than that of the backward pass."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(50, 7), nn.Linear(30, 50)

    def forward(self, x):
        return self.last(self.first(x).relu()).square().mean()


def train(begin, path):
    """Train from a step on; save the weights after each step."""
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    torch.manual_seed(0)
    model = PatchMixDDP(Model(), bucket_cap_mb=0.001)
    if begin:
        model.load_state_dict(torch.load(path / f'{begin}.pth'))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(begin, STEPS):
        images = torch.randn(8, 30, generator=torch.Generator().manual_seed(RANKS * step + rank))
        optimizer.zero_grad()
        model(images).backward()
        optimizer.step()
        if rank == 0:
            torch.save(model.state_dict(), path / f'{step + 1}.pth')
    distributed.barrier()
    distributed.destroy_process_group()


def test_three_ranks_sum_gradients_alike_after_a_restart(tmp_path):
    def run(begin):
        place = dict(WORLD_SIZE=RANKS, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
        log = tmp_path / 'log.txt'
        ranks = [start(log, train, begin, tmp_path, RANK=rank, **place) for rank in range(RANKS)]
        assert [finish(rank) for rank in ranks] == [0] * RANKS, log.read_text()
        return torch.load(tmp_path / f'{STEPS}.pth')

    whole = run(0)
    os.unlink(tmp_path / f'{STEPS}.pth')
    resumed = run(2)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
