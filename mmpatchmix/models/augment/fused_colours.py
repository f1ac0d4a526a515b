"""Colours of a batch on an accelerator in few kernels, where torch can compile them.

Written for the compiler: each channel is a tensor of its own, so all but the one mean is arithmetic
on single pixels; every image goes through the same steps, with weights that leave it alone where a
step is not its own. Run eagerly this takes longer than :mod:`~mmpatchmix.models.augment.colours`.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmpatchmix.models.augment.colours import blends, mix_grey
from mmpatchmix.models.augment.plan import CONTRAST, HUE, Plan, choose_work_dtype, send

COMPILED_ON = ('cuda',)  # kinds of devices

_works = True  # until the compiler fails, in this process


def try_apply(images: Tensor, plan: Plan, to_rgb: bool = False) -> Tensor | None:
    """Jitter and grey images with compiled kernels.

    Args:
        images: (N, C, H, W), uint8 or float32, contiguous.
        plan: What to do to each image; without colours where C is not 3.
        to_rgb: Whether three channels come in BGR order.

    Returns:
        Tensor: (N, C, H, W) from 0 to 255, of half precision for bytes and float32
        otherwise; None where nothing is compiled: off CUDA devices, and once the compiler has
        failed, which is said.
    """
    if images.device.type not in COMPILED_ON or not _works or torch._dynamo.config.disable:
        return None
    try:
        return _compile()(images, send(arrange(plan), images), to_rgb)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of many types: no Triton, no C compiler, a device too old
        _give_up(error)
        return None


@functools.cache
def _compile() -> Callable:
    # Batches have few, fixed shapes: a graph for each beats one for any.
    return torch.compile(apply, dynamic=False)


def _give_up(error: Exception) -> None:
    """Say once that nothing is compiled from now on."""
    global _works
    _works = False
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    print_log(
        f'Colours are not compiled on this device ({reason}). Augmentation goes on pass by pass, '
        'which draws the same and takes more of the device. The usual cause is that Triton finds '
        'no C compiler: install gcc.',
        'current',
        logging.WARNING,
    )


def arrange(plan: Plan) -> Tensor:
    """Arrange a plan as :func:`apply` wants it, in one tensor to send.

    Twice: as it is, and only what comes before contrast, for contrast needs the mean grey there.

    Returns:
        Tensor: (39, N) float32: 2 x 6 x 3 weights of six steps, three before hue and three after,
        see :func:`~mmpatchmix.models.augment.colours.blends`; 2 turns; whether to grey, 1 or 0.
    """
    place = torch.arange(4)
    place_of_hue, place_of_contrast = (
        (plan.order == operation).int().argmax(1)[:, None] for operation in (HUE, CONTRAST)
    )  # (N, 1)
    idle = torch.tensor([1.0, 0, 0]).view(3, 1, 1)
    weights = torch.where(plan.jitter[:, None], blends(plan), idle)  # (3, N, 4)
    turns = torch.where(plan.jitter, plan.factors[:, HUE], 0.0)  # (N,)
    is_early = place_of_hue < place_of_contrast

    def steps(weights: Tensor) -> Tensor:
        before = torch.where(place < place_of_hue, weights, idle)[..., :3]
        after = torch.where(place > place_of_hue, weights, idle)[..., 1:]
        return torch.cat([before, after], 2).permute(2, 0, 1).flatten(0, 1)  # (6 * 3, N)

    early = torch.where(place < place_of_contrast, weights, idle)
    others = torch.stack([torch.where(is_early[:, 0], turns, 0.0), turns, plan.grey.float()])
    return torch.cat([steps(early), steps(weights), others])


def apply(images: Tensor, arranged: Tensor, to_rgb: bool) -> Tensor:
    """Jitter and grey a batch; see :func:`try_apply` and :func:`arrange`."""
    channels = [channel.float() for channel in images.unbind(1)]  # (N, H, W) each
    channels = channels[::-1] if to_rgb else channels
    arranged = arranged[..., None, None]
    weights, turns, grey = arranged[:36].unflatten(0, (2, 6, 3)), arranged[36:38], arranged[38]
    nothing = [torch.zeros_like(turns[0])] * len(channels)  # no contrast yet, so no mean
    early = _jitter(channels, weights[0], turns[0], nothing)
    if len(channels) == 3:
        means = [mix_grey(*early).mean((1, 2), keepdim=True)] * 3
    else:
        means = [channel.mean((1, 2), keepdim=True) for channel in early]
    channels = _jitter(channels, weights[1], turns[1], means)
    if len(channels) == 3:
        greys = mix_grey(*channels)
        channels = [torch.where(grey > 0, greys, channel) for channel in channels]
    dtype = choose_work_dtype(images)
    return torch.stack([channel.to(dtype) for channel in channels], 1)


def _jitter(
    channels: list[Tensor], weights: Tensor, turns: Tensor, means: Sequence[Tensor]
) -> list[Tensor]:
    """Take three steps, turn the hue, and take three more."""
    for step in range(3):
        channels = _blend(channels, weights[step], means)
    if len(channels) == 3:
        channels = _turn_hue(*channels, turns)
    for step in range(3, 6):
        channels = _blend(channels, weights[step], means)
    return channels


def _blend(channels: list[Tensor], weights: Tensor, means: Sequence[Tensor]) -> list[Tensor]:
    own, grey, mean = weights  # (N, 1, 1) each
    greys = mix_grey(*channels) if len(channels) == 3 else torch.zeros_like(own)
    return [
        (own * channel + (grey * greys + mean * each)).clamp(0, 255)
        for channel, each in zip(channels, means, strict=True)
    ]


def _turn_hue(red: Tensor, green: Tensor, blue: Tensor, turns: Tensor) -> list[Tensor]:
    """Turn the colours, as :mod:`.colours` does, in sixths of the circle."""
    lowest = torch.minimum(torch.minimum(red, green), blue)
    highest = torch.maximum(torch.maximum(red, green), blue)
    spread = highest - lowest
    hue = ((green + blue - red - highest) / spread.clamp(min=1e-30) + 2).copysign(green - blue)
    turned = []
    for channel, opposite in ((red, 3), (green, 5), (blue, 1)):
        away = (hue + 6 * turns - opposite).remainder(6)  # from the opposite of the channel
        away = torch.minimum(away, 6 - away).clamp(1, 2)
        turned.append(torch.where(turns == 0, channel, lowest + spread * (away - 1)))
    return turned
