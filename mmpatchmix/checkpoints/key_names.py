"""The names that different libraries give to the weights of one Vision Transformer.

mmpretrain's names are the hub: every other layout is translated from and to
them, so each direction is one table.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# (mmpretrain, timm, transformers' ViT, its Dinov2); weight and bias follow their module.
_PATCHES = 'embeddings.patch_embeddings.projection'

_TENSORS = (
    ('cls_token', 'cls_token', 'embeddings.cls_token', 'embeddings.cls_token'),
    (
        'pos_embed',
        'pos_embed',
        'embeddings.position_embeddings',
        'embeddings.position_embeddings',
    ),
    # In the place of a name where a library has none.
    ('register_tokens', 'reg_token', '', 'embeddings.register_tokens'),
)

_MODULES = (
    ('patch_embed.projection', 'patch_embed.proj', _PATCHES, _PATCHES),
    ('ln1', 'norm', 'layernorm', 'layernorm'),
)

_BLOCK = ('layers.{}.', 'blocks.{}.', 'encoder.layer.{}.', 'encoder.layer.{}.')

# transformers has three matrices in the place of qkv, see below.
_BLOCK_MODULES = (
    ('ln1', 'norm1', 'layernorm_before', 'norm1'),
    ('attn.qkv', 'attn.qkv', 'attention.attention.qkv', 'attention.attention.qkv'),
    ('attn.proj', 'attn.proj', 'attention.output.dense', 'attention.output.dense'),
    ('ln2', 'norm2', 'layernorm_after', 'norm2'),
    ('ffn.layers.0.0', 'mlp.fc1', 'intermediate.dense', 'mlp.fc1'),
    ('ffn.layers.1', 'mlp.fc2', 'output.dense', 'mlp.fc2'),
)

DINOV2 = 'transformers-dinov2'

_COLUMN = {'mmpretrain': 0, 'timm': 1, 'transformers': 2, DINOV2: 3}

_QUERY_KEY_VALUE = ('query', 'key', 'value')

# Factors of a block's output, and the module whose output they multiply.
_LAYER_SCALES = {
    'attn.gamma1.weight': 'attn.proj',
    'ffn.gamma2.weight': 'ffn.layers.1',
    'ls1.gamma': 'attn.proj',
    'ls2.gamma': 'mlp.fc2',
    'layer_scale1.lambda1': 'attention.output.dense',
    'layer_scale2.lambda1': 'mlp.fc2',
}

# Of no use for features: classifiers, decoders of MAE, tokens in the place of masked patches.
_DROPPED = {
    'mmpretrain': (),
    'timm': ('head.', 'mask_token', 'masked_embed', 'decoder_'),
    'transformers': ('pooler.', 'classifier.', 'embeddings.mask_token', 'decoder.'),
    DINOV2: ('classifier.', 'embeddings.mask_token'),
}

# What makes a file another network than a plain ViT, by a part of the names of its keys.
_OTHER_NETWORKS = {
    'rope|storage_token': 'rotary positions (DINOv3, EVA-02), where this ViT adds learned ones',
    'dist_token|distillation_token': 'a distillation token, for which this ViT has no place',
    r'mlp\.w|mlp\.fc1_g|weights_in': 'gated feed-forward layers (SwiGLU), which this ViT does not '
    'have',
    'relative_position': 'relative positions, where this ViT adds learned ones',
    'fc_norm': 'a norm of the mean of all patches in the place of the norm of the class token',
    r'(^|backbone\.)ln2\.': "a norm of averaged patch tokens (out_type='avg_featmap'): its own "
    'config evaluates it and detectors start from it, but it cannot be converted',
    'norm_pre|ln_pre': 'a norm before its blocks (CLIP), which this ViT does not have',
    'q_norm': 'norms of queries and keys, which this ViT does not have',
}


class Layout(NamedTuple):
    """How a file names things.

    Attributes:
        name: ``'own'`` (ours and mmpretrain's), ``'moco'`` (published PatchMix and MoCo v3),
            ``'dino'`` (student and teacher), ``'timm'`` (also MAE and DINOv2), ``'transformers'``
            or ``'transformers-dinov2'``.
        library: Whose names stand behind the prefix.
        prefix: What stands before the wanted encoder's keys.
        drop: Beginnings of keys behind the prefix that are of no use in a backbone.
        note: What is worth saying about the choice, or nothing.
    """

    name: str
    library: str
    prefix: str
    drop: tuple[str, ...]
    note: str = ''


def detect_layout(state: Mapping[str, Tensor], encoder: str, prefix: str | None = None) -> Layout:
    """Recognise a layout by its patch embeddings and find the wanted encoder.

    Args:
        state: Weights without ``module.`` before the names.
        encoder: ``'momentum'`` (or teacher) or ``'query'``, where there is a choice.
        prefix: What stands before the wanted encoder's keys, to choose by hand.

    Returns:
        Layout: Names, prefix and what is left out.

    Raises:
        ValueError: If the keys are of none of the known layouts, ``encoder`` is neither, or it
            is not clear which of several encoders is meant.
    """
    if encoder not in ('momentum', 'query'):
        raise ValueError(f"encoder must be 'momentum' or 'query'; got {encoder!r}.")
    found = {}  # libraries by prefix
    for library in ('mmpretrain', 'timm', 'transformers'):
        ending = f'{_MODULES[0][_COLUMN[library]]}.weight'
        keys = [key for key in state if key == ending or key.endswith(f'.{ending}')]
        found |= {key.removesuffix(ending): library for key in keys}
    if not found:
        raise ValueError(
            'This is no Vision Transformer in a known layout (mmpretrain or ours, published '
            'PatchMix and MoCo v3, DINO, timm, transformers); the first keys are '
            f'{list(state)[:5]}. {say_what_differs(state)}'.strip()
        )
    note = ''
    if prefix is None:
        prefix, note = _choose(list(found), encoder)
    elif prefix not in found:
        raise ValueError(f'No encoder has the prefix {prefix!r}; there are {sorted(found)}.')
    library = found[prefix]
    if library == 'transformers' and f'{prefix}encoder.layer.0.norm1.weight' in state:
        library = DINOV2
    name = 'own' if library == 'mmpretrain' else library
    if library == 'timm' and prefix in ('base_encoder.', 'momentum_encoder.'):
        name = 'moco'
    elif library == 'timm' and prefix.startswith(('student.', 'teacher.')):
        name = 'dino'
    return Layout(name, library, prefix, tuple(prefix + key for key in _DROPPED[library]), note)


def _choose(prefixes: list[str], encoder: str) -> tuple[str, str]:
    """Choose the wanted encoder's prefix; add a word where only the other is there."""
    momentum = [name for name in prefixes if 'momentum' in name or 'teacher' in name]
    query = [name for name in prefixes if name not in momentum]
    wanted, other = (momentum, query) if encoder == 'momentum' else (query, momentum)
    if len(wanted or other) > 1:
        raise ValueError(
            f'The file has several encoders, {sorted(prefixes)}: name one of them, '
            "init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)."
        )
    if wanted:
        return wanted[0], ''
    if encoder == 'query':
        raise ValueError(f'The file has no query encoder; all keys of a ViT begin with {other[0]}.')
    return other[0], other[0] and f'{other[0]}* (the file has no momentum encoder)'


def say_what_differs(state: Iterable[str]) -> str:
    """Return a sentence on what makes a file another network than a plain ViT, or nothing."""
    found = [w for part, w in _OTHER_NETWORKS.items() if any(re.search(part, k) for k in state)]
    # Before registers, say: without those the network would still be another one.
    if not any(re.search('pos|rope', key) for key in state):
        found.insert(0, 'no learned positions; they may be rotary (DINOv3, EVA-02)')
    return f'The file has {found[0]}.' if found else ''


def fold_layer_scale(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Multiply layer scale (DINOv2, DeiT III) into the weights before it: the same function.

    Args:
        state: Weights under the names of any library.

    Returns:
        tuple: Weights of a plain ViT, and how many factors went into them.
    """
    folded = dict(state)
    for key in state:
        for ending, module in _LAYER_SCALES.items():
            target = key.removesuffix(ending) + module
            if not key.endswith(f'.{ending}') or f'{target}.weight' not in folded:
                continue
            scale = folded.pop(key)  # (D,)
            folded[f'{target}.weight'] = scale[:, None] * folded[f'{target}.weight']
            if f'{target}.bias' in folded:
                folded[f'{target}.bias'] = scale * folded[f'{target}.bias']
    return folded, len(state) - len(folded)


def fold_registers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give register tokens timm's name, where DINOv2's stands beside timm's other names.

    timm's own networks with registers add nothing to the class token: there the positions get a
    first one of zeros.

    Args:
        state: Weights under the names of timm, with any prefix.
    """
    folded = {re.sub(r'\bregister_tokens$', 'reg_token', key): state[key] for key in state}
    for key in list(folded):
        positions = f'{key.removesuffix("reg_token")}pos_embed'
        if key.endswith('reg_token') and positions in folded:
            value = folded[positions]  # (1, T, D) or (1, 1 + T, D)
            if math.isqrt(value.shape[1]) ** 2 == value.shape[1]:
                folded[positions] = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    return folded


def flatten_chunks(key: str) -> str:
    """Return a key as it is where blocks are in no chunks: DINOv2 saves ``blocks.CHUNK.INDEX.``."""
    return re.sub(r'\bblocks\.\d+\.(\d+)\.', r'blocks.\1.', key)


def to_hub(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate names of ``library`` to mmpretrain's; what has no translation is left out.

    The tensors stay the same, except that transformers' query, key and value are put together.
    """
    if library.startswith('transformers'):
        state = _join_qkv(state)
    names = _names(library, _count_layers(state, library))
    return {ours: state[theirs] for ours, theirs in names.items() if theirs in state}


def from_hub(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate mmpretrain's names of a plain ViT to those of ``library``; undo :func:`to_hub`."""
    names = _names(library, _count_layers(state, 'mmpretrain'))
    renamed = {names[key]: value for key, value in state.items()}
    return _split_qkv(renamed) if library.startswith('transformers') else renamed


def _names(library: str, num_layers: int) -> dict[str, str]:
    """Map mmpretrain's name of every tensor to the library's."""
    column = _COLUMN[library]
    modules = [(row[0], row[column]) for row in _MODULES]
    for index in range(num_layers):
        ours, theirs = _BLOCK[0].format(index), _BLOCK[column].format(index)
        modules += [(ours + row[0], theirs + row[column]) for row in _BLOCK_MODULES]
    names = {row[0]: row[column] for row in _TENSORS if row[column]}
    for kind in ('weight', 'bias'):
        names |= {f'{ours}.{kind}': f'{theirs}.{kind}' for ours, theirs in modules}
    return names


def _count_layers(state: Mapping[str, Tensor], library: str) -> int:
    before = _BLOCK[_COLUMN[library]].split('{}')[0]
    numbers = [key[len(before) :].split('.')[0] for key in state if key.startswith(before)]
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def _split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for key, value in state.items():
        if '.attention.qkv.' not in key:
            result[key] = value
            continue
        for name, part in zip(_QUERY_KEY_VALUE, value.chunk(3), strict=True):  # (3D, ...) -> (D, .)
            result[key.replace('.qkv.', f'.{name}.')] = part
    return result


def _join_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    result = dict(state)
    for key in state:
        if '.attention.query.' not in key:
            continue
        names = [key.replace('.query.', f'.{name}.') for name in _QUERY_KEY_VALUE]
        if all(name in state for name in names):
            parts = [result.pop(name) for name in names]
            result[key.replace('.query.', '.qkv.')] = torch.cat(parts)
    return result
