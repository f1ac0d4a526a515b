"""Build everything, take one training step, and tell what it cost."""

import time

import torch
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


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
    loader = runner.train_dataloader
    runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    runner.scale_lr(runner.optim_wrapper, runner.auto_scale_lr)
    if runner.param_schedulers is not None:
        runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
    _ = runner.val_loop, runner.test_loop if runner._test_loop else None
    runner._init_model_weights()
    runner.optim_wrapper.initialize_count_status(runner.model, 0, 1)

    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    batch = next(iter(loader))
    began = time.perf_counter()
    runner.model.train()
    if hasattr(model, 'update_momentum_encoder'):
        model.update_momentum_encoder(0.996)
    outputs = runner.model.train_step(batch, optim_wrapper=runner.optim_wrapper)
    result = {name: float(value.detach()) for name, value in outputs.items()}
    if not torch.isfinite(torch.tensor(list(result.values()))).all():
        raise FloatingPointError(f'the loss of the first step is not finite: {result}')
    result['seconds'] = time.perf_counter() - began
    if torch.cuda.is_available():
        result['peak_gib'] = torch.cuda.max_memory_allocated() / 2**30
    return result
