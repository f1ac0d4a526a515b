"""Compare the features of the same weights in different libraries.

Every library loads the weights in its own way, strictly, and runs its own code.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.runner import CheckpointLoader
from safetensors.torch import save_file
from torch import Tensor

from mmpatchmix.checkpoints.backbone import Backbone, build_vit
from mmpatchmix.checkpoints.layouts import from_hub
from mmpatchmix.checkpoints.vit_spec import ViTSpec

# (N, 3, H, W) float32 to (N, D) float32: the class token.
FeatureFunction = Callable[[Tensor], Tensor]
_NUM_IMAGES = 2


def largest_difference(first: FeatureFunction, second: FeatureFunction, img_size: int) -> float:
    """Compare features on random images, the same each time.

    Args:
        first: One network.
        second: The other.
        img_size: Pixels per side.

    Returns:
        float: The largest absolute difference of any feature.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_NUM_IMAGES, 3, img_size, img_size, generator=generator)
    with torch.no_grad():
        return (first(images) - second(images)).abs().max().item()


def features_of_vit(spec: ViTSpec, state: dict[str, Tensor]) -> FeatureFunction:
    """Load weights under mmpretrain's names into its ViT; takes images of any size."""
    vit = build_vit(spec)
    vit.load_state_dict(state, strict=True)
    return lambda images: vit(images)[-1]  # (N, D)


def features_of_source(path: str | Path, backbone: Backbone) -> FeatureFunction:
    """Load what was read from a file into the library that the file came from."""
    library, spec = backbone.layout.library, backbone.spec
    state = from_hub(backbone.state_dict, library)
    if library == 'timm':
        return _by_timm(state, spec)
    if library != 'transformers':
        return features_of_vit(spec, state)
    if Path(path).is_dir():  # with its own config, not one of ours
        return _by_transformers(Path(path))[0]
    with tempfile.TemporaryDirectory() as folder:
        state = {key: value.contiguous() for key, value in state.items()}
        save_file(state, Path(folder) / 'model.safetensors', {'format': 'pt'})
        (Path(folder) / 'config.json').write_text(json.dumps(transformers_config(spec)))
        return _by_transformers(Path(folder))[0]


def features_of_file(path: Path, target: str, spec: ViTSpec) -> FeatureFunction:
    """Load a converted file or folder the way the users of the library ``target`` do.

    Raises:
        ValueError: If the library does not find all keys or finds others.
    """
    if target == 'timm':
        from timm.models import load_state_dict

        return _by_timm(load_state_dict(str(path)), spec)
    if target == 'transformers':
        features, info = _by_transformers(path)
        problems = {kind: keys for kind, keys in info.items() if keys}
        if problems:
            raise ValueError(f'transformers does not load {path} completely: {problems}.')
        return features
    # As init_cfg=dict(type='Pretrained', ...) reads it, but insisting on every key.
    content = CheckpointLoader.load_checkpoint(str(path), map_location='cpu')['state_dict']
    prefix = 'backbone.' if target == 'mmpretrain' else ''
    return features_of_vit(spec, {key.removeprefix(prefix): content[key] for key in content})


def _by_timm(state: dict[str, Tensor], spec: ViTSpec) -> FeatureFunction:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=spec.img_size,
        patch_size=spec.patch_size,
        embed_dim=spec.embed_dims,
        depth=spec.num_layers,
        num_heads=spec.num_heads,
        mlp_ratio=spec.feedforward_channels / spec.embed_dims,
        num_classes=0,
        global_pool='token',
    )
    model.load_state_dict(state, strict=True)
    return model.eval()


def _by_transformers(folder: Path) -> tuple[FeatureFunction, dict]:
    """Load a folder; return also what transformers says about its keys."""
    try:
        from transformers import ViTModel
        from transformers.utils import logging
    except ImportError as error:
        raise ModuleNotFoundError(
            'Converting from or to transformers is proved with the library itself, and it is not '
            'installed. Install it: pip install transformers'
        ) from error
    logging.disable_progress_bar()
    model, info = ViTModel.from_pretrained(
        folder, add_pooling_layer=False, output_loading_info=True, local_files_only=True
    )
    model.eval()
    return lambda images: model(images).last_hidden_state[:, 0], info


def transformers_config(spec: ViTSpec) -> dict:
    """Return ``config.json`` of transformers' ViT: all that decides about its features."""
    return dict(
        architectures=['ViTModel'],
        model_type='vit',
        hidden_size=spec.embed_dims,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        intermediate_size=spec.feedforward_channels,
        patch_size=spec.patch_size,
        image_size=spec.img_size,
        num_channels=3,
        qkv_bias=True,
        hidden_act='gelu',
        layer_norm_eps=1e-6,  # transformers' own default is 1e-12
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
