"""What a Vision Transformer is, beside its weights."""

import ast
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor

# Heads cannot be read off the weights. Where a file is silent these widths are
# known: those of MoCo v3 and PatchMix, and timm's, which has 64 values per head.
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
# Of a backbone's config, beside its arch.
_SIZES = ('patch_size', 'img_size', 'num_registers')
# What is added to the variance in LayerNorm, where a library is told nothing.
NORM_EPS, TRANSFORMERS_NORM_EPS = 1e-6, 1e-12


@dataclass(frozen=True)
class ViTSpec:
    """Size of a plain ViT with class token, learned positions and biases.

    Attributes:
        embed_dims: Width D.
        num_layers: Number of blocks.
        num_heads: Attention heads per block.
        feedforward_channels: Hidden width of a block's two-layer network.
        patch_size: Pixels per side of a patch.
        img_size: Pixels per side of the image the positions are for.
        norm_eps: What LayerNorm adds to the variance; mmpretrain's and timm's default.
        num_registers: Tokens between that of the class and those of the patches, without
            positions (https://arxiv.org/abs/2309.16588).
    """

    embed_dims: int
    num_layers: int
    num_heads: int
    feedforward_channels: int
    patch_size: int
    img_size: int
    norm_eps: float = NORM_EPS
    num_registers: int = 0

    @property
    def arch(self) -> dict[str, int]:
        """Return the ``arch`` argument of mmpretrain's VisionTransformer."""
        keys = ('embed_dims', 'num_layers', 'num_heads', 'feedforward_channels')
        return {key: getattr(self, key) for key in keys}

    def parameter_shapes(self, in_channels: int = 3) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor, under mmpretrain's names and in its order."""
        dims, hidden, patch = self.embed_dims, self.feedforward_channels, self.patch_size
        num_tokens = 1 + (self.img_size // patch) ** 2
        shapes: dict[str, tuple[int, ...]] = {'cls_token': (1, 1, dims)}
        shapes['pos_embed'] = (1, num_tokens, dims)
        if self.num_registers:
            shapes['register_tokens'] = (1, self.num_registers, dims)
        shapes['patch_embed.projection.weight'] = (dims, in_channels, patch, patch)
        shapes['patch_embed.projection.bias'] = (dims,)
        block = {
            'ln1': (dims,),
            'attn.qkv': (3 * dims, dims),
            'attn.proj': (dims, dims),
            'ln2': (dims,),
            'ffn.layers.0.0': (hidden, dims),
            'ffn.layers.1': (dims, hidden),
        }
        for index in range(self.num_layers):
            for name, shape in block.items():
                shapes[f'layers.{index}.{name}.weight'] = shape
                shapes[f'layers.{index}.{name}.bias'] = shape[:1]
        shapes['ln1.weight'] = shapes['ln1.bias'] = (dims,)
        return shapes

    def as_dict(self) -> dict[str, int | float]:
        """Return all fields, for a file's metadata."""
        return asdict(self)


def read_spec(
    state: Mapping[str, Tensor],
    said: Mapping[str, int | float],
    layout: str,
    default_heads: int | None = None,
) -> tuple[ViTSpec, list[str]]:
    """Read the size off the weights and compare it with what is said elsewhere.

    Args:
        state: Weights under mmpretrain's names.
        said: Fields of :class:`ViTSpec` that the file or the user states.
        layout: ``'moco'``, ``'timm'``, ...: whose habits fill in the heads.
        default_heads: The heads where neither the file nor a habit tells.

    Returns:
        tuple: The size, and what had to be assumed.

    Raises:
        ValueError: If something said differs from the weights, or the heads are neither said nor
            known.
    """
    kernel, positions = state['patch_embed.projection.weight'], state['pos_embed']
    width, _, patch_size, _ = kernel.shape  # (D, C, p, p)
    side = math.isqrt(positions.shape[1] - 1)  # (1, 1 + side * side, D)
    if side * side != positions.shape[1] - 1:
        raise ValueError(
            f'pos_embed has {positions.shape[1]} positions, not 1 + a square: only square images '
            'with one class token are supported.'
        )
    depths = {int(key.split('.')[1]) + 1 for key in state if key.startswith('layers.')}
    found = dict(
        embed_dims=width,
        num_layers=max(depths),
        feedforward_channels=state['layers.0.ffn.layers.0.0.weight'].shape[0],
        patch_size=patch_size,
        img_size=side * patch_size,
        num_registers=state['register_tokens'].shape[1] if 'register_tokens' in state else 0,
    )
    wrong = [
        f'{key} is {found[key]} by its weights and {said[key]} by what is said about it'
        for key in found
        if key in said and said[key] != found[key]
    ]
    if wrong:
        raise ValueError(f'The checkpoint contradicts itself: {"; ".join(wrong)}.')
    heads, assumed = said.get('num_heads'), []
    if heads is None:
        heads = (_HEADS_MOCO if layout in ('moco', 'own') else _HEADS_TIMM).get(width)
        why = f'usual for {layout} at width {width}'
        if heads is None and default_heads is not None:
            heads, why = default_heads, 'the model has them'
        assumed = [f'num_heads={heads} (not in the file; {why})']
    if heads is None or width % heads:
        raise ValueError(
            f'Width {width} with num_heads={heads}: the file does not say how many heads the '
            'network has, and the weights cannot tell. Convert it once with the right num_heads, '
            'mmpatchmix convert FILE NEW_FILE --to mmpretrain --num-heads N, and use the new file.'
        )
    eps = said.get('norm_eps', NORM_EPS)
    return ViTSpec(num_heads=heads, norm_eps=eps, **found), assumed


def spec_from_mmengine(meta: Mapping[str, Any]) -> dict[str, int | float]:
    """Read the backbone's size off the config text in an mmengine checkpoint.

    Args:
        meta: mmengine's ``meta``.

    Returns:
        dict: Fields of :class:`ViTSpec`, empty where nothing is said.
    """
    backbone = read_config_text(meta, 'model').get('backbone')
    return _backbone_fields(backbone) if isinstance(backbone, dict) else {}


def read_config_text(meta: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Read one dict of the config text in an mmengine checkpoint.

    The text is Python, but only its literals and ``dict(...)`` are read; nothing
    is executed.

    Args:
        meta: mmengine's ``meta``.
        name: Such as ``'model'``.

    Returns:
        dict: Empty where nothing is said; what could not be read in it is None.
    """
    text = meta.get('cfg')
    if not isinstance(text, str):
        return {}
    try:
        statements = ast.parse(text).body
    except SyntaxError:
        return {}
    for statement in statements:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            value = _literal(statement.value)
            return value if isinstance(value, dict) else {}
    return {}


def _backbone_fields(backbone: dict[str, Any]) -> dict[str, int | float]:
    arch = backbone.get('arch')
    if isinstance(arch, str):
        arch = VisionTransformer.arch_zoo.get(arch.lower())
    fields = dict(arch) if isinstance(arch, dict) else {}
    fields |= {key: backbone[key] for key in _SIZES if key in backbone}
    known = ViTSpec.__dataclass_fields__
    fields = {key: value for key, value in fields.items() if key in known and type(value) is int}
    norm = backbone.get('norm_cfg')
    if isinstance(norm, dict) and isinstance(norm.get('eps'), float):
        fields['norm_eps'] = norm['eps']
    return fields


def _literal(node: ast.AST) -> Any:
    """Return the value of literals, ``dict(...)`` and lists of them; None for anything else."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_literal(element) for element in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def spec_from_transformers(config: Mapping[str, Any]) -> dict[str, int | float]:
    """Read fields of :class:`ViTSpec` off ``config.json`` of Hugging Face transformers' ViT.

    Raises:
        ValueError: If the feed-forward layers have another activation than the GELU.
    """
    if (activation := config.get('hidden_act', 'gelu')) != 'gelu':
        raise ValueError(
            f'config.json says hidden_act={activation!r}; the ViT here has the exact GELU, with '
            'which these weights are another network.'
        )
    fields = {ours: config[key] for ours, key in TRANSFORMERS_NAMES.items() if key in config}
    return {'norm_eps': TRANSFORMERS_NORM_EPS} | fields
