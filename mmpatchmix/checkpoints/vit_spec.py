"""Size of a Vision Transformer and preparation of its images, read from weights and metadata."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

from mmpatchmix.checkpoints.reading import METADATA_KEY, read_checkpoint, read_config_text

# Weights do not determine the number of heads. Where a file does not state it, it is assumed by
# width: of MoCo v3 and PatchMix, and of timm, with 64 values per head.
_HEADS_MOCO = {192: 3, 384: 12, 768: 12}
_HEADS_TIMM = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
# Fields of ViTSpec in config.json of Hugging Face transformers.
TRANSFORMERS_NAMES = {
    'embed_dims': 'hidden_size',
    'num_layers': 'num_hidden_layers',
    'num_heads': 'num_attention_heads',
    'feedforward_channels': 'intermediate_size',
    'patch_size': 'patch_size',
    'img_size': 'image_size',
    'norm_eps': 'layer_norm_eps',
}
# Default eps of LayerNorm: of mmpretrain and timm, and of transformers.
NORM_EPS, TRANSFORMERS_NORM_EPS = 1e-6, 1e-12


@dataclass(frozen=True)
class ViTSpec:
    """Size of a plain ViT with class token, learned positions and biases."""

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int  # hidden width of a block's two-layer network
    patch_size: int  # pixels per side
    img_size: int  # pixels per side of the image that the positions are for
    norm_eps: float = NORM_EPS  # added to the variance in LayerNorm
    num_registers: int = 0  # tokens without positions (https://arxiv.org/abs/2309.16588)

    @property
    def arch(self) -> dict[str, int]:
        """Return the ``arch`` argument of mmpretrain's VisionTransformer."""
        keys = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
        return {key: getattr(self, key) for key in keys}

    def parameter_shapes(self, in_channels: int = 3) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, under mmpretrain's names and in its order."""
        dims, hidden, patch = self.embed_dims, self.feedforward_channels, self.patch_size
        tokens = dict(cls_token=1, pos_embed=1 + (self.img_size // patch) ** 2)
        tokens['register_tokens'] = self.num_registers
        modules = {'patch_embed.projection': (dims, in_channels, patch, patch)}
        for block in (f'layers.{index}' for index in range(self.num_layers)):
            modules |= {f'{block}.ln1': (dims,), f'{block}.attn.qkv': (3 * dims, dims)}
            modules |= {f'{block}.attn.proj': (dims, dims), f'{block}.ln2': (dims,)}
            modules |= {f'{block}.ffn.layers.0.0': (hidden, dims)}
            modules |= {f'{block}.ffn.layers.1': (dims, hidden)}
        modules['ln1'] = (dims,)
        shapes = {name: (1, count, dims) for name, count in tokens.items() if count}
        for name, shape in modules.items():
            shapes |= {f'{name}.weight': shape, f'{name}.bias': shape[:1]}
        return shapes


_FIELDS = ViTSpec.__dataclass_fields__


def read_spec(
    state: Mapping[str, Tensor],
    stated: Mapping[str, int | float],
    layout: str,
    default_heads: int | None = None,
) -> tuple[ViTSpec, list[str]]:
    """Return the size that the weights, under mmpretrain's names, have, and the assumptions.

    ``stated`` are fields of :class:`ViTSpec` in the metadata or from the user. The layout has
    the usual heads; ``default_heads`` is used where there are none. ``ValueError`` if a value
    differs from the weights, or the heads are unknown.
    """
    width, _, patch_size, _ = state['patch_embed.projection.weight'].shape  # (D, C, p, p)
    num_positions = state['pos_embed'].shape[1]  # (1, 1 + side * side, D)
    side = math.isqrt(num_positions - 1)
    if side * side != num_positions - 1:
        raise ValueError(f'pos_embed has {num_positions} positions, not 1 + those of a square.')
    found = dict(embed_dims=width, patch_size=patch_size, img_size=side * patch_size)
    found['num_layers'] = 1 + max(int(k.split('.')[1]) for k in state if k.startswith('layers.'))
    found['feedforward_channels'] = state['layers.0.ffn.layers.0.0.weight'].shape[0]
    found['num_registers'] = state['register_tokens'].shape[1] if 'register_tokens' in state else 0
    wrong = [
        f'{key} is {value} in its weights and {stated[key]} in its metadata'
        for key, value in found.items()
        if stated.get(key, value) != value
    ]
    if wrong:
        raise ValueError(f'The checkpoint contradicts itself: {"; ".join(wrong)}.')
    heads, assumed = stated.get('num_heads'), []
    if heads is None:
        usual = (_HEADS_MOCO if layout in ('moco', 'own') else _HEADS_TIMM).get(width)
        heads = usual or default_heads
        reason = f'usual for {layout} at width {width}' if usual else 'the model has them'
        assumed = [f'num_heads={heads} (not in the file; {reason})']
    if heads is None or width % heads:
        raise ValueError(
            f'Width {width} with num_heads={heads}: the file does not state the number of heads, '
            'and weights do not determine it. Convert it once with the right num_heads, '
            'mmpatchmix convert FILE NEW_FILE --to mmpretrain --num-heads N, and use the new file.'
        )
    eps = stated.get('norm_eps', NORM_EPS)
    return ViTSpec(num_heads=heads, norm_eps=eps, **found), assumed


def read_stated_spec(meta: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the fields of :class:`ViTSpec` in the metadata of a checkpoint of any layout."""
    if METADATA_KEY in meta:
        return {key: value for key, value in meta[METADATA_KEY].items() if key in _FIELDS}
    if (config := meta.get('transformers')) is not None:
        kind, is_gated = (config.get(key) for key in ('hidden_act', 'use_gated_mlp'))
        if kind not in (None, 'gelu') and not is_gated:  # such as DINOv3, a ViT of timm
            raise ValueError(f'config.json has hidden_act={kind!r}; the ViT has exact GELU.')
        fields = {ours: config[key] for ours, key in TRANSFORMERS_NAMES.items() if key in config}
        return {'norm_eps': TRANSFORMERS_NORM_EPS} | fields
    backbone = read_config_text(meta, 'model').get('backbone')  # of mmengine
    if not isinstance(backbone, dict):
        return {}
    arch = backbone.get('arch')
    if isinstance(arch, str):
        arch = VisionTransformer.arch_zoo.get(arch.lower())
    stated = (arch if isinstance(arch, dict) else {}) | backbone
    fields = {key: value for key, value in stated.items() if key in _FIELDS and type(value) is int}
    if isinstance(size := stated.get('img_size'), list | tuple):  # height and width
        fields['img_size'] = size[0] if len({*size}) == 1 else size
    norm = backbone.get('norm_cfg')
    if isinstance(norm, dict) and isinstance(norm.get('eps'), float):
        fields['norm_eps'] = norm['eps']
    return fields


@dataclass(frozen=True)
class Preprocessing:
    """The test view: resize, crop, and normalise values from 0 to 255."""

    resize: int  # pixels of the shorter side after the bicubic, antialiased resize
    crop: int  # pixels per side of the square cut from the middle
    mean: tuple[float, ...] = (123.675, 116.28, 103.53)  # of each channel
    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    values: str = 'RGB, from 0 to 255'  # description of channels and values

    def to(self, img_size: int) -> 'Preprocessing':
        """Return the same for another image size."""
        return replace(self, resize=self.resize * img_size // self.crop, crop=img_size)

    def to_transformers(self) -> dict[str, Any]:
        """Return the content of ``preprocessor_config.json``."""
        return dict(
            image_processor_type='BitImageProcessor',  # resizes the shorter side, then crops
            do_convert_rgb=True,
            **dict.fromkeys(('do_resize', 'do_center_crop', 'do_rescale', 'do_normalize'), True),
            size={'shortest_edge': self.resize},
            resample=3,  # PIL's number for bicubic
            crop_size={'height': self.crop, 'width': self.crop},
            rescale_factor=1 / 255,
            image_mean=[value / 255 for value in self.mean],
            image_std=[value / 255 for value in self.std],
        )


def read_preprocessing(meta: Mapping[str, Any], img_size: int) -> tuple[Preprocessing, str]:
    """Read the preprocessing of a checkpoint, and return the assumption that was made, or ''.

    Default are ImageNet's means and our test view for images of ``img_size`` pixels per side.
    """
    default = Preprocessing(resize=img_size * 256 // 224, crop=img_size)
    ours = (meta.get(METADATA_KEY) or {}).get('preprocessing')
    if isinstance(ours, dict):
        known = [key for key in Preprocessing.__dataclass_fields__ if key in ours]
        fields = {k: tuple(ours[k]) if isinstance(ours[k], list) else ours[k] for k in known}
        return Preprocessing(**fields).to(img_size), ''
    if isinstance(theirs := meta.get('preprocessor'), dict):
        values = {
            name: tuple(round(255 * value, 3) for value in theirs[key])  # as configs have them
            for name, key in (('mean', 'image_mean'), ('std', 'image_std'))
            if theirs.get(key)
        }
        side = theirs.get('size')  # a square resize has the size of the crop
        if isinstance(side, dict):
            side = side.get('shortest_edge') or side.get('height')
        return replace(default, resize=max(int(side or img_size), img_size), **values), ''
    model = read_config_text(meta, 'model')
    stated = model.get('data_preprocessor') or read_config_text(meta, 'data_preprocessor')
    if not isinstance(stated, dict) or not stated.get('mean') or not stated.get('std'):
        return default, "mean and std of ImageNet (not in the file), the resize of this project's"
    values = {key: tuple(map(float, stated[key])) for key in ('mean', 'std')}
    dataset = read_config_text(meta, 'test_dataloader').get('dataset') or {}
    steps = [step for step in dataset.get('pipeline') or [] if isinstance(step, dict)]
    steps = {str(step.get('type')).rpartition('.')[2]: step for step in steps}
    if steps and 'ResizeCentre' not in steps:  # the default; without a resize images have the size
        values['resize'] = steps.get('ResizeEdge', {}).get('scale', img_size)
    if load := steps.get('LoadAnyImage'):
        values['values'] = (
            f'{len(values["mean"])} channels as in the file, of which value_range='
            f'{load.get("value_range", "dtype")!r} of mmpatchmix.LoadAnyImage became 0 to 255'
        )
    return replace(default, **values), ''


def compare_with_run(path: str, config: str) -> str:
    """Return how a config text differs from a checkpoint's run in heads or normalisation, or ''."""
    metas = read_checkpoint(path).meta, dict(cfg=config)
    heads, own_heads = (read_stated_spec(meta).get('num_heads') for meta in metas)
    if heads and own_heads and heads != own_heads:
        return f'was trained with {heads} attention heads, and the config has {own_heads}'
    (theirs, unknown), (ours, _) = (read_preprocessing(meta, 1) for meta in metas)
    for key in () if unknown else ('mean', 'std', 'values'):
        if (wanted := getattr(theirs, key)) != (found := getattr(ours, key)):
            return f'was trained with the {key} {wanted}, and the config has {found}'
    return ''
