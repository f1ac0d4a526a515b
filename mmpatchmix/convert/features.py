"""Load files for each library the way its users do, as functions from images to features."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mmengine.runner import CheckpointLoader
from mmpretrain.models.backbones import VisionTransformer
from torch import Tensor, nn

from mmpatchmix.checkpoints.vit_spec import ViTSpec
from mmpatchmix.convert.onnx import features_of_program
from mmpatchmix.models.vit import PatchMixViT

# Features have a size of 1 (a LayerNorm comes last); float32 differs by about 1e-6.
TOLERANCE = 1e-4
# (N, 3, H, W) float32 to (N, D) float32: the class token.
FeatureFunction = Callable[[Tensor], Tensor]


def build_vit(spec: ViTSpec, **options) -> VisionTransformer:
    """Build mmpretrain's ViT in evaluation mode, or :class:`PatchMixViT` for register tokens."""
    kind = VisionTransformer
    if spec.num_registers:
        kind, options['num_registers'] = PatchMixViT, spec.num_registers
    norm_cfg = dict(type='LN', eps=spec.norm_eps)
    sizes = dict(img_size=spec.img_size, patch_size=spec.patch_size)
    vit = kind(arch=spec.arch, norm_cfg=norm_cfg, **sizes, **options)
    vit.eval()  # returns None in mmpretrain's backbones
    return vit


def features_of_vit(spec: ViTSpec, state: dict[str, Tensor]) -> FeatureFunction:
    """Load weights under mmpretrain's names into its ViT, which takes images of any size."""
    vit = build_vit(spec, in_channels=state['patch_embed.projection.weight'].shape[1])
    vit.load_state_dict(state, strict=True)
    return lambda images: vit(images)[-1]  # (N, D)


def features_of_file(path: Path, target: str, spec: ViTSpec) -> FeatureFunction:
    """Load a converted file or folder with the library ``target``, or raise ``ValueError``."""
    if target in ('onnx', 'torch-export'):
        return features_of_program(path)
    if target == 'timm':
        return _load_timm(path, spec)
    if target == 'transformers':
        features, info = load_transformers(path)
        if problems := {kind: keys for kind, keys in info.items() if keys}:
            raise ValueError(f'transformers does not load {path} completely: {problems}.')
        return features
    # As init_cfg=dict(type='Pretrained', ...) reads it, but strictly.
    content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')['state_dict']
    prefix = 'backbone.' if target == 'mmpretrain' else ''
    return features_of_vit(spec, {key.removeprefix(prefix): content[key] for key in content})


def _load_timm(path: Path, spec: ViTSpec) -> FeatureFunction:
    from timm.models import load_state_dict
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dims,
        depth=spec.num_layers,
        num_heads=spec.num_heads,
        mlp_ratio=spec.feedforward_channels / spec.embed_dims,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=spec.norm_eps),
    )
    model.load_state_dict(load_state_dict(str(path)), strict=True)
    return model.eval()


def load_transformers(folder: Path) -> tuple[FeatureFunction, dict]:
    """Load a folder of transformers; return also its report on missing and unexpected keys."""
    try:
        from transformers import AutoConfig, AutoModel, ViTModel
        from transformers.utils import logging
    except ImportError as error:
        message = 'Conversions from and to transformers are verified with it'
        raise ModuleNotFoundError(f'{message}: pip install transformers') from error
    logging.disable_progress_bar()
    options = dict(output_loading_info=True, local_files_only=True)
    if AutoConfig.from_pretrained(folder, local_files_only=True).model_type.startswith('dinov2'):
        model, info = AutoModel.from_pretrained(folder, **options)
    else:
        model, info = ViTModel.from_pretrained(folder, add_pooling_layer=False, **options)
    model.float().eval()
    return lambda images: model(images).last_hidden_state[:, 0], info


def verify(difference: float, first: str, second: str) -> float:
    """Return a difference of features, or raise if it is too large."""
    if not difference <= TOLERANCE:  # NaN is refused, too
        raise ValueError(
            f'Features of {first} and {second} differ by up to {difference:.1e}, more than '
            f'{TOLERANCE:.0e}: these are not the same network. Nothing was kept.'
        )
    return difference
