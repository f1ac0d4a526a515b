"""Build everything, take one training step, and tell what it cost."""

import math
import time

import torch
from mmengine.runner import Runner
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing

from mmpatchmix.models import unwrap_model


def prepare_training(runner: Runner) -> None:
    """Do what ``runner.train()`` does ahead of its loop, without hooks and checkpoints.

    Args:
        runner: A Runner that has not started; afterwards ready for ``train_step``.
    """
    _ = runner.train_loop  # builds the data, and how many iterations there are
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    runner._init_model_weights()
    if modules := runner.cfg.get('activation_checkpointing'):
        turn_on_activation_checkpointing(unwrap_model(runner.model), modules)
    runner._maybe_compile('train_step')
    runner.model.train()


def run_one_step(runner: Runner) -> dict[str, float]:
    """Build what a run would build, including evaluation, and train on one batch.

    Args:
        runner: A Runner that has not started. Nothing is saved.

    Returns:
        dict[str, float]: The losses of the step, ``seconds`` for it, and on a GPU
        ``peak_gib``, the peak memory in GiB.

    Raises:
        FloatingPointError: If the loss is not finite.
    """
    prepare_training(runner)
    _ = runner.val_loop, runner.test_loop if runner._test_loop else None
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 1)

    batch = next(iter(runner.train_dataloader))
    began = time.perf_counter()
    if hasattr(model := unwrap_model(runner.model), 'update_momentum_encoder'):
        model.update_momentum_encoder(0.996)
    outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    result = {name: float(value.detach()) for name, value in outputs.items()}
    if not all(map(math.isfinite, result.values())):
        raise FloatingPointError(f'the loss of the first step is not finite: {result}')
    result['seconds'] = time.perf_counter() - began
    if torch.cuda.is_available():
        result['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return result
