"""Options of torch.compile for the backbones, and the model inside a distributed wrapper."""

import logging

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

# Modes of torch.compile that record CUDA graphs, and the same modes without.
WITHOUT_GRAPHS = {'reduce-overhead': 'default', 'max-autotune': 'max-autotune-no-cudagraphs'}


def choose_compile_options(
    compile: bool | dict, micro_batch_size: int | None = None
) -> dict | None:
    """Return the options of ``torch.compile``, without CUDA graphs if they cannot be recorded.

    A recorded graph writes its outputs and gradients to the same memory each time, so
    micro-batches, which accumulate gradients of several calls, cannot use it. Logs a warning.
    The arguments are those of :class:`mmpatchmix.models.PatchMix`.
    """
    if not compile:
        return None
    # Sizes are few and fixed: a graph for each is faster than one for all.
    options = dict(dynamic=False, fullgraph=True) | ({} if compile is True else compile)
    reason = None
    if not torch.cuda.is_available():
        reason = 'there is no CUDA device'
    elif micro_batch_size is not None:
        reason = 'micro-batches accumulate gradients, which a graph would overwrite'
    if reason and records_graphs(options):
        mode, options['mode'] = options['mode'], WITHOUT_GRAPHS[options['mode']]
        message = f"model.compile: mode='{mode}' records no CUDA graphs here, because {reason}. "
        message += f"mode='{options['mode']}' is used instead."
        print_log(message, 'current', logging.WARNING)
    return options


def records_graphs(options: dict | None) -> bool:
    """Return whether these options of ``torch.compile`` record CUDA graphs."""
    return (options or {}).get('mode') in WITHOUT_GRAPHS


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
