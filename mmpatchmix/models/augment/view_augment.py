"""Photometric augmentation of a view: its settings, its random numbers, and who applies them."""

import torch
from torch import Tensor, nn

from mmpatchmix.models.augment import on_cpu, on_device
from mmpatchmix.models.augment.plan import HUE, Plan, without_colours
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class ViewAugment(nn.Module):
    """Colour jitter, greyscale, blur, solarize and flip, drawn per image, then normalisation.

    The distribution is that of torchvision's transforms: every image has its own coins,
    factors, blur and order of the jitter operations. The formulas agree too, to 1e-4 of full
    scale (grey weighs red by 0.299 here, by 0.2989 there).

    The device of the images chooses who applies what was drawn: :mod:`.on_cpu`
    goes image by image and rounds to whole grey levels in between, as transforms of images do;
    :mod:`.on_device` takes the whole batch and does not round, but keeps bytes in
    half precision on accelerators. Images of float32 and of other than three channels always go
    there.

    Images of other than three channels are no colours: of the jitter they get brightness and
    contrast, and no greyscale and no solarize.

    All random numbers come from torch's global generator on the CPU, wherever the images
    are. So the same seed draws the same on every device, and no device is waited for.

    The module does the same in train and eval mode; the caller decides when to call it.

    Args:
        color_jitter: Strength of brightness, contrast, saturation and hue, as in
            torchvision's ``ColorJitter``. None jitters nothing.
        color_jitter_prob: Share of the images that are jittered.
        grayscale_prob: Share of the images that lose their colour.
        blur_sigma: Smallest and largest standard deviation of the Gaussian blur, in pixels.
            None blurs nothing.
        blur_prob: Share of the images that are blurred.
        blur_kernel: Odd side of the blur's kernel in pixels. None takes a tenth of the
            shorter side, as SimCLR does (arXiv 2002.05709, appendix A): 23 for 224, 9 for
            96, 3 for 32.
        solarize_threshold: Values at or above it are inverted; in [0, 1].
        solarize_prob: Share of the images that are solarized.
        flip_prob: Share of the images that are mirrored left to right.

    Raises:
        ValueError: If an argument is out of its range, or the images are of another kind.
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
        _check_ranges(color_jitter, blur_sigma, blur_kernel, solarize_threshold)
        self.color_jitter = color_jitter
        self.color_jitter_prob = _check_prob('color_jitter_prob', color_jitter_prob)
        self.grayscale_prob = _check_prob('grayscale_prob', grayscale_prob)
        self.blur_sigma = blur_sigma
        self.blur_prob = _check_prob('blur_prob', blur_prob)
        self.blur_kernel = blur_kernel
        self.solarize_threshold = float(solarize_threshold)
        self.solarize_prob = _check_prob('solarize_prob', solarize_prob)
        self.flip_prob = _check_prob('flip_prob', flip_prob)

    @torch.no_grad()
    def forward(self, images: Tensor, mean: Tensor, std: Tensor, to_rgb: bool = False) -> Tensor:
        """Augment and normalise a batch.

        Args:
            images: (N, C, H, W) uint8, or float32 from 0 to 255, of any strides. Local crops
                come flattened to (N * L, C, h, w). Not modified.
            mean: (C, 1, 1), subtracted in the end; of three in RGB order; on the scale 0-255.
            std: (C, 1, 1), divided by after that.
            to_rgb: Whether three channels come in BGR order.

        Returns:
            Tensor: (N, C, H, W), three channels in RGB order; float32, or on an accelerator under
            autocast of its type.
        """
        plan = self.plan(images, len(mean))
        place = on_cpu if goes_to_cpu(images) else on_device
        return place.augment(images, plan, mean, std, to_rgb)

    def plan(self, images: Tensor, num_channels: int) -> Plan:
        """Check images, ``(..., C, H, W)``, and draw what is to happen to each."""
        is_kind = images.dtype in (torch.uint8, torch.float32)
        if images.ndim < 4 or images.shape[-3] != num_channels or not is_kind:
            raise ValueError(
                f'ViewAugment needs (N, {num_channels}, H, W) images of uint8 or float32, got '
                f'{images.dtype} of shape {tuple(images.shape)}'
            )
        plan = self.draw(images.shape[:-3].numel(), min(images.shape[-2:]))
        return plan if num_channels == 3 else without_colours(plan)

    def draw(self, num_images: int, size: int) -> Plan:
        """Draw what is to happen to each image.

        Args:
            num_images: N.
            size: The shorter side of the images in pixels.
        """
        uniform = torch.rand(num_images, 14)  # in [0, 1), so a probability of 1 always wins
        coins = uniform[:, :5] < torch.tensor(
            [
                self.flip_prob,
                self.color_jitter_prob if self.color_jitter else 0.0,
                self.grayscale_prob,
                self.blur_prob if self.blur_sigma else 0.0,
                self.solarize_prob,
            ]
        )
        strength = torch.tensor(self.color_jitter or (0.0,) * 4)
        centre = torch.ones(4)
        centre[HUE] = 0
        low = centre - strength
        low[:HUE].clamp_(min=0)  # no negative factors; the hue turns both ways
        smallest, largest = self.blur_sigma or (1.0, 1.0)
        return Plan(
            flip=coins[:, 0],
            jitter=coins[:, 1],
            order=uniform[:, 9:13].argsort(1),
            factors=low + (centre + strength - low) * uniform[:, 5:9],
            grey=coins[:, 2],
            blur=coins[:, 3],
            sigma=smallest + (largest - smallest) * uniform[:, 13],
            blur_side=self.blur_kernel or derive_blur_kernel(size),
            solarize=coins[:, 4],
            solarize_from=255 * self.solarize_threshold,
        )

    def extra_repr(self) -> str:
        """Return the settings, as shown in the log."""
        return ', '.join(
            f'{name}={value}' for name, value in vars(self).items() if name in _SETTINGS
        )


_SETTINGS = ViewAugment.__init__.__annotations__


def goes_to_cpu(images: Tensor) -> bool:
    """Tell whether images, (..., C, H, W), are augmented by :mod:`.on_cpu`."""
    is_photo = images.dtype == torch.uint8 and images.shape[-3] == 3
    return is_photo and images.device.type == 'cpu'


def derive_blur_kernel(size: int) -> int:
    """Return the side of the blur's kernel for images of ``size`` pixels: a tenth, odd, >= 3."""
    return max(3, 2 * (size // 10 // 2) + 1)


def _check_prob(name: str, prob: float | None) -> float:
    if prob is None:
        return 0.0
    if not 0 <= prob <= 1:
        raise ValueError(f'ViewAugment: {name} must lie in [0, 1], got {prob!r}')
    return float(prob)


def _check_ranges(color_jitter, blur_sigma, blur_kernel, solarize_threshold) -> None:
    if color_jitter is not None and (
        len(color_jitter) != 4 or min(color_jitter) < 0 or color_jitter[3] > 0.5
    ):
        raise ValueError(
            'ViewAugment: color_jitter must be four strengths >= 0 (brightness, contrast, '
            f'saturation, hue), the last at most 0.5, or None; got {color_jitter!r}'
        )
    if blur_sigma is not None and (len(blur_sigma) != 2 or not 0 < blur_sigma[0] <= blur_sigma[1]):
        raise ValueError(
            'ViewAugment: blur_sigma must be (smallest, largest) in pixels with '
            f'0 < smallest <= largest, or None; got {blur_sigma!r}'
        )
    if blur_kernel is not None and (blur_kernel < 1 or blur_kernel % 2 == 0):
        raise ValueError(
            f'ViewAugment: blur_kernel must be odd and >= 1, or None; got {blur_kernel!r}'
        )
    if not 0 <= solarize_threshold <= 1:
        raise ValueError(
            'ViewAugment: solarize_threshold lies in [0, 1] (128 of 255 is 128 / 255), '
            f'got {solarize_threshold!r}'
        )
