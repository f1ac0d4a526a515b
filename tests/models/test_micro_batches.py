"""Micro-batches against the whole batch; on two ranks see test_two_ranks.py."""

import copy

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmpatchmix.cli.check_run import check_run
from tests.engine.tiny_run import tiny_run_config
from tests.models.tiny import tiny_model, uint8_batch

NUM_IMAGES = 6


class Recorder(OptimWrapper):
    """Plain SGD that records the gradients of every step."""

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


def preprocess(model):
    torch.manual_seed(5)
    return model.data_preprocessor(uint8_batch(NUM_IMAGES), training=True)['inputs']


@pytest.mark.parametrize('size', [1, 4, 6, 100])
@pytest.mark.parametrize('num_local', [0, 2])
@pytest.mark.parametrize('changes', [{}, {'momentum_encoder': None}], ids=['momentum', 'without'])
def test_losses_and_gradients_are_those_of_the_whole_batch(size, num_local, changes):
    """Exact but for rounding, with BatchNorm in eval mode; with a smaller last micro-batch."""
    whole = tiny_model(**changes).train()
    freeze_statistics(whole)
    parts = copy.deepcopy(whole)
    parts.micro_batch_size = size
    log, gradients = step(whole, num_local)
    log_in_parts, gradients_in_parts = step(parts, num_local)
    torch.testing.assert_close(dict(log_in_parts), dict(log), atol=1e-5, rtol=1e-5)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients.values())
    torch.testing.assert_close(gradients_in_parts, gradients, atol=1e-5, rtol=1e-3)


def test_keys_have_the_batchnorm_statistics_of_the_whole_batch():
    model = tiny_model().train()
    inputs = preprocess(model)
    whole = model.keys(inputs)
    model.micro_batch_size = 2
    torch.testing.assert_close(model.keys(inputs), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('num_local', [0, 2])
def test_no_encoder_sees_more_than_a_micro_batch(num_local):
    """2 images are 2 + 2 query views and 3 x 2 key views."""
    model = tiny_model(micro_batch_size=2).train()
    queries, keys = [], []
    model.backbone.register_forward_pre_hook(lambda _, args: queries.append(len(args[0])))
    model.momentum_encoder.backbone.register_forward_pre_hook(
        lambda _, args: keys.append(len(args[0]))
    )
    step(model, num_local)
    assert keys == [6, 6, 6]
    assert queries == ([4, 8] if num_local else [4]) * 3


def test_schedules_count_optimizer_steps(tmp_path):
    cfg = tiny_run_config(tmp_path, epochs=1, num_images=24)
    cfg.model.micro_batch_size = 4
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.model.momentum_encoder.num_updates == 3
    for name in ('lr', 'loss'):
        assert len(runner.message_hub.get_scalar(f'train/{name}').data[0]) == 3


def test_whole_batches_in_a_loop_without_micro_batches_are_refused():
    model = tiny_model(micro_batch_size=2).train()
    with pytest.raises(ValueError, match='PatchMixDDP'):
        model(preprocess(model), mode='loss')


def test_sizes_that_cannot_work_are_refused_before_training(tmp_path):
    with pytest.raises(ValueError, match='micro_batch_size=0'):
        tiny_model(micro_batch_size=0)
    options = {'train_dataloader.drop_last': False, 'train_dataloader.dataset.indices': 45}
    runner = Runner.from_cfg(tiny_run_config(tmp_path, **options))
    for size, message in ((3, 'divide'), (1, 'at least 2'), (4, 'last micro-batch')):
        runner.model.micro_batch_size = size
        with pytest.raises(ValueError, match=message):
            check_run(runner)
    runner.model.micro_batch_size = 8
    runner.cfg.optim_wrapper.accumulative_counts = 2
    with pytest.raises(ValueError, match='combined'):
        check_run(runner)
