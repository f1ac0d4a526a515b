"""Size of a Vision Transformer: read from weights and metadata; shapes of its parameters."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

from mmpatchmix.checkpoints.reading import METADATA_KEY, read_config_text

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
        if (activation := config.get('hidden_act', 'gelu')) != 'gelu':
            raise ValueError(f'config.json has hidden_act={activation!r}; the ViT has exact GELU.')
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
    norm = backbone.get('norm_cfg')
    if isinstance(norm, dict) and isinstance(norm.get('eps'), float):
        fields['norm_eps'] = norm['eps']
    return fields
