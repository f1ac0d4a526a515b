"""Read, set and keep the states of every random generator that a run draws from."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def read_random_states() -> dict[str, Any]:
    """Return the states of Python, numpy, torch and, where in use, this process's GPU.

    Returns:
        dict: Tensors and numbers only, so that a checkpoint of them loads with
        ``weights_only=True``.
    """
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    states = {
        'python': {'version': version, 'numbers': torch.tensor(numbers), 'gauss': gauss},
        'numpy': {
            'keys': torch.from_numpy(keys.astype(np.int64)),
            'position': position,
            'has_gauss': has_gauss,
            'cached': cached,
        },
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Set what :func:`read_random_states` returned; tensors may lie on any device.

    The state of a GPU is left out where no GPU is in use.
    """
    state = states['python']
    random.setstate((state['version'], tuple(state['numbers'].tolist()), state['gauss']))
    state = states['numpy']
    keys = state['keys'].cpu().numpy().astype(np.uint32)
    rest = (state['position'], state['has_gauss'], state['cached'])
    np.random.set_state(('MT19937', keys, *rest))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states['cuda'].cpu())


def seed_cpu(seed: int) -> None:
    """Seed Python, numpy and torch on the CPU.

    Args:
        seed: From 0 to 2 ** 32 - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also note the seed down for GPUs, in workers without end.
    torch.default_generator.manual_seed(seed)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore all random states on leaving."""
    states = read_random_states()
    try:
        yield
    finally:
        set_random_states(states)
