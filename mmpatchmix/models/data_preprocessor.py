"""From the workers' crops to augmented, normalised, mixed views on the device."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from mmengine.logging import print_log
from mmpretrain.models.utils import SelfSupDataPreprocessor
from torch import Tensor, nn

from mmpatchmix.datasets.pack_views import VIEWS, channels_first
from mmpatchmix.models.augment import on_device
from mmpatchmix.models.augment.plan import join
from mmpatchmix.models.augment.view_augment import goes_to_cpu
from mmpatchmix.models.mixing import (
    draw_groups,
    group_shares,
    mix_patches,
    shares_to_mix,
    shares_to_source,
)
from mmpatchmix.registry import FUNCTIONS, MODELS


@MODELS.register_module()
class PatchMixDataPreprocessor(SelfSupDataPreprocessor):
    """Move to the device, augment, normalise and mix: PatchMix's share of the data.

    Workers decode and crop; what is photometric happens here: batched where the tensors are
    on an accelerator, image by image in threads where they are on the CPU, see
    :class:`mmpatchmix.ViewAugment`. In training the batch ``inputs`` (uint8, or float32 from 0 to
    255, from ``mmpatchmix.PackViews``, or with the channels before height and width)

    - ``view_1``, ``view_2``: ``(N, H, W, C)``
    - ``local_views``, with local crops: ``(N, L, h, w, C)``

    becomes (float32, or on an accelerator under autocast of its type; normalised, three channels as
    RGB)

    - ``view_1``, ``view_2``, ``mixed_view_1``, ``mixed_view_2``: ``(N, C, H, W)``
    - ``local_views``, ``mixed_local_views``: ``(L, N, C, h, w)``
    - ``mix_to_source``, ``mix_to_mix``, ``local_mix_to_source``: soft targets, see
      :mod:`mmpatchmix.models.mixing`
    - ``groups``: what was mixed, by view: ``(T,)`` int64, ``(L, T)`` for local crops; only of
      PatchMix itself, not of another ``mixing``

    Every mix draws its own permutation, from torch's generator on the CPU. In
    evaluation ``inputs`` is one ``(N, C, H, W)`` tensor, which is normalised only.
    ``data_samples`` of a training batch stay where they are: nothing reads them.

    Source: https://arxiv.org/abs/2306.12243.

    Args:
        mean: One mean per channel, of three in RGB order, on the scale 0-255. As many as there
            are say how many channels images have.
        std: Standard deviations, likewise.
        num_mix: ``M``, images per mix: an integer of at least 1 or a list to draw
            from, one draw per batch. 1 mixes nothing.
        patch_size: Patch size of the mix in pixels. It must divide the views; it
            need not be the ViT's.
        mix_prob: Probability of mixing a batch, in [0, 1]; otherwise its
            mixtures are the images themselves.
        mixing: How to mix instead of by patches, as a dict: ``type`` is a function of
            :data:`mmpatchmix.registry.FUNCTIONS` (``mmpatchmix.mix_up``, ``mmpatchmix.cut_mix``,
            ``mmpatchmix.resize_mix``), the rest its arguments.
        augment: Configs of ``mmpatchmix.ViewAugment`` by view: ``view_1``, ``view_2``,
            ``local_views``. Views left out are not augmented.
        to_rgb: Whether three channels arrive in BGR order (as mmcv loads them, but not
            ``mmpatchmix.LoadAnyImage``).
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
        mixing: dict | None = None,
        augment: dict | None = None,
        to_rgb: bool = True,
        non_blocking: bool = True,
    ) -> None:
        # mmengine's takes 1 or 3 values, so it gets none.
        super().__init__(to_rgb=to_rgb, non_blocking=non_blocking)
        self.num_channels = _check_channels(mean, std, to_rgb)
        self._enable_normalize = True
        for name, values in (('mean', mean), ('std', std)):
            values = torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)  # (C, 1, 1)
            self.register_buffer(name, values, persistent=False)
        choices = list(num_mix) if isinstance(num_mix, list | tuple) else [num_mix]
        if not choices or not all(isinstance(m, int) and m >= 1 for m in choices):
            raise ValueError(
                f'data_preprocessor.num_mix={num_mix} must be an integer of at least 1 (2 in the '
                'paper) or a non-empty list of such integers.'
            )
        if not isinstance(patch_size, int) or patch_size < 1:
            raise ValueError(f'data_preprocessor.patch_size={patch_size} must be at least 1 pixel.')
        if not isinstance(mix_prob, int | float) or not 0 <= mix_prob <= 1:
            raise ValueError(f'data_preprocessor.mix_prob={mix_prob} must be in [0, 1].')
        augment = augment or {}
        if unknown := set(augment) - set(VIEWS):
            raise ValueError(
                f'data_preprocessor.augment names {sorted(unknown)}; the views are {list(VIEWS)}.'
            )
        self.num_mix_choices = choices
        self.patch_size = patch_size
        self.mix_prob = mix_prob
        self.mixing = _find_mixing(mixing)
        self.augment = nn.ModuleDict({view: MODELS.build(cfg) for view, cfg in augment.items()})
        if self.num_channels != 3 and self.augment:
            print_log(
                f'{self.num_channels} channel{"" if self.num_channels == 1 else "s"}: saturation, '
                'hue, greyscale and solarize are left out of the augmentation, for they are made '
                'for RGB; brightness, contrast, blur and flip stay.',
                'current',
            )

    @torch.no_grad()
    def forward(self, data: dict, training: bool = False) -> dict:
        """Prepare one batch.

        Args:
            data: ``inputs`` and ``data_samples``, as collated.
            training: Whether to augment and mix.

        Returns:
            dict: ``inputs`` and ``data_samples``, as described above.
        """
        if isinstance(data['inputs'], Tensor):
            # mmpretrain's takes its values by position.
            samples = data.get('data_samples')
            return super().forward(dict(inputs=data['inputs'], data_samples=samples), training)
        views = self.photometric(
            {
                name: channels_first(view, self.num_channels)
                for name, view in self.cast_data(data['inputs']).items()
            }
        )
        inputs = views | (self.mix(views) if training else {})
        return {'inputs': inputs, 'data_samples': data.get('data_samples')}

    def photometric(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Augment and normalise the views of the batch.

        Args:
            views: ``view_1``, ``view_2`` ``(N, C, H, W)`` and perhaps ``local_views``
                ``(N, L, C, h, w)``, uint8 or float32, on the device, of any strides.

        Returns:
            dict: ``(N, C, H, W)`` or ``(L, N, C, h, w)``, normalised; float32, or on an
            accelerator under autocast of its type.

        Raises:
            ValueError: If a view has another number of channels.
        """
        done, batches = {}, defaultdict(list)
        for name, view in views.items():
            if view.shape[-3] != self.num_channels:
                raise ValueError(
                    f'{name} of shape {tuple(view.shape)} has not the {self.num_channels} channels '
                    'that data_preprocessor.mean and std have values for.'
                )
            if view.ndim == 5:
                view = view.transpose(0, 1)  # (L, N, C, h, w)
            if name in self.augment and not goes_to_cpu(view):
                # Drawn in this order, applied to all images of a kind together.
                plan = self.augment[name].plan(view, self.num_channels)
                kind = view.shape[-3:], plan.blur_side, plan.solarize_from
                batches[kind].append((name, view, plan))
                continue
            images = view.flatten(0, -4)  # (L * N, C, h, w)
            if name in self.augment:
                augment = self.augment[name]
                images = augment(images, self.mean, self.std, self._channel_conversion)
            else:
                images = self._normalise(images)
            done[name] = images.view(view.shape)
        for batch in batches.values():
            names, parts, plans = zip(*batch, strict=True)
            out = on_device.augment_views(
                parts, join(plans), self.mean, self.std, self._channel_conversion
            )
            sizes = [part.shape[:-3].numel() for part in parts]
            for name, part, images in zip(names, parts, out.split(sizes), strict=True):
                done[name] = images.view(part.shape)
        return {name: done[name] for name in views}

    def _normalise(self, images: Tensor) -> Tensor:
        if self._channel_conversion:
            images = images.flip(1)
        # All reordering happens in this one pass, which reads a byte per value.
        images = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return torch.addcmul(-self.mean / self.std, images, 1 / self.std, out=images)

    def mix(self, views: dict[str, Tensor]) -> dict:
        """Mix every view by itself and derive the soft targets.

        Args:
            views: ``view_1``, ``view_2`` and perhaps ``local_views``, normalised.

        Returns:
            dict: Mixtures, targets and groups, as described above.
        """
        num_mix = self.num_mix_choices[int(torch.randint(len(self.num_mix_choices), ()))]
        if torch.rand(()) >= self.mix_prob:
            num_mix = 1
        mix = partial(self.mixing or self._mix_patches, num_mix=num_mix)
        (mixed_1, shares_1, *groups_1), (mixed_2, shares_2, *groups_2) = (
            mix(views[name]) for name in ('view_1', 'view_2')
        )
        mixed = {
            'mixed_view_1': mixed_1,
            'mixed_view_2': mixed_2,
            'mix_to_source': shares_to_source(shares_2),
            'mix_to_mix': shares_to_mix(shares_2, shares_1),
        }
        if not self.mixing:
            mixed['groups'] = {'view_1': groups_1[0], 'view_2': groups_2[0]}
        if 'local_views' in views:
            self._mix_local_views(views['local_views'], mixed, mix)
        return mixed

    def _mix_local_views(self, crops: Tensor, mixed: dict, mix: Callable) -> None:
        """Add the mixtures of local crops ``(L, N, C, h, w)``; all crops have the same shares."""
        if self.mixing:  # shares are drawn: one draw for all crops, as if they were channels
            as_channels = crops.transpose(0, 1).flatten(1, 2)  # (N, L * C, h, w)
            views, shares = mix(as_channels)
            views = views.unflatten(1, (len(crops), -1)).transpose(0, 1)
        else:
            views, shares, mixed['groups']['local_views'] = mix(crops)
        mixed['mixed_local_views'] = views  # (L, N, C, h, w)
        mixed['local_mix_to_source'] = shares_to_source(shares)

    def _mix_patches(self, view: Tensor, num_mix: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mix ``(N, C, H, W)``, or ``(L, N, C, h, w)`` by groups ``(L, T)``."""
        height, width = view.shape[-2:]
        num_patches = (height // self.patch_size) * (width // self.patch_size)
        draws = [
            draw_groups(num_patches, num_mix) for _ in range(len(view) if view.ndim == 5 else 1)
        ]
        groups = torch.stack(draws) if view.ndim == 5 else draws[0]
        return mix_patches(view, groups, self.patch_size), group_shares(draws[0], num_mix), groups


def _check_channels(mean: Sequence[float], std: Sequence[float], to_rgb: bool) -> int:
    """Return how many channels there are."""
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise ValueError(
            'data_preprocessor.mean and std need one value per channel each, and no standard '
            f'deviation may be 0; got {mean!r} and {std!r}.'
        )
    if to_rgb and len(mean) != 3:
        raise ValueError(
            f'data_preprocessor.to_rgb=True turns BGR around, but mean has {len(mean)} values, '
            'not 3: set to_rgb=False.'
        )
    return len(mean)


def _find_mixing(mixing: dict | None) -> Callable | None:
    if mixing is None:
        return None
    settings = dict(mixing)
    name = settings.pop('type', None)
    function = FUNCTIONS.get(name) if isinstance(name, str) else name
    if not callable(function):
        raise ValueError(
            f"data_preprocessor.mixing={mixing} names no function: 'mmpatchmix.mix_up', "
            "'mmpatchmix.cut_mix' or 'mmpatchmix.resize_mix', or one of your own that is "
            'registered in mmpatchmix.registry.FUNCTIONS.'
        )
    return partial(function, **settings)
