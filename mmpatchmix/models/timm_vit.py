"""Any ViT of timm as a backbone: DINOv3, EVA-02, SigLIP 2 and others."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmpatchmix.checkpoints.matching import fit_state_dict
from mmpatchmix.checkpoints.timm_names import read_timm_weights
from mmpatchmix.models.load_backbone import fit_channels
from mmpatchmix.models.vit import check_divisible, find_pretrained, warn_of_random_weights
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class TimmViT(BaseModule):
    """A Vision Transformer of timm with the inputs and outputs of ``PatchMixViT``.

    Positions, registers, feed-forward layers, norms, pooling and random weights are timm's.

    Args:
        model: Name of a ``VisionTransformer`` or ``Eva``, such as ``'vit_small_patch16_dinov3'``.
        in_channels: Channels of the images.
        img_size: Side in pixels of the images of learned positions; by default the model's.
        drop_path_rate: Of the last block; blocks before it have linearly less.
        out_type: ``'cls_token'``; ``'pooled'``, timm's feature before the classifier; ``'raw'``,
            the feature and the patch tokens; or ``'featmap'``, for detection. By default the class
            token, or the pooled feature of models without one, or without a norm of it (EVA-02).
        out_indices: Blocks that return a map, with ``out_type='featmap'``. Images are padded to
            whole patches, and maps are not normed. Later blocks are not built.
        frozen_stages: Number of first blocks that are not trained, with the embeddings; from
            the number of all blocks on, nothing is trained.
        with_cp: Recompute the blocks in the backward instead of storing their activations.
        options: Further arguments of timm's model.
        init_cfg: ``dict(type='Pretrained', checkpoint=FILE)`` loads all weights of any file that
            :func:`mmpatchmix.checkpoints.timm_names.read_timm_weights` reads, or raises.

    Raises:
        ValueError: If timm has no such model, it is another kind of network, or has no such output.
    """

    num_extra_tokens = 1  # before the patch tokens of the output 'raw'

    def __init__(
        self,
        model: str,
        in_channels: int = 3,
        img_size: int | None = None,
        drop_path_rate: float = 0.0,
        out_type: Literal['cls_token', 'pooled', 'raw', 'featmap'] | None = None,
        out_indices: Sequence[int] = (-1,),
        frozen_stages: int = -1,
        with_cp: bool = False,
        options: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        sizes = dict(in_chans=in_channels, drop_path_rate=drop_path_rate)
        sizes |= dict(img_size=img_size) if img_size else {}
        sizes |= dict(dynamic_img_pad=True) if out_type == 'featmap' else {}
        self.model = vit = build_timm(model, **{**sizes, **(options or {})})
        known = ['pooled', 'raw', 'featmap'] + ['cls_token'] * (vit.cls_token is not None)
        if out_type not in (None, *known):
            raise ValueError(f'backbone.out_type={out_type!r}: {model} has {", ".join(known)}.')
        names = set(vit.state_dict())
        if out_type is None and vit.cls_token is not None and type(vit.norm) is not nn.Identity:
            out_type = 'cls_token'
        if out_type == 'cls_token':
            vit.reset_classifier(0, 'token')
        self.out_type, self.frozen_stages = out_type or 'pooled', frozen_stages
        self.out_indices = [index % len(vit.blocks) for index in out_indices]
        if out_type == 'featmap':  # parameters without gradient are an error in distributed runs
            vit.prune_intermediate_layers(self.out_indices, prune_norm=True)
        self.unused = names - set(vit.state_dict())
        vit.set_grad_checkpointing(with_cp)
        self.embed_dims, self.patch_size = vit.embed_dim, vit.patch_embed.feat_ratio()
        for name, parameter in self.named_parameters() if frozen_stages > 0 else ():
            depth, num_depths = self.get_layer_depth(name)
            if depth <= frozen_stages or frozen_stages >= num_depths - 2:
                parameter.requires_grad = False

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``; ``ValueError`` if the file does not fit."""
        self._is_init = True
        pretrained = find_pretrained(self.init_cfg) or {}
        if not (path := pretrained.get('checkpoint')):
            return warn_of_random_weights() if pretrained else None
        weights, read = read_timm_weights(path, self.model, pretrained.get('prefix'))
        channels = self.model.patch_embed.proj.in_channels
        notes = read.notes + fit_channels(weights, channels, 'patch_embed.proj.weight')
        advice = 'Give model.backbone.model the name of this network in timm.'
        drop = ('head', *self.unused)
        weights, report = fit_state_dict(weights, self.model, str(path), advice, drop)
        self.model.load_state_dict(weights, strict=True)
        report.dropped, report.notes = read.dropped + report.dropped, notes
        MMLogger.get_current_instance().info(f'backbone loaded from {path}:\n{report}')

    def train(self, mode: bool = True) -> 'TimmViT':
        """Set the mode; frozen blocks stay in evaluation mode."""
        super().train(mode)
        self.model.blocks[: max(self.frozen_stages, 0)].eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Encode images ``(N, C, H, W)``.

        Returns:
            tuple: ``(N, D)``; of ``'raw'`` ``(N, 1 + T, D)``; or maps ``(N, D, H / patch, ...)``.

        Raises:
            ValueError: If the patch size does not divide the image.
        """
        if self.out_type == 'featmap':
            return tuple(
                self.model.forward_intermediates(x, self.out_indices, intermediates_only=True)
            )
        check_divisible(x, self.patch_size)
        tokens = self.model.forward_features(x)  # (N, prefix + T, D)
        feature = self.model.forward_head(tokens, pre_logits=True)  # (N, D)
        if self.out_type == 'raw':
            return (torch.cat([feature[:, None], tokens[:, self.model.num_prefix_tokens :]], 1),)
        return (feature,)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Return the depth of a parameter and the number of depths, as in mmpretrain."""
        last, start = len(self.model.blocks) + 1, re.escape(f'{prefix}model.')
        if block := re.match(rf'{start}blocks\.(\d+)\.', param_name):
            return int(block[1]) + 1, last + 1
        stem = rf'{start}((cls|reg|dist)_token|pos_embed|patch_embed|norm_pre|rope)'
        return 0 if re.match(stem, param_name) else last, last + 1


def build_timm(name: str, **options: Any) -> nn.Module:
    """Build a ViT of timm without classifier, for images of any size."""
    from timm.models import create_model  # here, because the import takes seconds
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    try:
        vit = create_model(name, False, num_classes=0, dynamic_img_size=True, **options)
        if isinstance(vit, VisionTransformer | Eva):
            return vit
        error = f'a {type(vit).__name__}'
    except (AssertionError, RuntimeError, TypeError) as reason:
        error = reason
    raise ValueError(
        f'model.backbone.model={name!r} is no ViT that timm can build for images of any size '
        f'({error}): name a VisionTransformer or Eva of timm.list_models().'
    )
