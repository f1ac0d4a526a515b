"""Colour jitter and greyscale of a batch: one formula, compiled on CUDA devices, eager elsewhere.

Each channel is a tensor of its own, so everything but one mean is arithmetic on single pixels. All
images of a batch take the same steps; the weights of idle steps leave an image unchanged.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from mmengine.logging import print_log
from torch import Tensor

from mmpatchmix.models.augment.plan import CONTRAST, HUE, LUMA, SATURATION, Plan
from mmpatchmix.models.mixing import copy_to_device

COMPILED_ON = ('cuda',)  # types of devices
PIXELS_AT_ONCE = 2**16  # of a channel, on the CPU
IDLE = torch.tensor([1.0, 0, 0]).view(3, 1)  # weights of a step that changes nothing
ALL_STEPS = ((True,) * 7,) * 2  # by pass: six steps and the hue

_works = True  # False once compiling has failed in this process


def change_colours(images: Tensor, plan: Plan, to_rgb: bool = False) -> Tensor:
    """Jitter and grey contiguous images ``(N, C, H, W)``, uint8 or float32, by a plan.

    The plan is without colours unless C is 3; ``to_rgb``: three channels come in BGR order. Returns
    new memory, ``(N, C, H, W)`` from 0 to 255, of the type of :func:`choose_work_dtype`.
    """
    weights = copy_to_device(arrange(plan), images.device)  # (39, N)
    if images.device.type in COMPILED_ON and _works and not torch._dynamo.config.disable:
        try:
            return _compile()(images, weights, to_rgb)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # of many types: no Triton, no C compiler, a device too old
            _stop_compiling(error)
    if images.device.type != 'cpu':
        return apply(images, weights, to_rgb)
    num = max(1, PIXELS_AT_ONCE // images.shape[-2:].numel())  # images that fit the cache together
    if num > 8:  # small images take all steps, because many calls would cost more
        if len(images) <= num:
            return apply(images, weights, to_rgb)
        parts = zip(images.split(num), weights.split(num, dim=1), strict=True)
        return torch.cat([apply(part, each, to_rgb) for part, each in parts])
    # Large images are grouped by their steps, so that idle ones are skipped.
    is_step = (weights[:36].unflatten(0, (2, 6, 3)) != IDLE).any(2)  # (2, 6, N)
    is_step = torch.cat([is_step, weights[36:38, None] != 0], 1)
    patterns, pattern = is_step.unique(dim=2, return_inverse=True)
    out = torch.empty_like(images, dtype=choose_work_dtype(images))
    for number, steps in enumerate(patterns.unbind(2)):
        for rows in (pattern == number).nonzero()[:, 0].split(num):
            out[rows] = apply(images[rows], weights[:, rows], to_rgb, steps.tolist())
    return out


def choose_work_dtype(images: Tensor) -> torch.dtype:
    """Return the type of the images between operations.

    Half precision represents 0 to 255 to an eighth of a level. CPUs are slow in it.
    """
    is_half = images.dtype == torch.uint8 and images.device.type != 'cpu'
    return torch.float16 if is_half else torch.float32


@functools.cache
def _compile() -> Callable:
    # Batches have few, fixed shapes: a graph for each is faster than one for all.
    return torch.compile(apply, dynamic=False)


def _stop_compiling(error: Exception) -> None:
    global _works
    _works = False
    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    message = (
        f'Colours are not compiled on this device ({reason}). They are computed eagerly with the '
        'same result, which takes the device longer. The usual cause is that Triton finds no C '
        'compiler: install gcc.'
    )
    print_log(message, 'current', logging.WARNING)


def arrange(plan: Plan) -> Tensor:
    """Arrange the numbers that :func:`apply` needs in one tensor, ``(39, N)`` float32.

    Brightness, contrast and saturation have the form ``own * image + grey * greys + mean * mean
    grey``. Hue is turned once, between three steps before it and three after it. Contrast needs the
    mean grey of its own place in the order: a first pass takes the operations before it. So there
    are 2 passes x 6 steps x 3 weights (own, grey, mean), 2 turns of the hue, and 1 or 0 for grey.
    """
    factors = plan.factors.gather(1, plan.order)  # (N, 4), by place
    own = torch.where(plan.order == HUE, 1.0, factors)
    grey, mean = ((1 - own) * (plan.order == operation) for operation in (SATURATION, CONTRAST))
    idle = IDLE[..., None]
    weights = torch.where(plan.jitter[:, None], torch.stack([own, grey, mean]), idle)  # (3, N, 4)
    turns = torch.where(plan.jitter, plan.factors[:, HUE], 0.0)  # (N,)

    place = torch.arange(4)
    place_of_hue, place_of_contrast = (
        (plan.order == operation).int().argmax(1)[:, None] for operation in (HUE, CONTRAST)
    )  # (N, 1)

    def arrange_steps(weights: Tensor) -> Tensor:
        before = torch.where(place < place_of_hue, weights, idle)[..., :3]
        after = torch.where(place > place_of_hue, weights, idle)[..., 1:]
        return torch.cat([before, after], 2).permute(2, 0, 1).flatten(0, 1)  # (6 * 3, N)

    first = torch.where(place < place_of_contrast, weights, idle)
    first_turns = torch.where((place_of_hue < place_of_contrast)[:, 0], turns, 0.0)
    others = torch.stack([first_turns, turns, plan.grey.float()])
    return torch.cat([arrange_steps(first), arrange_steps(weights), others])


def apply(
    images: Tensor, arranged: Tensor, to_rgb: bool, steps: Sequence[Sequence[bool]] = ALL_STEPS
) -> Tensor:
    """Jitter and grey a batch; see :func:`change_colours` and :func:`arrange`.

    ``steps`` are those that change an image; the others may be skipped.
    """
    channels = [channel.float() for channel in images.unbind(1)]  # (N, H, W) each
    channels = channels[::-1] if to_rgb else channels
    arranged = arranged[..., None, None]
    weights, turns, grey = arranged[:36].unflatten(0, (2, 6, 3)), arranged[36:38], arranged[38]
    no_means = [torch.zeros_like(grey)] * len(channels)  # the first pass ends before contrast
    first = _jitter(channels, weights[0], turns[0], no_means, steps[0])
    means = [part.mean((1, 2), keepdim=True) for part in _find_greys(first)]
    channels = _jitter(channels, weights[1], turns[1], means, steps[1])
    if len(channels) == 3:
        (own,) = _find_greys(channels)
        channels = [torch.where(grey > 0, own, channel) for channel in channels]
    dtype = choose_work_dtype(images)
    return torch.stack([channel.to(dtype) for channel in channels], 1)


def _find_greys(channels: list[Tensor]) -> list[Tensor]:
    """Return the grey of three channels; of other than three the channels themselves."""
    if len(channels) != 3:
        return channels
    red, green, blue = channels  # two passes, in which three equal values stay as they are
    return [red.lerp(green, LUMA[1] / (LUMA[0] + LUMA[1])).lerp(blue, LUMA[2])]


def _jitter(
    channels: list[Tensor],
    weights: Tensor,
    turns: Tensor,
    means: list[Tensor],
    steps: Sequence[bool],
) -> list[Tensor]:
    """Take three steps, turn the hue and take three more steps."""
    for step in range(6):
        if step == 3 and steps[6] and len(channels) == 3:
            channels = _turn_hue(*channels, turns)
        if not steps[step]:
            continue
        own, grey, mean = weights[step]  # (N, 1, 1) each
        parts = zip(_find_greys(channels), means, strict=False)
        shifts = [grey * greys + mean * each for greys, each in parts] * len(channels)
        pairs = zip(channels, shifts, strict=False)
        channels = [(own * channel + shift).clamp(0, 255) for channel, shift in pairs]
    return channels


def _turn_hue(red: Tensor, green: Tensor, blue: Tensor, turns: Tensor) -> list[Tensor]:
    """Turn the colours by shares of the circle, ``turns``, without conversion to HSV.

    Hue is an angle: red at 0, green at a third of the circle, blue at two thirds. Going away from
    the opposite of a channel's own colour, the channel stays at the lowest value of the pixel for
    a sixth of the circle, rises to the highest within the next, and stays there for the third.

    Source: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative.
    """
    lowest = torch.minimum(torch.minimum(red, green), blue)
    highest = torch.maximum(torch.maximum(red, green), blue)
    spread = highest - lowest
    # In sixths of the circle, 0 to 3 from red; the sign is that of green minus blue.
    hue = ((green + blue - red - highest) / spread.clamp(min=1e-30) + 2).copysign(green - blue)
    turned = []
    for channel, opposite in ((red, 3), (green, 5), (blue, 1)):
        away = (hue + 6 * turns - opposite).remainder(6)
        away = torch.minimum(away, 6 - away).clamp(1, 2)
        turned.append(torch.where(turns == 0, channel, lowest + spread * (away - 1)))
    return turned
