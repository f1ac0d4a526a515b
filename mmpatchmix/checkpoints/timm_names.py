"""Weights for ViTs of timm, from files of timm, of the authors, of Hugging Face and of ours."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpatchmix.checkpoints import key_names
from mmpatchmix.checkpoints.backbone import read_backbone
from mmpatchmix.checkpoints.matching import KeyReport
from mmpatchmix.checkpoints.reading import read_checkpoint

# Names of DINOv3 in transformers, as regular expressions, and in timm.
_DINOV3 = {
    r'^(model\.)?layer\.': 'blocks.',
    r'^embeddings\.patch_embeddings\.': 'patch_embed.proj.',
    r'^embeddings\.register_tokens': 'reg_token',
    r'^embeddings\.': '',
    r'attention\.o_proj\.': 'attn.proj.',
    r'attention\.([qv])_proj\.bias': r'attn.\1_bias',
    r'layer_scale([12])\.lambda1': r'gamma_\1',
    r'mlp\.gate_proj': 'mlp.fc1_g',
    r'mlp\.down_proj': 'mlp.fc2',
}
# What timm leaves out: no parts of its networks.
_LEFT_OUT = 'rope|mask_token|bias_mask|projectors|local_cls_norm|lm_head'


def read_timm_weights(
    path: str | Path, vit: nn.Module, prefix: str | None = None
) -> tuple[dict[str, Tensor], KeyReport]:
    """Read weights under the names of ``vit``, to be matched with it, and begin the report.

    Args:
        path: See :func:`~mmpatchmix.checkpoints.read_checkpoint`. Names are timm's, those of the
            authors that timm translates (DINOv2, DINOv3, EVA, OpenCLIP), DINOv3's in transformers,
            or those that :func:`~mmpatchmix.checkpoints.read_backbone` reads.
        vit: The model of timm. timm interpolates learned positions to its size.
        prefix: Beginning of the encoder's keys; by default of the momentum encoder if there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is of no known layout, or has other patches.
    """
    checkpoint = read_checkpoint(path)
    state = key_names.flatten_names(checkpoint.state_dict | checkpoint.raw)
    if 'embeddings.patch_embeddings.weight' in state:
        state = _from_transformers(state)
    layout = key_names.detect_layout(state, 'momentum', prefix)
    bare = {k.removeprefix(layout.prefix): state[k] for k in state if k.startswith(layout.prefix)}
    if layout.library != 'timm' or layout.name == 'moco':
        bare = _read_plain(path, vit, prefix)
    sides = [w.shape[-1] for w in (bare['patch_embed.proj.weight'], vit.patch_embed.proj.weight)]
    if sides[0] != sides[1]:  # timm would resize the kernels
        raise ValueError(f'{path} has patches of {sides[0]} pixels, and the model of {sides[1]}.')
    if 'storage_tokens' in bare:  # DINOv3: timm would leave out biases that the model lacks
        for key in [key for key in bare if key.endswith('attn.qkv.bias')]:
            query, _, value = bare.pop(key).chunk(3)  # that of the key is masked
            bare |= {key.replace('qkv.', 'q_'): query, key.replace('qkv.', 'v_'): value}
    names, positions = set(bare), bare.get('pos_embed')
    translate = getattr(sys.modules[type(vit).__module__], 'checkpoint_filter_fn', None)
    weights = translate(bare, vit) if translate else bare
    report = KeyReport(dropped=[key for key in state if not key.startswith(layout.prefix)])
    report.dropped += [key for key in names - set(weights) if re.search(_LEFT_OUT, key)]
    report.notes = [f'layout {layout.name!r}, {layout.prefix or "no prefix"} {layout.note}']
    if positions is not None and weights['pos_embed'].shape != positions.shape:
        report.notes.append('positions: fitted by timm')
    extra = weights.keys() - vit.state_dict()
    biases = {key for key in extra if key.endswith(('q_bias', 'v_bias'))}
    if biases and not any(weights[key].any() for key in biases):
        report.notes.append(f'{len(biases)} biases of queries and values are zero: left out')
        weights = {key: weights[key] for key in weights if key not in biases}
    return weights, report


def _read_plain(path: str | Path, vit: nn.Module, prefix: str | None) -> dict[str, Tensor]:
    """Read a file of a plain ViT, which must have the heads and registers of ``vit``."""
    num_heads = vit.blocks[0].attn.num_heads
    state, spec, *_ = read_backbone(path, prefix=prefix, default_heads=num_heads)
    if spec.num_heads != num_heads or spec.num_registers or getattr(vit, 'num_reg_tokens', 0):
        own = f'{spec.num_heads} attention heads and {spec.num_registers} registers'
        raise ValueError(f'{path} has {own}, not {num_heads} heads and none: leave out --timm.')
    return key_names.from_mmpretrain(state, 'timm')


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Translate names of DINOv3 and concatenate the matrices of query, key and value."""
    gated = any('mlp.gate_proj' in key for key in state)
    names = _DINOV3 | {r'mlp\.up_proj': 'mlp.fc1_x' if gated else 'mlp.fc1'}
    renamed = {}
    for key, value in state.items():
        if key.endswith('attention.q_proj.weight'):
            value = torch.cat([state[key.replace('q_proj', f'{p}_proj')] for p in 'qkv'])
            key = key.replace('attention.q_proj', 'attn.qkv')
        elif re.search(r'attention\.[kv]_proj\.weight$|^embeddings\.mask_token$', key):
            continue
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed
