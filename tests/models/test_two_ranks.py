"""Two gloo ranks against one process that holds all keys."""

import socket

import pytest
import torch
from torch.nn import functional as F

from tests.models.test_contrastive_head import naive_contrast, naive_rows
from tests.models.tiny import tiny_model, uint8_batch

NUM_IMAGES, STEPS = 4, 3


def rank_inputs(model, rank, seed=0):
    """The batch of a rank, with mixes of its own."""
    torch.manual_seed(100 * seed + rank)
    batch = uint8_batch(num_images=NUM_IMAGES, num_local=2, seed=10 * seed + rank)
    return model.data_preprocessor(batch, training=True)['inputs']


def train_on_rank(rank, port, folder):
    """Record the losses of the first step, then the weights after a few steps."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    calls = []
    original = torch.distributed.all_gather
    torch.distributed.all_gather = lambda *args, **kwargs: (
        calls.append(1),
        original(*args, **kwargs),
    )[1]

    model = tiny_model(seed=rank).train()  # DDP makes the ranks equal
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    record = {'start': {name: value.clone() for name, value in model.state_dict().items()}}
    for step in range(STEPS):
        model.update_momentum_encoder(0.9)
        losses = ddp(rank_inputs(model, rank, seed=step), mode='loss')
        if step == 0:
            record['losses'] = {name: value.detach() for name, value in losses.items()}
            record['collectives'] = len(calls)
        optimizer.zero_grad()
        sum(value for name, value in losses.items() if 'loss' in name).backward()
        optimizer.step()
    record['end'] = model.state_dict()
    torch.save(record, f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


@pytest.fixture(scope='module')
def records(tmp_path_factory):
    folder = tmp_path_factory.mktemp('ranks')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_rank, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f'rank{rank}.pth') for rank in range(2)]


def test_ranks_start_alike(records):
    for name, value in records[0]['start'].items():
        assert torch.equal(value, records[1]['start'][name]), name


def test_losses_equal_one_process_with_all_keys(records):
    model = tiny_model().train()
    model.load_state_dict(records[0]['start'])
    model.update_momentum_encoder(0.9)
    inputs = [rank_inputs(model, rank) for rank in range(2)]
    momentum = model.momentum_encoder

    def query(images):
        return F.normalize(model.head.predictor(model.neck(model.backbone(images)))[0], dim=1)

    def key(name):
        """Keys of both ranks, each with the BatchNorm statistics of its own batch."""
        parts = [momentum.neck(momentum.backbone(rank[name]))[0] for rank in inputs]
        return F.normalize(torch.cat(parts), dim=1)

    def ce(queries, keys, target, rank):
        rows = naive_rows(target, NUM_IMAGES, 2 * NUM_IMAGES, 0.0, rank)
        return naive_contrast(queries, keys, rows, 0.2)

    with torch.no_grad():
        k1, k2, k1_mixed = key('view_1'), key('view_2'), key('mixed_view_1')
        for rank, views in enumerate(inputs):
            q2_mixed = query(views['mixed_view_2'])
            local = query(views['local_views'].flatten(0, 1))
            local_mixed = query(views['mixed_local_views'].flatten(0, 1))
            target = views['local_mix_to_source']
            expected = {
                'loss_source': ce(query(views['view_1']), k2, None, rank),
                'loss_mix_source': ce(q2_mixed, k1, views['mix_to_source'], rank) / 2,
                'loss_mix_mix': ce(q2_mixed, k1_mixed, views['mix_to_mix'], rank) / 2,
                'loss_local': ce(local, k1, None, rank) + ce(local, k2, None, rank),
                'loss_mix_local': ce(local_mixed, k1, target, rank)
                + ce(local_mixed, k2, target, rank),
            }
            for name, value in expected.items():
                torch.testing.assert_close(
                    records[rank]['losses'][name].double(), value, atol=2e-5, rtol=1e-5
                )


def test_all_keys_travel_in_one_collective(records):
    assert [record['collectives'] for record in records] == [1, 1]


def test_queries_and_momentum_encoder_stay_alike(records):
    model = tiny_model()
    moved = 0
    for name, _ in model.named_parameters():
        assert torch.equal(records[0]['end'][name], records[1]['end'][name]), name
        moved += not torch.equal(records[0]['end'][name], records[0]['start'][name])
    assert moved > 0.9 * len(list(model.parameters()))  # so that equality means something
