"""Large effective batches: the keys of the whole batch first, queries in micro-batches."""

from collections.abc import Iterator
from contextlib import nullcontext

from mmengine.optim import OptimWrapper
from torch import Tensor, nn

# View groups with the images along the second dimension, (L, N, C, h, w).
LOCAL_VIEWS = ('local_views', 'mixed_local_views')


def train_in_micro_batches(
    wrapper: nn.Module, model: nn.Module, data: dict, optim_wrapper: OptimWrapper
) -> dict[str, Tensor]:
    """Take one optimizer step on a batch whose queries do not fit into memory at once.

    Keys carry no gradient, so those of the whole batch are computed first; then the
    queries of each micro-batch are contrasted with all of them, and gradients add up.
    Losses and gradients are those of the whole batch, up to the BatchNorm statistics
    of the queries, which are those of the micro-batch (the keys' are the whole batch's).

    Plain gradient accumulation would contrast every micro-batch with itself alone.

    Args:
        wrapper: What the Runner trains: the model, or DDP around it. Ranks exchange
            gradients once, in the last micro-batch.
        model: The :class:`~mmpatchmix.models.PatchMix`.
        data: A batch as collated.
        optim_wrapper: Wrapper of the optimizer, without accumulation of its own.

    Returns:
        dict[str, Tensor]: Losses and accuracies, means over the whole batch.
    """
    with optim_wrapper.optim_context(wrapper):
        data = model.data_preprocessor(data, training=True)
        inputs = data['inputs']
        inputs['keys'] = model.head.gather(model.keys(inputs))
        del inputs['view_2'], inputs['mixed_view_1']  # they have no queries
    num_images = len(inputs['view_1'])
    logs: dict[str, Tensor] = {}
    for part, is_last in split_images(inputs, model.micro_batch_size):
        share = len(part['view_1']) / num_images
        no_sync = getattr(wrapper, 'no_sync', nullcontext)
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


def split_images(inputs: dict, size: int) -> Iterator[tuple[dict, bool]]:
    """Yield the queries of ``size`` images at a time; keys and targets stay the batch's.

    Args:
        inputs: Preprocessed views, with ``keys``.
        size: Images per micro-batch.

    Yields:
        tuple: ``inputs`` of a micro-batch, with ``images`` (the range of the batch's
        images it holds), and whether it is the last one.
    """
    num_images = len(inputs['view_1'])
    for first in range(0, num_images, size):
        images = range(first, min(first + size, num_images))
        part = dict(inputs, images=images)
        for name in ('view_1', 'mixed_view_2'):
            part[name] = inputs[name][first : images.stop]
        for name in LOCAL_VIEWS:
            if name in inputs:
                part[name] = inputs[name][:, first : images.stop]
        yield part, images.stop == num_images
