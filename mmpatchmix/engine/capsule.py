"""A file with all that a step was made of, for ``mmpatchmix replay``."""

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.runner import Runner

from mmpatchmix.checkpoints.sealing import move_into_place, seal
from mmpatchmix.engine.exact_order import find_sampler
from mmpatchmix.engine.exact_resume_hook import to_plain
from mmpatchmix.engine.exact_train_loop import ExactTrainLoop
from mmpatchmix.models import unwrap_model


def write_capsule(
    runner: Runner, iteration: int, states: dict[str, Any], losses: dict[str, float]
) -> str | None:
    """Write ``failed_iter_N.pth``: batch, weights, random states and config of a step that failed.

    The batch is read again, for samples depend on seed, epoch and index alone. The weights are
    those before the step, as :class:`~mmpatchmix.engine.BF16OptimWrapper` leaves them. On an
    accelerator and among several ranks a failure is seen when losses are logged: by then the
    momentum encoder has come nearer to them by as many updates.

    Args:
        runner: Of the run.
        iteration: The step, from 0, in the epoch under way.
        states: Random states before it, as of
            :func:`~mmpatchmix.engine.random_states.read_random_states`.
        losses: What it gave on this rank.

    Returns:
        str | None: The file; None where the weights are lost (another optimizer), the samples are
        not known (another sampler) or the disk fails.
    """
    wrapper, rank = runner.optim_wrapper, dist.get_rank()
    if getattr(wrapper, 'broken', None) is None:
        return None
    loop = runner.train_loop
    if not isinstance(loop, ExactTrainLoop) or find_sampler(loop.dataloader) is None:
        return None
    batch, indices = _read_batch(loop, iteration)
    capsule = {
        'config': to_plain(runner.cfg.to_dict()),
        'iteration': iteration,
        'epoch': runner.epoch,
        'rank': rank,
        'ranks': dist.get_world_size(),
        'torch': str(torch.__version__),
        'bf16': bool(wrapper.enabled),
        'losses': losses,
        'indices': indices,
        'inputs': batch['inputs'],
        'random_states': states,
        'state_dict': unwrap_model(runner.model).state_dict(),
    }
    name = f'failed_iter_{iteration + 1}' + (f'_rank_{rank}' if rank else '') + '.pth'
    path, partial = Path(runner.work_dir, name), Path(runner.work_dir, f'.{name}.partial')
    try:
        torch.save(capsule, partial)
        seal(partial)
        move_into_place(partial, path)
    except OSError as error:
        runner.logger.warning(f'{name} was not written: {error}')
        partial.unlink(missing_ok=True)
        return None
    return str(path)


def _read_batch(loop: ExactTrainLoop, iteration: int) -> tuple[dict, list[int]]:
    loader = loop.dataloader
    position = iteration - loop.epoch * len(loader)
    indices = next(islice(iter(loader.batch_sampler), position, None))
    return loader.collate_fn(loader.dataset.__getitems__(indices)), [int(i) for i in indices]
