"""Choose how backbones are compiled, and whether CUDA graphs are recorded."""

import logging

import torch
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from torch import nn

# Modes of torch.compile that record CUDA graphs, and what they are without.
WITHOUT_GRAPHS = {'reduce-overhead': 'default', 'max-autotune': 'max-autotune-no-cudagraphs'}


def choose_compile_options(
    compile: bool | dict, micro_batch_size: int | None = None
) -> dict | None:
    """Return the options of ``torch.compile``, without CUDA graphs where there can be none.

    A recorded graph writes its outputs, gradients among them, to the same memory each time. So
    there is none with micro-batches, which add up gradients of several calls. A warning says so.

    Args:
        compile: ``model.compile`` of the config: whether, or options.
        micro_batch_size: ``model.micro_batch_size`` of the config.

    Returns:
        dict: The options; None if nothing is to be compiled.
    """
    if not compile:
        return None
    # Sizes are few and fixed: a graph for each beats one for any.
    options = dict(dynamic=False, fullgraph=True) | ({} if compile is True else compile)
    mode = options.get('mode')
    if mode not in WITHOUT_GRAPHS:
        return options
    reason = None
    if not torch.cuda.is_available():
        reason = 'there is no CUDA device'
    elif micro_batch_size is not None:
        reason = 'micro-batches add up gradients, which a graph would overwrite'
    if reason:
        print_log(
            f"model.compile: mode='{mode}' records no CUDA graphs here, {reason}. It goes on as "
            f"mode='{WITHOUT_GRAPHS[mode]}'.",
            'current',
            logging.WARNING,
        )
        options['mode'] = WITHOUT_GRAPHS[mode]
    return options


def records_graphs(options: dict | None) -> bool:
    """Tell whether CUDA graphs are recorded under these options of ``torch.compile``."""
    return (options or {}).get('mode') in WITHOUT_GRAPHS


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the model inside a distributed wrapper, or the model itself."""
    return model.module if is_model_wrapper(model) else model
