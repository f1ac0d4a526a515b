"""Accumulated queries against the whole batch; alone and on two gloo ranks."""

import copy
import socket

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.engine import PatchMixDDP
from tests.engine.tiny_run import tiny_run_config
from tests.models.tiny import tiny_model, uint8_batch

NUM_IMAGES = 6


class Recorder(OptimWrapper):
    """Plain SGD that remembers the gradients of every step."""

    def __init__(self, model):
        trained = [p for p in model.parameters() if p.requires_grad]
        super().__init__(torch.optim.SGD(trained, lr=0.1))
        self.model, self.gradients = model, []

    def step(self, **kwargs):
        self.gradients.append(
            {n: p.grad.clone() for n, p in self.model.named_parameters() if p.requires_grad}
        )
        super().step(**kwargs)


def freeze_statistics(model):
    """BatchNorm by running statistics, which do not depend on the batch."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


def step(model, num_local, seed=5):
    wrapper = Recorder(model)
    torch.manual_seed(seed)
    log = model.train_step(uint8_batch(NUM_IMAGES, num_local=num_local), wrapper)
    assert len(wrapper.gradients) == 1  # one optimizer step
    assert all(p.grad is None for p in model.parameters())
    return log, wrapper.gradients[0]


@pytest.mark.parametrize('size', [1, 2, 3, 4, 6, 100])
@pytest.mark.parametrize('num_local', [0, 2])
@pytest.mark.parametrize('changes', [{}, {'momentum_encoder': None}], ids=['momentum', 'without'])
def test_losses_and_gradients_are_those_of_the_whole_batch(size, num_local, changes):
    """Exact but for rounding, with BatchNorm in eval mode; sizes that leave a rest included."""
    whole = tiny_model(**changes).train()
    freeze_statistics(whole)
    parts = copy.deepcopy(whole)
    parts.micro_batch_size = size
    log, gradients = step(whole, num_local)
    log_in_parts, gradients_in_parts = step(parts, num_local)
    assert set(log_in_parts) == set(log)
    for name, value in log.items():
        torch.testing.assert_close(log_in_parts[name], value, atol=1e-5, rtol=1e-5, msg=name)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradients_in_parts[name], gradient, atol=1e-5, rtol=1e-3, msg=name
        )


def test_with_batchnorm_in_training_the_keys_are_still_those_of_the_whole_batch():
    model = tiny_model().train()
    torch.manual_seed(0)
    inputs = model.data_preprocessor(uint8_batch(NUM_IMAGES), training=True)['inputs']
    whole = model.keys(inputs)
    model.micro_batch_size = 2
    for key, expected in zip(model.keys(inputs), whole, strict=True):
        torch.testing.assert_close(key, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('num_local', [0, 2])
def test_no_encoder_sees_more_than_a_micro_batch(num_local):
    """Counted in images: a group of 2 images is 2 + 2 query views, 3 x 2 key views."""
    model = tiny_model(micro_batch_size=2).train()
    queries, keys = [], []
    model.backbone.register_forward_pre_hook(lambda _, args: queries.append(len(args[0])))
    model.momentum_encoder.backbone.register_forward_pre_hook(
        lambda _, args: keys.append(len(args[0]))
    )
    step(model, num_local)
    assert keys == [6, 6, 6]
    assert queries == ([4, 8] if num_local else [4]) * 3


def test_plain_accumulation_is_something_else():
    """What the keys of the whole batch are for: without them the losses differ."""
    whole = tiny_model().train()
    freeze_statistics(whole)
    torch.manual_seed(5)
    inputs = whole.data_preprocessor(uint8_batch(NUM_IMAGES), training=True)['inputs']
    losses = whole.loss(inputs)
    halves = [
        {
            n: v[part] if torch.is_tensor(v) and len(v) == NUM_IMAGES else v
            for n, v in inputs.items()
        }
        for part in (slice(0, 3), slice(3, 6))
    ]
    plain = sum(whole.loss(half)['loss_source'] for half in halves) / 2
    assert abs(plain - losses['loss_source']) > 0.1


def test_under_the_runner_everything_counts_optimizer_steps(tmp_path):
    updates, rates = {}, {}
    for size in (None, 4):
        cfg = tiny_run_config(tmp_path / str(size), epochs=2, num_images=48, batch_size=8)
        cfg.model.micro_batch_size = size
        runner = Runner.from_cfg(cfg)
        runner.train()
        updates[size] = runner.model.momentum_encoder.num_updates
        rates[size] = runner.message_hub.get_scalar('train/lr').data[0].tolist()
        assert len(runner.message_hub.get_scalar('train/loss').data[0]) == 12
    assert updates[4] == updates[None] == 12
    assert rates[4] == rates[None] and len(set(rates[4])) > 6


def test_a_loop_that_would_ignore_the_size_is_told():
    model = tiny_model(micro_batch_size=2).train()
    inputs = model.data_preprocessor(uint8_batch(NUM_IMAGES), training=True)['inputs']
    with pytest.raises(ValueError, match='PatchMixDDP'):
        model(inputs, mode='loss')
    with pytest.raises(ValueError, match='micro_batch_size=0'):
        tiny_model(micro_batch_size=0)


def train_on_rank(rank, port, folder):
    """The same steps on two ranks: whole batches, then micro-batches."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        'gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2
    )
    records = {}
    for size in (None, 2):
        model = tiny_model(micro_batch_size=size).train()
        freeze_statistics(model)
        ddp = PatchMixDDP(model, broadcast_buffers=False)
        exchanged = []
        ddp.register_comm_hook(exchanged, count_and_average)
        wrapper = Recorder(model)
        losses = []
        for iteration in range(2):
            model.update_momentum_encoder(0.9)
            torch.manual_seed(10 * iteration + rank)
            batch = uint8_batch(NUM_IMAGES, num_local=2, seed=10 * iteration + rank)
            losses.append(ddp.train_step(batch, wrapper)['loss'])
        records[size] = dict(
            losses=losses,
            gradients=wrapper.gradients,
            exchanges=len(exchanged),
            weights=model.state_dict(),
        )
    torch.save(records, f'{folder}/rank{rank}.pth')
    torch.distributed.destroy_process_group()


def count_and_average(exchanged, bucket):
    exchanged.append(bucket.index())
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0] / 2)


def test_two_ranks_accumulate_alike_and_exchange_gradients_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(train_on_rank, (port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f'rank{rank}.pth') for rank in range(2)]
    for records in ranks:
        whole, parts = records[None], records[2]
        torch.testing.assert_close(parts['losses'], whole['losses'], atol=1e-5, rtol=1e-4)
        for ours, theirs in zip(parts['gradients'], whole['gradients'], strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(parts['weights'], whole['weights'], atol=1e-5, rtol=1e-4)
        # Three micro-batches in each of two steps, but as many exchanges as for whole batches.
        assert parts['exchanges'] == whole['exchanges'] >= 2
    torch.testing.assert_close(ranks[0][2]['weights'], ranks[1][2]['weights'], atol=0, rtol=0)
    assert not torch.equal(ranks[0][2]['losses'][0], ranks[1][2]['losses'][0])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.micro_batch_size': 3}, 'divide'),
        ({'model.micro_batch_size': 1}, 'at least 2'),
        ({'model.micro_batch_size': 4, 'optim_wrapper.accumulative_counts': 2}, 'combined'),
        (
            {
                'model.micro_batch_size': 4,
                'train_dataloader.drop_last': False,
                'train_dataloader.dataset.indices': 45,
            },
            'last micro-batch',
        ),
    ],
)
def test_sizes_that_cannot_work_are_refused_before_training(tmp_path, options, message):
    from mmpatchmix.cli.check_run import check_run

    runner = Runner.from_cfg(tiny_run_config(tmp_path, **options))
    with pytest.raises(ValueError, match=message):
        check_run(runner)
