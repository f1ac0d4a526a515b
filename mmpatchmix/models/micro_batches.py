"""Large effective batches: keys of the whole batch first, then queries in micro-batches."""

from collections.abc import Iterator
from contextlib import nullcontext

from mmengine.optim import OptimWrapper
from torch import Tensor, nn


def train_in_micro_batches(
    wrapper: nn.Module, model: nn.Module, data: dict, optim_wrapper: OptimWrapper
) -> dict[str, Tensor]:
    """Take one optimizer step on a batch whose queries do not fit into memory at once.

    Keys carry no gradient, so those of the whole batch are computed first; then the queries of
    each micro-batch are contrasted with all of them, and gradients accumulate. Losses and
    gradients are those of the whole batch, except that BatchNorm normalises the queries by the
    statistics of the micro-batch (the keys by those of the whole batch).

    ``wrapper`` is the ``model``, a PatchMix, or DDP around it, which reduces gradients once, in the
    last micro-batch. ``data`` is a batch as collated; ``optim_wrapper`` must not accumulate
    gradients. Returns losses and accuracies, means over the whole batch.
    """
    with optim_wrapper.optim_context(wrapper):
        data = model.data_preprocessor(data, training=True)
        inputs = data['inputs']
        inputs['keys'] = model.head.gather(model.keys(inputs))
        del inputs['view_2'], inputs['mixed_view_1']  # they have no queries
    num_images = len(inputs['view_1'])
    no_sync = getattr(wrapper, 'no_sync', nullcontext)
    logs: dict[str, Tensor] = {}
    for part in split_images(inputs, model.micro_batch_size):
        share = len(part['images']) / num_images
        is_last = part['images'].stop == num_images
        with nullcontext() if is_last else no_sync():
            with optim_wrapper.optim_context(wrapper):
                losses = wrapper(part, data['data_samples'], mode='loss')
            loss, log = model.parse_losses(losses)
            optim_wrapper.backward(optim_wrapper.scale_loss(loss * share))
        for name, value in log.items():
            logs[name] = logs.get(name, 0.0) + share * value.detach()
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    return logs


def split_images(inputs: dict, size: int) -> Iterator[dict]:
    """Yield inputs of ``size`` images each; ``images`` is the range of their indices."""
    num_images = len(inputs['view_1'])
    for first in range(0, num_images, size):
        images = range(first, min(first + size, num_images))
        part = dict(inputs, images=images)
        for name in ('view_1', 'mixed_view_2'):
            part[name] = inputs[name][first : images.stop]
        for name in {'local_views', 'mixed_local_views'} & inputs.keys():  # (L, N, C, h, w)
            part[name] = inputs[name][:, first : images.stop]
        yield part
