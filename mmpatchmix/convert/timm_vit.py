"""Write the ViT of timm of a run, for timm or as a program, and verify its features."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mmpatchmix.checkpoints.reading import read_config_text
from mmpatchmix.checkpoints.vit_spec import read_preprocessing
from mmpatchmix.convert import onnx
from mmpatchmix.convert.features import verify
from mmpatchmix.registry import MODELS

PROGRAMS = ('onnx', 'torch-export')


def find_timm_vit(meta: Mapping[str, Any]) -> dict:
    """Return the config of the backbone of a run, empty unless it is a ``TimmViT``."""
    backbone = read_config_text(meta, 'model').get('backbone') or {}
    return backbone if backbone.get('type') == 'mmpatchmix.TimmViT' else {}


def write_timm_vit(
    meta: Mapping[str, Any], source: Path, path: Path, target: str, encoder: str, size: int | None
) -> str:
    """Write and verify one file; return the report. See ``convert_checkpoint`` for the rest."""
    if target not in ('timm', *PROGRAMS):
        raise ValueError(f'{source} has a ViT of timm: convert --to timm, onnx or torch-export.')
    prefix = 'backbone.model.' if encoder == 'query' else None
    start = dict(type='Pretrained', checkpoint=str(source), prefix=prefix)
    config = {**find_timm_vit(meta), 'frozen_stages': -1}
    if size:
        config['options'] = {**(config.get('options') or {}), 'img_size': size}
    vit, copy = (MODELS.build({**config, 'init_cfg': init}).eval() for init in (start, None))
    vit.init_weights()
    channels, size = vit.model.in_chans, vit.model.patch_embed.img_size[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    if target == 'timm':
        from timm.models import load_checkpoint

        save = save_file if path.suffix == '.safetensors' else torch.save
        save(vit.model.state_dict(), path)
        load_checkpoint(copy.model, str(path))  # strict
    else:
        onnx.write_program(vit, path, size, channels)
        text = json.dumps(onnx.describe(read_preprocessing(meta, size)[0]), indent=2)
        onnx.preprocessing_file(path).write_text(f'{text}\n', encoding='utf-8')
        copy = onnx.features_of_program(path)
    images = torch.randn(3, channels, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = vit(images)[-1], copy(images)
    found = found[-1] if isinstance(found, tuple) else found
    difference = verify((found - expected).abs().max().item(), str(source), str(path))
    return f'{config["model"]}: features differ by up to {difference:.1e}\nwrote {path}'
