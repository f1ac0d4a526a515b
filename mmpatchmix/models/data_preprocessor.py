"""The data preprocessor: crops of the workers to augmented, normalised, mixed views."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.logging import print_log
from mmpretrain.models.utils import SelfSupDataPreprocessor
from torch import Tensor, nn

from mmpatchmix.datasets.pack_views import VIEWS, channels_first
from mmpatchmix.models.mixing import (
    draw_groups,
    draw_shares,
    group_shares,
    mix_patches,
    shares_to_mix,
    shares_to_source,
    with_largest_first,
)
from mmpatchmix.registry import FUNCTIONS, MODELS


@MODELS.register_module()
class PatchMixDataPreprocessor(SelfSupDataPreprocessor):
    """Move crops to the device, augment, normalise and mix them.

    A training batch of ``mmpatchmix.PackViews``, uint8, or float32 from 0 to 255, with the channels
    last or first,

    - ``view_1``, ``view_2``: ``(N, H, W, C)``
    - ``local_views``, with local crops: ``(N, L, h, w, C)``

    becomes, normalised, three channels as RGB (float32, or the type of autocast)

    - ``view_1``, ``view_2``, ``mixed_view_1``, ``mixed_view_2``: ``(N, C, H, W)``
    - ``local_views``, ``mixed_local_views``: ``(L, N, C, h, w)``
    - ``mix_to_source``, ``mix_to_mix``, ``local_mix_to_source``: soft targets, see
      :mod:`mmpatchmix.models.mixing`
    - ``groups`` of PatchMix by view: ``(T,)`` int64, ``(L, T)`` for local crops

    Every mix draws its own permutation, on the CPU. In evaluation ``inputs`` is one
    ``(N, C, H, W)`` tensor, which is normalised only. Source: https://arxiv.org/abs/2306.12243.

    Args:
        mean: One mean per channel of the images, of three in RGB order, on the scale 0-255.
        std: Standard deviations, likewise.
        num_mix: ``M``, images per mix, or a list to draw from once per batch. 1 mixes nothing.
        patch_size: Patch size of the mix in pixels, which must divide the views.
        mix_prob: Probability of mixing a batch; otherwise mixtures are the images themselves.
        shares: Shares of the ``M`` images in a mix of PatchMix: 'equal', or ``dict(alpha=1.0)`` to
            draw them for every mix from a symmetric Dirichlet distribution. The largest is that of
            the image itself.
        mixing: Another mixing as a dict: ``type`` is a function of
            :data:`mmpatchmix.registry.FUNCTIONS` (``mmpatchmix.mix_up``, ``mmpatchmix.cut_mix``,
            ``mmpatchmix.resize_mix``), the rest its arguments.
        augment: Configs of ``mmpatchmix.ViewAugment`` by the names of the views to augment.
        to_rgb: Whether three channels arrive in BGR order, as mmcv loads them.
        non_blocking: Whether copies to the device may overlap with the host.

    Raises:
        ValueError: If an argument is out of range or names an unknown view.
    """

    def __init__(
        self,
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
        num_mix: int | Sequence[int] = 2,
        patch_size: int = 16,
        mix_prob: float = 1.0,
        shares: str | dict = 'equal',
        mixing: dict | None = None,
        augment: dict | None = None,
        to_rgb: bool = True,
        non_blocking: bool = True,
    ) -> None:
        # mmengine's takes 1 or 3 values, so it gets none.
        super().__init__(to_rgb=to_rgb, non_blocking=non_blocking)
        choices = list(num_mix) if isinstance(num_mix, list | tuple) else [num_mix]
        augment = augment or {}
        _require(
            mean and len(mean) == len(std) and min(std) > 0,
            f'mean={mean} and std={std} need one value per channel each, and std must be above 0.',
        )
        _require(
            not to_rgb or len(mean) == 3,
            f'to_rgb=True reverses BGR, but mean has {len(mean)} values, not 3: set to_rgb=False.',
        )
        _require(
            choices and all(isinstance(m, int) and m >= 1 for m in choices),
            f'num_mix={num_mix} must be an integer of at least 1, or a list of such integers.',
        )
        _require(
            isinstance(patch_size, int) and patch_size >= 1,
            f'patch_size={patch_size} must be at least 1 pixel.',
        )
        _require(
            isinstance(mix_prob, int | float) and 0 <= mix_prob <= 1,
            f'mix_prob={mix_prob} must be in [0, 1].',
        )
        alpha = shares.get('alpha') if isinstance(shares, dict) and len(shares) == 1 else None
        _require(
            shares == 'equal' or (isinstance(alpha, int | float) and 0 < alpha < float('inf')),
            f"shares={shares} must be 'equal', or dict(alpha=A) with A above 0.",
        )
        _require(
            alpha is None or mixing is None,
            f'shares={shares} are those of PatchMix, but mixing={mixing} draws its own: leave '
            'shares out; mix_up and cut_mix take alpha themselves.',
        )
        unknown = sorted(augment.keys() - set(VIEWS))
        _require(not unknown, f'augment names {unknown}; the views are {list(VIEWS)}.')
        self.num_channels = len(mean)
        self.num_mix_choices = choices
        self.patch_size = patch_size
        self.mix_prob = mix_prob
        self.alpha = alpha  # None: equal shares
        self._enable_normalize = True
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)  # (C, 1, 1)
            self.register_buffer(name, values, persistent=False)
        self.mixing = find_mixing(mixing) if mixing is not None else None
        self.augment = nn.ModuleDict({view: MODELS.build(cfg) for view, cfg in augment.items()})
        if self.num_channels != 3 and self.augment:
            print_log(
                f'Images have {self.num_channels} channels, not 3: the augmentation leaves out '
                'saturation, hue, greyscale and solarize, which are defined for RGB. It keeps '
                'brightness, contrast, blur and flip.',
                'current',
            )

    @torch.no_grad()
    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare ``inputs`` of a batch as described above; pass on its ``data_samples``."""
        inputs, samples = data['inputs'], data.get('data_samples')
        if isinstance(inputs, Tensor):
            return super().forward(dict(inputs=inputs, data_samples=samples), training)
        views = {
            name: channels_first(view, self.num_channels)
            for name, view in self.cast_data(inputs).items()
        }
        views = self.photometric(views)
        inputs = views | (self.mix(views) if training else {})
        return {'inputs': inputs, 'data_samples': samples}

    def photometric(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Augment and normalise views.

        Args:
            views: Views on the device, ``(N, C, H, W)`` or ``(N, L, C, h, w)``, of any strides.

        Returns:
            dict: ``(N, C, H, W)`` or ``(L, N, C, h, w)``.

        Raises:
            ValueError: If a view has another number of channels.
        """
        done, augments = {}, dict(self.augment.items())
        for name, view in views.items():
            if view.shape[-3] != self.num_channels:
                raise ValueError(
                    f'{name} of shape {tuple(view.shape)} does not have the {self.num_channels} '
                    'channels of data_preprocessor.mean and std.'
                )
            view = view.transpose(0, 1) if view.ndim == 5 else view  # (L, N, C, h, w)
            augment = augments.get(name, normalise)
            done[name] = augment(view, self.mean, self.std, self._channel_conversion)
        return done

    def mix(self, views: dict[str, Tensor]) -> dict:
        """Mix normalised views, each by itself; return mixtures, soft targets and groups."""
        num_mix = self.num_mix_choices[int(torch.randint(len(self.num_mix_choices), ()))]
        if torch.rand(()) >= self.mix_prob:
            num_mix = 1
        mix = partial(self.mixing or self._mix_patches, num_mix=num_mix)
        mixed_1, shares_1, *groups_1 = mix(views['view_1'])
        mixed_2, shares_2, *groups_2 = mix(views['view_2'])
        mixed = {
            'mixed_view_1': mixed_1,
            'mixed_view_2': mixed_2,
            'mix_to_source': shares_to_source(shares_2),
            'mix_to_mix': shares_to_mix(shares_2, shares_1),
        }
        groups = {'view_1': groups_1, 'view_2': groups_2}
        if 'local_views' in views:
            crops = views['local_views']  # (L, N, C, h, w)
            if self.mixing:  # shares are drawn: one draw for all crops, which become channels
                local, shares = mix(crops.transpose(0, 1).flatten(1, 2))  # (N, L * C, h, w)
                local = local.unflatten(1, (len(crops), -1)).transpose(0, 1)
            else:  # groups are drawn for each crop; the shares are those of all
                local, shares, *groups['local_views'] = mix(crops)
            mixed['mixed_local_views'] = local
            mixed['local_mix_to_source'] = shares_to_source(shares)
        if not self.mixing:
            mixed['groups'] = {name: drawn for name, (drawn,) in groups.items()}
        return mixed

    def _mix_patches(self, view: Tensor, num_mix: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mix ``(N, C, H, W)``, or ``(L, N, C, h, w)`` by groups ``(L, T)``."""
        height, width = view.shape[-2:]
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        drawn = self.alpha and with_largest_first(draw_shares(num_mix, self.alpha))
        if view.ndim == 5:
            groups = torch.stack([draw_groups(num_patches, num_mix, shares=drawn) for _ in view])
        else:
            groups = draw_groups(num_patches, num_mix, shares=drawn)
        shares = group_shares(groups.view(-1, num_patches)[0], num_mix)
        return mix_patches(view, groups, self.patch_size), shares, groups


def normalise(view: Tensor, mean: Tensor, std: Tensor, to_rgb: bool) -> Tensor:
    """Normalise ``(..., C, H, W)`` to new, contiguous memory, float32."""
    view = view.flip(-3) if to_rgb else view
    # One pass that reads a byte per value makes the view contiguous.
    view = view.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return torch.addcmul(-mean / std, view, 1 / std, out=view)


def _require(is_valid: object, message: str) -> None:
    if not is_valid:
        raise ValueError(f'data_preprocessor.{message}')


def find_mixing(mixing: dict) -> Callable:
    """Return the function of ``data_preprocessor.mixing`` with its arguments."""
    settings = dict(mixing)
    name = settings.pop('type', None)
    function = FUNCTIONS.get(name) if isinstance(name, str) else name
    _require(
        callable(function),
        f"mixing={mixing} names no function: 'mmpatchmix.mix_up', 'mmpatchmix.cut_mix' or "
        "'mmpatchmix.resize_mix', or one of your own in mmpatchmix.registry.FUNCTIONS.",
    )
    return partial(function, **settings)
