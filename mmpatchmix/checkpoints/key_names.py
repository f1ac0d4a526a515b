"""Names of ViT weights in mmpretrain, timm and transformers, and their translation.

It also recognises the layout of a checkpoint and merges layer scale into the other weights.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

DINOV2 = 'transformers-dinov2'
# The columns of the tables below.
_LIBRARIES = ('mmpretrain', 'timm', 'transformers', DINOV2)
_PATCHES = 'embeddings.patch_embeddings.projection'
_POSITIONS = 'embeddings.position_embeddings'
# An empty name: the library has no such tensor.
_TENSORS = (
    ('cls_token', 'cls_token', 'embeddings.cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'pos_embed', _POSITIONS, _POSITIONS),
    ('register_tokens', 'reg_token', '', 'embeddings.register_tokens'),
)
# Each has a weight and a bias.
_MODULES = (
    ('patch_embed.projection', 'patch_embed.proj', _PATCHES, _PATCHES),
    ('ln1', 'norm', 'layernorm', 'layernorm'),
)
_BLOCK = ('layers.{}.', 'blocks.{}.', 'encoder.layer.{}.', 'encoder.layer.{}.')
_BLOCK_MODULES = (
    ('ln1', 'norm1', 'layernorm_before', 'norm1'),
    ('attn.qkv', 'attn.qkv', 'attention.attention.{}', 'attention.attention.{}'),
    ('attn.proj', 'attn.proj', 'attention.output.dense', 'attention.output.dense'),
    ('ln2', 'norm2', 'layernorm_after', 'norm2'),
    ('ffn.layers.0.0', 'mlp.fc1', 'intermediate.dense', 'mlp.fc1'),
    ('ffn.layers.1', 'mlp.fc2', 'output.dense', 'mlp.fc2'),
)
# Layer scale: the names of its factors, and the module whose output they multiply.
_LAYER_SCALES = {
    'attn.gamma1.weight': 'attn.proj',
    'ffn.gamma2.weight': 'ffn.layers.1',
    'ls1.gamma': 'attn.proj',
    'ls2.gamma': 'mlp.fc2',
    'layer_scale1.lambda1': 'attention.output.dense',
    'layer_scale2.lambda1': 'mlp.fc2',
}
# Not part of a backbone: classifiers, decoders of MAE, tokens for masked patches.
_DROPPED = {
    'mmpretrain': (),
    'timm': ('head.', 'mask_token', 'masked_embed', 'decoder_'),
    'transformers': ('pooler.', 'classifier.', 'embeddings.mask_token', 'decoder.'),
    DINOV2: ('classifier.', 'embeddings.mask_token'),
}
_COUNTERS = ('n_averaged', 'steps')  # of averages, by torch and mmengine
# Parts of keys that a plain ViT does not have.
_OTHER_NETWORKS = {
    'rope|storage_token': 'rotary positions (DINOv3, EVA-02): use a ViT of timm (--timm NAME)',
    'dist_token|distillation_token': 'a distillation token',
    r'mlp\.w|mlp\.fc1_g|weights_in': 'gated feed-forward layers (SwiGLU)',
    'relative_position': 'relative positions, where this ViT adds learned ones',
    'fc_norm': 'a norm of the mean of all patches instead of the norm of the class token',
    r'(^|backbone\.)ln2\.': "a norm of averaged patch tokens (out_type='avg_featmap'): its own "
    'config evaluates it and detectors can start from it, but it cannot be converted',
    'flat_param': 'flattened shards of FSDP; save it with StateDictType.FULL_STATE_DICT',
    'norm_pre|ln_pre': 'a norm before its blocks (CLIP)',
    'q_norm': 'norms of queries and keys',
}


class Layout(NamedTuple):
    """The naming of a file."""

    # 'own' (ours and mmpretrain's), 'moco' (published PatchMix and MoCo v3), 'dino' (student and
    # teacher), 'timm' (also MAE and DINOv2), 'transformers' or 'transformers-dinov2'.
    name: str
    library: str  # whose names follow the prefix
    prefix: str  # beginning of the keys of the wanted encoder
    drop: tuple[str, ...]  # beginnings of keys that are not part of a backbone
    note: str = ''  # remark about the chosen encoder


def detect_layout(state: Mapping[str, Tensor], encoder: str, prefix: str | None = None) -> Layout:
    """Recognise a layout by its patch embeddings and find the wanted encoder.

    Names of ``state`` are without wrappers. For the others see :func:`read_backbone`.
    ``ValueError`` if the layout is unknown, ``encoder`` is neither, or several encoders match.
    """
    if encoder not in ('momentum', 'query'):
        raise ValueError(f"encoder must be 'momentum' or 'query'; got {encoder!r}.")
    libraries = {
        key.removesuffix(f'{patches}.weight'): library
        for library, patches in zip(_LIBRARIES, _MODULES[0][:3], strict=False)
        for key in state
        if f'.{key}'.endswith(f'.{patches}.weight')
    }
    if not libraries:
        raise ValueError(
            'This is no Vision Transformer in a known layout (mmpretrain or ours, published '
            'PatchMix and MoCo v3, DINO, timm, transformers); the first keys are '
            f'{list(state)[:5]}. {explain_difference(state)}'.strip()
        )
    note = ''
    if prefix is None:
        prefix, note = _choose(state, list(libraries), encoder)
    elif (prefix := strip_wrappers(prefix)) not in libraries:
        raise ValueError(f'No encoder has the prefix {prefix!r}; there are {sorted(libraries)}.')
    library = libraries[prefix]
    if library == 'transformers' and f'{prefix}encoder.layer.0.norm1.weight' in state:
        library = DINOV2
    name = 'own' if library == 'mmpretrain' else library
    if library == 'timm' and prefix in ('base_encoder.', 'momentum_encoder.'):
        name = 'moco'
    elif library == 'timm' and prefix.startswith(('student.', 'teacher.')):
        name = 'dino'
    drop = tuple(prefix + key for key in _DROPPED[library] + _COUNTERS) + ('raw.',) * (not prefix)
    return Layout(name, library, prefix, drop, note)


def _choose(state: Iterable[str], prefixes: list[str], encoder: str) -> tuple[str, str]:
    """Choose the prefix of the wanted encoder, a momentum encoder or average; add a note."""
    averaged = [key.removesuffix('n_averaged') for key in state if key.endswith('n_averaged')]
    if any(name.startswith('raw.') for name in prefixes):  # the others are averages
        averaged += [name for name in prefixes if not name.startswith('raw.')]
    ranks = {}
    for name in prefixes:
        is_momentum, is_average = find_roles(name)
        is_average |= name.startswith(tuple(averaged)) and not name.startswith('raw.')
        ranks[name] = is_momentum, is_average
    best = (max if encoder == 'momentum' else min)(ranks.values())
    chosen, *others = (name for name in prefixes if ranks[name] == best)
    if others:
        raise ValueError(
            f'The file has several encoders, {sorted(prefixes)}: name one of them, '
            "init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)."
        )
    if encoder == 'query' and any(best):
        raise ValueError(f'The file has no query encoder; all keys of a ViT begin with {chosen}.')
    if encoder == 'query' or best == (True, False):
        return chosen, ''
    if best == (False, False):
        return chosen, chosen and f'{chosen}* (the file has no momentum encoder)'
    raw = [name for name in prefixes if ranks[name] == (best[0], False)]
    note = f'{chosen}*, which are averages of weights (EMA)'
    if raw:
        note += f'; for the raw ones: prefix={raw[0]!r}'
        note += ", or encoder='query' (convert --encoder query)" * (not best[0])
    return chosen, note


def find_roles(name: str) -> tuple[bool, bool]:
    """Return whether a network is a momentum encoder (teacher), and an average, by its name."""
    name = name.lower()
    averages = '(?<![a-z])(ema|swa|avg|averag|polyak|shadow)|(ema|swa|avg|averaged?)(?![a-z])'
    is_momentum = re.search('momentum|teacher|target|encoder_k|key_encoder', name)
    return bool(is_momentum), bool(re.search(averages, name))


def explain_difference(state: Iterable[str]) -> str:
    """Return a sentence on the first part that a plain ViT does not have, or an empty string."""
    found = [w for part, w in _OTHER_NETWORKS.items() if any(re.search(part, k) for k in state)]
    if not any(re.search('pos|rope|flat_param', key) for key in state):
        found.insert(0, 'no learned positions; if they are rotary, use a ViT of timm (--timm NAME)')
    return f'The file has {found[0]}.' if found else ''


def fold_layer_scale(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """Multiply layer scale (DINOv2, DeiT III) into the weights before it; return also the count."""
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
    """Rename register tokens of DINOv2's files to timm's name; prefixes stay.

    timm adds no position to the class token of networks with registers: zeros are prepended.
    """
    folded = {re.sub(r'\bregister_tokens$', 'reg_token', key): state[key] for key in state}
    for key in [key for key in folded if key.endswith('reg_token')]:
        positions = f'{key.removesuffix("reg_token")}pos_embed'
        value = folded.get(positions)  # (1, T, D) or (1, 1 + T, D)
        if value is not None and math.isqrt(value.shape[1]) ** 2 == value.shape[1]:
            folded[positions] = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
    return folded


def flatten_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the names of wrappers, and the chunk from DINOv2's ``blocks.CHUNK.INDEX.``."""
    pattern = re.compile(r'\bblocks\.\d+\.(\d+)\.')
    return {pattern.sub(r'blocks.\1.', strip_wrappers(key)): state[key] for key in state}


def strip_wrappers(key: str) -> str:
    """Remove what DDP, FSDP, torch.compile and others put into a key, such as ``_orig_mod.``."""
    return re.sub(r'\b(module|_\w*mod(ule)?)\.', '', key)


def to_mmpretrain(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate names of ``library`` to mmpretrain's and drop keys without a translation."""
    return {
        ours: state[keys[0]] if len(keys) == 1 else torch.cat([state[key] for key in keys])
        for ours, keys in _names(state, library).items()
        if all(key in state for key in keys)
    }


def from_mmpretrain(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate mmpretrain's names of a plain ViT to those of ``library``."""
    names, renamed = _names(state, library), {}
    for ours, value in state.items():  # (3D, ...) -> 3 of (D, ...), or unchanged
        renamed |= zip(names[ours], value.chunk(len(names[ours])), strict=True)
    return renamed


def _names(state: Iterable[str], library: str) -> dict[str, list[str]]:
    """Map mmpretrain's name of each tensor to the library's, or to three which are concatenated."""
    column = _LIBRARIES.index(library)
    blocks = [re.match(r'(?:layers|blocks|encoder\.layer)\.(\d+)\.', key) for key in state]
    rows = [(row[0], row[column]) for row in _MODULES]
    for index in sorted({int(block[1]) for block in blocks if block}):
        ours, theirs = _BLOCK[0].format(index), _BLOCK[column].format(index)
        rows += [(ours + row[0], theirs + row[column]) for row in _BLOCK_MODULES]
    names = {row[0]: [row[column]] for row in _TENSORS if row[column]}
    for ours, theirs in rows:
        # transformers has three matrices
        parts = ('query', 'key', 'value') if '{}' in theirs else ('',)
        for kind in ('weight', 'bias'):
            names[f'{ours}.{kind}'] = [f'{theirs.format(part)}.{kind}' for part in parts]
    return names
