"""Images and hand-written plans for the tests of augmentation."""

from unittest import mock

import torch
from torch import Tensor

from mmpatchmix.models.augment import colours, on_device
from mmpatchmix.models.augment.plan import BRIGHTNESS, CONTRAST, HUE, SATURATION, Plan

MEAN, STD = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
NUMBERS = dict(brightness=BRIGHTNESS, contrast=CONTRAST, saturation=SATURATION, hue=HUE)


def make_images(num: int = 8, height: int = 24, width: int = 20) -> Tensor:
    """Noise, with the pixels where colour formulas go wrong: black, white, grey, pure, equal."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (num, 3, height, width), generator=generator, dtype=torch.uint8)
    special = [(0, 0, 0), (255, 255, 255), (128, 128, 128), (255, 0, 0), (0, 255, 0), (0, 0, 255)]
    special += [(180, 180, 50), (50, 180, 180), (180, 50, 180), (1, 0, 0), (255, 254, 255)]
    images[:, :, 0, : len(special)] = torch.tensor(special, dtype=torch.uint8).T
    return images  # (N, 3, H, W) RGB


def make_plan(num: int, **changes) -> Plan:
    """Nothing happens to any of ``num`` images, but for the changes: lists or numbers."""
    coins = dict.fromkeys(('flip', 'jitter', 'grey', 'blur', 'solarize'), torch.zeros(num) > 0)
    factors = torch.tensor([1.0, 1, 1, 0]).expand(num, 4)
    numbers = dict(order=torch.arange(4).expand(num, 4), factors=factors, sigma=torch.ones(num))
    plan = Plan(**coins, **numbers, blur_side=3, solarize_from=128.0)
    for name, value in changes.items():
        if isinstance(getattr(plan, name), Tensor):
            value = torch.as_tensor(value, dtype=getattr(plan, name).dtype)
        plan = plan._replace(**{name: value})
    return plan


def make_jitter(name: str, values: list[float]) -> Plan:
    """One operation of colour jitter, with one factor for each image."""
    plan = make_plan(len(values), jitter=[True] * len(values))
    factors = plan.factors.clone()
    factors[:, NUMBERS[name]] = torch.tensor(values)
    return plan._replace(factors=factors)


class AsOnCuda:
    """The operations of CUDA devices, without the compiler and half precision."""

    @staticmethod
    def augment(*args, **kwargs) -> Tensor:
        with (
            mock.patch.object(on_device, 'CONVOLVES', ()),
            mock.patch.object(colours, 'COMPILED_ON', ('cpu', 'meta')),
            mock.patch.object(colours, '_compile', lambda: colours.apply),
        ):
            out = on_device.augment(*args, **kwargs)
        assert colours._works
        return out


def run(place, images: Tensor, plan: Plan, is_bgr: bool = False) -> Tensor:
    """What a place, such as ``on_cpu``, makes of RGB images, as levels from 0 to 255."""
    stored = images.flip(1) if is_bgr else images
    before = stored.clone()
    out = place.augment(stored, plan, MEAN, STD, to_rgb=is_bgr)
    assert torch.equal(stored, before), 'the batch was changed'
    assert out.dtype == torch.float32 and out.is_contiguous() and out.shape == images.shape
    return out
