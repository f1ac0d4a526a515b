"""The names that different libraries give to the weights of one Vision Transformer.

mmpretrain's names are the hub: every other layout is translated from and to
them, so each direction is one table.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# (mmpretrain, timm, Hugging Face transformers); weight and bias follow their module.
_TENSORS = (
    ('cls_token', 'cls_token', 'embeddings.cls_token'),
    ('pos_embed', 'pos_embed', 'embeddings.position_embeddings'),
)
_MODULES = (
    ('patch_embed.projection', 'patch_embed.proj', 'embeddings.patch_embeddings.projection'),
    ('ln1', 'norm', 'layernorm'),
)
_BLOCK = ('layers.{}.', 'blocks.{}.', 'encoder.layer.{}.')
_BLOCK_MODULES = (
    ('ln1', 'norm1', 'layernorm_before'),
    ('attn.qkv', 'attn.qkv', 'attention.attention.qkv'),  # transformers: three matrices, see below
    ('attn.proj', 'attn.proj', 'attention.output.dense'),
    ('ln2', 'norm2', 'layernorm_after'),
    ('ffn.layers.0.0', 'mlp.fc1', 'intermediate.dense'),
    ('ffn.layers.1', 'mlp.fc2', 'output.dense'),
)
_COLUMN = {'mmpretrain': 0, 'timm': 1, 'transformers': 2}
_QUERY_KEY_VALUE = ('query', 'key', 'value')


class Layout(NamedTuple):
    """How a file names things.

    Attributes:
        name: ``'own'`` (ours and mmpretrain's), ``'moco'`` (published PatchMix and MoCo v3),
            ``'timm'`` or ``'transformers'``.
        library: Whose names stand behind the prefix.
        prefix: What stands before the wanted encoder's keys.
        drop: Beginnings of keys that are of no use in a backbone.
        note: What is worth saying about the choice, or nothing.
    """

    name: str
    library: str
    prefix: str
    drop: tuple[str, ...]
    note: str = ''


def detect_layout(state: Mapping[str, Tensor], encoder: str) -> Layout:
    """Recognise a layout by its keys and find the wanted encoder.

    Args:
        state: Weights without ``module.`` before the names.
        encoder: ``'momentum'`` or ``'query'``, where there is a choice.

    Returns:
        Layout: Names, prefix and what is left out.

    Raises:
        ValueError: If the keys are of none of the known layouts, or ``encoder`` is neither.
    """
    if encoder not in ('momentum', 'query'):
        raise ValueError(f"encoder must be 'momentum' or 'query'; got {encoder!r}.")

    def has(prefix: str) -> bool:
        return any(key.startswith(prefix) for key in state)

    if has('backbone.') or has('momentum_encoder.backbone.'):
        prefix, note = _choose(has, encoder, 'momentum_encoder.backbone.', 'backbone.')
        rest = 'momentum_encoder.' if prefix == 'backbone.' else 'backbone.'
        drop = ('neck.', 'head.', 'data_preprocessor.', 'momentum_encoder.neck.', rest)
        return Layout('own', 'mmpretrain', prefix, drop, note)
    if has('base_encoder.') or has('momentum_encoder.'):
        prefix, note = _choose(has, encoder, 'momentum_encoder.', 'base_encoder.')
        other = 'base_encoder.' if prefix == 'momentum_encoder.' else 'momentum_encoder.'
        return Layout('moco', 'timm', prefix, (f'{prefix}head.', 'predictor.', other), note)
    if has('patch_embed.projection.'):
        return Layout('own', 'mmpretrain', '', ())
    if has('patch_embed.proj.'):
        return Layout('timm', 'timm', '', ('head.',))
    for prefix in ('', 'vit.'):
        if has(f'{prefix}embeddings.patch_embeddings.'):
            drop = ('pooler.', 'vit.pooler.', 'classifier.', f'{prefix}embeddings.mask_token')
            return Layout('transformers', 'transformers', prefix, drop)
    raise ValueError(
        'This is no Vision Transformer in a known layout (mmpretrain or ours, published PatchMix '
        f'and MoCo v3, timm, transformers); the first keys are {list(state)[:5]}.'
    )


def _choose(has, encoder: str, momentum: str, query: str) -> tuple[str, str]:
    """Choose the wanted encoder's prefix; add a word where only the other is there."""
    wanted, other = (momentum, query) if encoder == 'momentum' else (query, momentum)
    if has(wanted):
        return wanted, ''
    if encoder == 'momentum':
        return other, f'{other}* (the file has no momentum encoder)'
    raise ValueError(f'The file has no query encoder: no key starts with {wanted!r}.')


def to_hub(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate names of ``library`` to mmpretrain's; what has no translation is left out.

    The tensors stay the same, except that transformers' query, key and value are put together.
    """
    if library == 'transformers':
        state = _join_qkv(state)
    names = _names(library, _count_layers(state, library))
    return {ours: state[theirs] for ours, theirs in names.items() if theirs in state}


def from_hub(state: Mapping[str, Tensor], library: str) -> dict[str, Tensor]:
    """Translate mmpretrain's names of a plain ViT to those of ``library``; undo :func:`to_hub`."""
    names = _names(library, _count_layers(state, 'mmpretrain'))
    renamed = {names[key]: value for key, value in state.items()}
    return _split_qkv(renamed) if library == 'transformers' else renamed


def _names(library: str, num_layers: int) -> dict[str, str]:
    """Map mmpretrain's name of every tensor to the library's."""
    column = _COLUMN[library]
    modules = [(row[0], row[column]) for row in _MODULES]
    for index in range(num_layers):
        ours, theirs = _BLOCK[0].format(index), _BLOCK[column].format(index)
        modules += [(ours + row[0], theirs + row[column]) for row in _BLOCK_MODULES]
    names = {row[0]: row[column] for row in _TENSORS}
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
