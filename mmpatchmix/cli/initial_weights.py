"""``--init CKPT``: start a pre-training recipe from the backbone of any checkpoint."""

import os
from typing import Any

from mmpretrain.models.backbones import VisionTransformer

from mmpatchmix.checkpoints import read_backbone


def set_initial_weights(cfg: Any, checkpoint: str, begun: str | None = None) -> None:
    """Let a recipe start from a checkpoint; the network becomes the file's, and it is said.

    Width, depth, heads and patch size come with the weights. What the recipe is about stays:
    images, their size, crops, mixing, schedules.

    Args:
        cfg: The config; changed in place.
        checkpoint: See :func:`mmpatchmix.checkpoints.read_backbone`.
        begun: A checkpoint of the run itself, which is resumed: it tells the network, too, and
            the first one need not exist any more.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold a plain ViT, or the config is no pre-training recipe.
    """
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    if backbone.get('type') != 'mmpatchmix.PatchMixViT':
        raise ValueError(
            '--init starts pre-training recipes (model.backbone of type mmpatchmix.PatchMixViT); '
            f'this one is of type {backbone.get("type")}. For linear probes, fine-tuning and '
            'detection: --cfg-options model.backbone.checkpoint=FILE.'
        )
    arch = backbone.arch
    arch = dict(VisionTransformer.arch_zoo[arch.lower()] if isinstance(arch, str) else arch)
    source = read_backbone(begun or checkpoint, default_heads=arch['num_heads'])
    spec, before = source.spec, backbone.get('patch_size', 16)
    changes = [
        f'{key} {value} (the recipe: {arch.get(key)})'
        for key, value in spec.arch.items()
        if value != arch.get(key)
    ]
    if spec.patch_size != before:
        changes.append(f'patch_size {spec.patch_size} (the recipe: {before})')
        if model.data_preprocessor.patch_size == before:  # of the mix
            model.data_preprocessor.patch_size = spec.patch_size
    registers = backbone.pop('num_registers', 0)
    if spec.num_registers != registers:
        changes.append(f'num_registers {spec.num_registers} (the recipe: {registers})')
    if spec.num_registers:
        backbone.num_registers = spec.num_registers
    backbone.update(
        arch=arch | spec.arch,
        patch_size=spec.patch_size,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    )
    model.neck.in_channels = spec.embed_dims
    if begun is None and int(os.environ.get('RANK', 0)) == 0:
        print(f'--init {checkpoint}: layout {source.layout.name!r}, images of {spec.img_size}')
        for line in (*source.report.assumed, *source.report.notes):
            print(f'  {line}')
        if changes:
            print(f'  the network is that of the file: {", ".join(changes)}')
