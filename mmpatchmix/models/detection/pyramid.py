"""Feature pyramids from the single-scale maps of a plain ViT."""

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, ModuleList
from mmpretrain.models.utils import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class ViTPyramid(BaseModule):
    """Resize maps of several blocks to the strides of a pyramid; an FPN follows.

    As in BEiT and iBOT, shallow blocks give the fine levels, by transposed convolutions, and the
    last one gives the coarsest, by max pooling. Each map passes a LayerNorm first, because the
    scale of a pre-norm ViT's maps grows with depth and pre-training, and FPN has no norm.

    Args:
        in_channels: Width of the backbone.
        patch_size: Pixels per patch, the stride of every incoming map.
        strides: Pixels per cell of the outgoing maps, the patch size times powers of two.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        in_channels: int,
        patch_size: int = 16,
        strides: tuple[int, ...] = (4, 8, 16, 32),
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.norms = ModuleList(LayerNorm2d(in_channels, eps=1e-6) for _ in strides)
        resized = (_resize(in_channels, patch_size, stride, narrow=False)[0] for stride in strides)
        self.resize = ModuleList(resized)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalise maps ``(N, C, H, W)``, one per stride or ``ValueError``, and resize them."""
        if len(maps) != len(self.resize):
            raise ValueError(
                f'the backbone returns {len(maps)} maps and the pyramid has {len(self.resize)} '
                'levels: make backbone.out_indices and neck.strides equally long.'
            )
        normed = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        return tuple(resize(x) for resize, x in zip(self.resize, normed, strict=True))


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """The pyramid of ViTDet (https://arxiv.org/abs/2203.16527): every level from the last map.

    Each level: transposed convolutions or max pooling to its stride, a 1x1 and a 3x3 convolution,
    each followed by a LayerNorm over channels.

    Args:
        in_channels: Width of the backbone.
        out_channels: Channels of every level.
        patch_size: Pixels per patch, the stride of the incoming map.
        strides: Pixels per cell of the levels, the patch size times powers of two.
        num_outs: Number of levels; those beyond ``strides`` halve the last one.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        patch_size: int = 16,
        strides: tuple[int, ...] = (4, 8, 16, 32),
        num_outs: int = 5,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_extra = num_outs - len(strides)
        self.levels = ModuleList()
        norm = {'type': 'mmpretrain.LN2d', 'eps': 1e-6}
        for stride in strides:
            resize, channels = _resize(in_channels, patch_size, stride, narrow=True)
            options = dict(norm_cfg=norm, act_cfg=None)
            one = ConvModule(channels, out_channels, 1, **options)
            three = ConvModule(out_channels, out_channels, 3, padding=1, **options)
            self.levels.append(nn.Sequential(resize, one, three))

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Resize the last map, ``(N, C, H, W)``, to ``num_outs`` maps of ``out_channels``."""
        levels = [level(maps[-1]) for level in self.levels]
        for _ in range(self.num_extra):
            levels.append(F.max_pool2d(levels[-1], kernel_size=1, stride=2))
        return tuple(levels)


def _resize(channels: int, patch_size: int, stride: int, narrow: bool) -> tuple[nn.Module, int]:
    """Build layers from stride ``patch_size`` to ``stride``; return them and their channels.

    Each doubling of the resolution is a transposed convolution, which halves the channels if
    ``narrow``, with LayerNorm and GELU between two; it is reduced by one max pooling.
    """
    larger, smaller = max(patch_size, stride), min(patch_size, stride)
    factor = larger // smaller
    if larger % smaller or factor & (factor - 1):
        raise ValueError(
            f'a stride of {stride} cannot be reached from patches of {patch_size} pixels by '
            'doubling or halving: change neck.strides or backbone.patch_size.'
        )
    if stride >= patch_size:
        return (nn.MaxPool2d(factor) if factor > 1 else nn.Identity()), channels
    layers: list[nn.Module] = []
    while factor > 1:
        if layers:
            layers += [LayerNorm2d(channels, eps=1e-6), nn.GELU()]
        wider, channels = channels, channels // 2 if narrow else channels
        layers.append(nn.ConvTranspose2d(wider, channels, kernel_size=2, stride=2))
        factor //= 2
    return nn.Sequential(*layers), channels
