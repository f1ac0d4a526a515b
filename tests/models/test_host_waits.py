"""A training step does not synchronise host and device, except for the log.

Tensors on the ``meta`` device of torch have no data. Copying a value to the host raises, so a
step that runs on it does not synchronise.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.runner import LogProcessor
from torch.utils._python_dispatch import TorchDispatchMode

from mmpatchmix.engine import LossLogHook
from tests.models.tiny import tiny_model, uint8_batch

AUGMENT = {
    view: dict(type='mmpatchmix.ViewAugment', blur_prob=0.5, solarize_prob=0.5)
    for view in ('view_1', 'view_2', 'local_views')
}


def meta_model(monkeypatch, **changes):
    # autocast knows no meta device; nothing here runs under it.
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: nullcontext())
    preprocessor = dict(
        type='mmpatchmix.PatchMixDataPreprocessor', patch_size=4, num_mix=[2, 3], augment=AUGMENT
    )
    model = tiny_model(data_preprocessor=preprocessor, **changes).train()
    model.backbone.layers[0].attn.out_drop.drop_prob = 0.1
    return model.to('meta')


@pytest.mark.parametrize('num_local', [0, 2])
@pytest.mark.parametrize(
    'changes',
    [{}, {'momentum_encoder': None}, {'micro_batch_size': 3}],
    ids=['momentum', 'without', 'micro-batches'],
)
def test_a_step_does_not_synchronise(monkeypatch, num_local, changes):
    """Augmentation, mixing, losses, backward, optimizer and momentum encoder."""
    model = meta_model(monkeypatch, **changes)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapper = OptimWrapper(torch.optim.AdamW(trained, foreach=True))
    for _ in range(2):
        model.update_momentum_encoder(0.9)
        log = model.train_step(uint8_batch(6, num_local=num_local), wrapper)
    assert {value.device.type for value in log.values()} == {'meta'}


def test_a_step_that_synchronises_raises(monkeypatch):
    """The test above can fail."""
    model = meta_model(monkeypatch)
    original = model.head.predict
    model.head.predict = lambda z: original(z) * float(z.detach().norm())
    inputs = model.data_preprocessor(uint8_batch(6), training=True)['inputs']
    with pytest.raises(RuntimeError, match=r'item\(\)'):
        model.loss(inputs)


class CountReads(TorchDispatchMode):
    """Counts values that are brought to the host one by one."""

    num_reads = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num_reads += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def as_on_an_accelerator(monkeypatch):
    monkeypatch.setattr('mmengine.dist.get_world_size', lambda: 2)


def train_with(hook, losses, *hooks):
    """Call a hook like a Runner in an epoch; also return the number of logged values."""
    hub, logged = MessageHub(f'test-{id(hook)}'), []
    parts = dict(train_dataloader=losses, train_loop=None, optim_wrapper=None, message_hub=hub)
    parts |= dict(epoch=4, work_dir='nowhere', log_processor=LogProcessor())
    runner = SimpleNamespace(hooks=hooks, **parts)
    for index, loss in enumerate(losses):
        runner.iter = index
        loss = torch.tensor(float(loss), requires_grad=True) * 2
        hook.after_train_iter(runner, index, None, dict(loss=loss, acc=torch.tensor(0.5)))
        logged.append(len(hub.log_scalars['train/loss'].data[0]) if hub.log_scalars else 0)
    return hub, logged


def test_losses_are_copied_once_per_log_interval(as_on_an_accelerator):
    with CountReads() as counter:
        hub, logged = train_with(LossLogHook(), range(10), LoggerHook(interval=4))
    assert logged == [0, 0, 0, 4, 4, 4, 4, 8, 8, 10]  # every fourth and the last
    assert counter.num_reads == 0  # in one copy, not one by one
    assert hub.log_scalars['train/loss'].data[0].tolist() == [2.0 * i for i in range(10)]
    assert hub.log_scalars['train/acc'].data[0].tolist() == [0.5] * 10


def test_losses_are_checked_before_a_checkpoint_and_name_their_iteration(as_on_an_accelerator):
    _, logged = train_with(LossLogHook(), range(7), CheckpointHook(interval=3, by_epoch=False))
    assert logged == [0, 0, 3, 3, 3, 6, 7]
    with pytest.raises(FloatingPointError, match='iteration 2 of epoch 5: loss=nan'):
        train_with(LossLogHook(), [1.0, float('nan'), 2.0])


def test_history_does_not_grow_with_the_run(monkeypatch):
    """mmengine copies all of it for every figure."""
    monkeypatch.setattr('mmpatchmix.engine.loss_log_hook.HISTORY', 12)
    hub, _ = train_with(LossLogHook(), range(10))
    assert hub.log_scalars['train/loss'].max_length == 12
    hub, _ = train_with(LossLogHook(), range(20))
    assert hub.log_scalars['train/loss'].max_length == 20  # an epoch
