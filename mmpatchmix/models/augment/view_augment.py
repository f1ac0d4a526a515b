"""Photometric augmentation of a view: its settings, and the random numbers drawn from them."""

import torch
from torch import Tensor, nn

from mmpatchmix.models.augment import on_cpu, on_device
from mmpatchmix.models.augment.plan import HUE, Plan, without_colours
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class ViewAugment(nn.Module):
    """Colour jitter, greyscale, blur, solarize and flip, drawn per image, then normalisation.

    Distribution and formulas are those of torchvision's transforms, the formulas to 1e-4 of full
    scale (grey weighs red by 0.299 here, by 0.2989 there).

    uint8 images with three channels on the CPU are augmented image by image by :mod:`.on_cpu`,
    which rounds to whole grey levels between operations, as transforms of images do. All others
    are augmented as a batch by :mod:`.on_device`, which does not round, but keeps bytes in half
    precision on accelerators. Images of other than three channels get brightness and contrast of
    the jitter, blur and flip.

    All random numbers come from torch's global generator on the CPU, so a seed draws the same on
    every device. Train and eval mode are the same. ``ValueError`` if an argument is out of its
    range, or the images are of another kind.

    Args:
        color_jitter: Strength of brightness, contrast, saturation and hue, as in
            torchvision's ``ColorJitter``. None disables the jitter.
        color_jitter_prob: Share of the images that are jittered.
        grayscale_prob: Share of the images that are turned to grey.
        blur_sigma: Smallest and largest standard deviation of the Gaussian blur, in pixels.
            None disables the blur.
        blur_prob: Share of the images that are blurred.
        blur_kernel: Odd side of the blur's kernel in pixels. None takes a tenth of the
            shorter side, as SimCLR does (arXiv 2002.05709, appendix A): 23 for 224, 9 for
            96, 3 for 32.
        solarize_threshold: Values at or above it are inverted; in [0, 1].
        solarize_prob: Share of the images that are solarized.
        flip_prob: Share of the images that are mirrored left to right.
    """

    def __init__(
        self,
        color_jitter: tuple[float, float, float, float] | None = (0.4, 0.4, 0.2, 0.1),
        color_jitter_prob: float = 0.8,
        grayscale_prob: float = 0.2,
        blur_sigma: tuple[float, float] | None = (0.1, 2.0),
        blur_prob: float = 0.5,
        blur_kernel: int | None = None,
        solarize_threshold: float = 128 / 255,
        solarize_prob: float = 0.0,
        flip_prob: float = 0.5,
    ) -> None:
        super().__init__()
        self.color_jitter = color_jitter
        self.color_jitter_prob = color_jitter_prob or 0.0
        self.grayscale_prob = grayscale_prob or 0.0
        self.blur_sigma = blur_sigma
        self.blur_prob = blur_prob or 0.0
        self.blur_kernel = blur_kernel
        self.solarize_threshold = solarize_threshold
        self.solarize_prob = solarize_prob or 0.0
        self.flip_prob = flip_prob or 0.0
        probs = {name: prob for name, prob in vars(self).items() if name.endswith('_prob')}
        for name, is_in_range, rule in (
            *((name, 0 <= prob <= 1, 'in [0, 1]') for name, prob in probs.items()),
            (
                'color_jitter',
                color_jitter is None
                or (len(color_jitter) == 4 and min(color_jitter) >= 0 and color_jitter[3] <= 0.5),
                'None or four strengths >= 0 (brightness, contrast, saturation, hue), the last at '
                'most 0.5',
            ),
            (
                'blur_sigma',
                blur_sigma is None or (len(blur_sigma) == 2 and 0 < blur_sigma[0] <= blur_sigma[1]),
                'None or (smallest, largest) in pixels with 0 < smallest <= largest',
            ),
            (
                'blur_kernel',
                blur_kernel is None or (blur_kernel >= 1 and blur_kernel % 2 == 1),
                'None, or odd and >= 1',
            ),
            ('solarize_threshold', 0 <= solarize_threshold <= 1, 'in [0, 1] (128 / 255 for 128)'),
        ):
            if not is_in_range:
                raise ValueError(f'ViewAugment: {name} must be {rule}; got {getattr(self, name)!r}')

    @torch.no_grad()
    def forward(self, images: Tensor, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
        """Augment a batch, subtract ``mean (C, 1, 1)`` and divide by ``std (C, 1, 1)``.

        Args:
            images: (..., C, H, W) uint8, or float32 from 0 to 255, of any strides. Not modified.
            mean, std: On the scale 0-255, of three channels in RGB order.
            to_rgb: Whether three channels come in BGR order.

        Returns:
            Tensor: (..., C, H, W), three channels in RGB order; float32, or under autocast of its
            type, except three channels of uint8 on a CPU.
        """
        num_channels = len(mean)
        is_kind = images.dtype in (torch.uint8, torch.float32)
        if images.ndim < 4 or images.shape[-3] != num_channels or not is_kind:
            raise ValueError(
                f'ViewAugment needs (N, {num_channels}, H, W) images of uint8 or float32, got '
                f'{images.dtype} of shape {tuple(images.shape)}'
            )
        plan = self.draw(images.shape[:-3].numel(), min(images.shape[-2:]))
        if num_channels != 3:
            plan = without_colours(plan)
        is_photo = images.dtype == torch.uint8 and images.shape[-3] == 3
        place = on_cpu if is_photo and images.device.type == 'cpu' else on_device
        return place.augment(images, plan, mean, std, to_rgb)

    def draw(self, num_images: int, size: int) -> Plan:
        """Draw the operations on each image; ``size`` is the shorter side in pixels."""
        uniform = torch.rand(num_images, 14)  # in [0, 1), so a probability of 1 always applies
        probs = [
            self.flip_prob,
            self.color_jitter_prob if self.color_jitter else 0.0,
            self.grayscale_prob,
            self.blur_prob if self.blur_sigma else 0.0,
            self.solarize_prob,
        ]
        flip, jitter, grey, blur, solarize = (uniform[:, :5] < torch.tensor(probs)).unbind(1)
        strength = torch.tensor(self.color_jitter or (0.0,) * 4)
        centre = torch.tensor([1.0, 1, 1, 0])
        low = centre - strength
        low[:HUE].clamp_(min=0)  # no negative factors; the hue turns both ways
        smallest, largest = self.blur_sigma or (1.0, 1.0)
        return Plan(
            flip=flip,
            jitter=jitter,
            order=uniform[:, 9:13].argsort(1),
            factors=low + (centre + strength - low) * uniform[:, 5:9],
            grey=grey,
            blur=blur,
            sigma=smallest + (largest - smallest) * uniform[:, 13],
            # A tenth of the size, odd, at least 3; borders are reflected once.
            blur_side=min(self.blur_kernel or max(3, 2 * (size // 10 // 2) + 1), 2 * size - 1),
            solarize=solarize,
            solarize_from=255 * self.solarize_threshold,
        )
