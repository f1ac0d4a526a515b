"""Colours of a batch on an accelerator, pass by pass, where nothing can be compiled."""

import math

import torch
from torch import Tensor

from mmpatchmix.models.augment.plan import CONTRAST, HUE, LUMA, SATURATION, Plan, send


def blends(plan: Plan) -> Tensor:
    """Express brightness, contrast and saturation alike.

    Each makes ``own * image + grey * greys + mean * mean grey`` of an image.

    Returns:
        Tensor: (3, N, 4) float32, the three weights by image and place in its order; 1, 0, 0 for
        hue.
    """
    factors = plan.factors.gather(1, plan.order)  # (N, 4)
    own = torch.where(plan.order == HUE, 1.0, factors)
    rest = 1 - own
    return torch.stack([own, rest * (plan.order == SATURATION), rest * (plan.order == CONTRAST)])


def jitter(images: Tensor, plan: Plan) -> None:
    """Jitter the colours in place, each image in its own order.

    Hue takes more than all else, so it happens once for all images, with up to three of the
    others before it and the rest after it. Images are sorted by how many come before; so those
    that take part in a pass are neighbours.

    Args:
        images: (N, C, H, W), 0 to 255.
        plan: What to do; without colours where C is not 3.
    """
    rows = plan.jitter.nonzero()[:, 0]  # (K,)
    if len(rows) == 0:
        return
    place_of_hue = (plan.order[rows] == HUE).nonzero()[:, 1]  # (K,), 0 to 3
    by_place = place_of_hue.argsort(descending=True)
    rows, place_of_hue = rows[by_place], place_of_hue[by_place]
    place = send(rows, images)
    weights = send(blends(plan)[:, rows], images)[..., None, None, None]
    some = images.index_select(0, place)  # (K, C, H, W)
    for step in range(3):
        num = int((place_of_hue > step).sum())
        _blend(some[:num], *weights[:, :num, step])
    turns = plan.factors[rows, HUE]
    if turns.any():
        _turn_hue(some, turns)
    for step in range(1, 4):
        first = int((place_of_hue >= step).sum())
        _blend(some[first:], *weights[:, first:, step])
    images.index_copy_(0, place, some)


def find_grey(images: Tensor) -> Tensor:
    """Return the greys, (K, 1, H, W), of (K, 3, H, W) images."""
    return mix_grey(*images.split(1, dim=1))


def mix_grey(red: Tensor, green: Tensor, blue: Tensor) -> Tensor:
    """Weigh three channels by LUMA, in two passes; three equal values give just that value."""
    return red.lerp(green, LUMA[1] / (LUMA[0] + LUMA[1])).lerp(blue, LUMA[2])


def _blend(images: Tensor, own: Tensor, grey: Tensor, mean: Tensor) -> None:
    """Change brightness, contrast or saturation in place.

    Channels that are no colours have a mean each, and no greys.

    Args:
        images: (K, C, H, W), 0 to 255.
        own: (K, 1, 1, 1), weight of the image itself.
        grey: (K, 1, 1, 1), weight of its greys.
        mean: (K, 1, 1, 1), weight of its mean grey.
    """
    if len(images) == 0:
        return
    greys = find_grey(images) if images.shape[1] == 3 else images
    added = mean * greys.mean((2, 3), keepdim=True, dtype=torch.float32)  # (K, 1 or C, 1, 1)
    if images.shape[1] == 3:
        added = torch.addcmul(added, greys, grey, out=greys)  # (K, 1, H, W)
    torch.addcmul(added, images, own, out=images).clamp_(0, 255)


def _turn_hue(images: Tensor, turns: Tensor) -> None:
    """Turn the colours in place; HSV (hue, saturation, value) stays unwritten.

    Hue is an angle: red at 0, green at a third of the circle, blue at two thirds. Going away from
    the opposite of a channel's own colour, the channel stays at the lowest value of the pixel for
    a sixth of the circle, rises to the highest within the next, and stays there for the third.

    Source: https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative.

    Args:
        images: (K, 3, H, W), 0 to 255.
        turns: (K,), shares of the circle.
    """
    sixth = math.pi / 3
    red, green, blue = images.split(1, dim=1)
    lowest, highest = torch.aminmax(images, dim=1, keepdim=True)
    spread = highest - lowest  # (K, 1, H, W)
    # The angle from red, 0 to pi; the sign says whether towards green or towards blue. Where all
    # are equal the quotient is 0 / tiny, and any hue will do.
    tiny = torch.finfo(images.dtype).tiny
    hue = (green + blue).sub_(red).sub_(highest)
    # Constants of float32 and an output that is there already: computed in float32, rounded once.
    far = images.new_full((1, 1, 1, 1), 2 * sixth, dtype=torch.float32)
    torch.addcdiv(far, hue, spread.clamp(min=tiny), value=sixth, out=hue)
    hue.copysign_(green - blue)
    # From the opposite of each channel; the cosine knows neither the sign nor whole circles.
    ahead = 2 * math.pi * torch.remainder(turns[:, None] - torch.tensor([0, 1, 2]) / 3, 1) - math.pi
    ahead = send(ahead[..., None, None], images)  # (K, 3, 1, 1)
    away = torch.add(hue, ahead, out=torch.empty_like(images))
    away.cos_().acos_().clamp_(sixth, 2 * sixth)
    torch.addcmul(lowest - spread, spread, away, value=1 / sixth, out=images)
