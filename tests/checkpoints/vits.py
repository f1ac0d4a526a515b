"""Small Vision Transformers with weights that make their features differ."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT

from mmpatchmix.checkpoints import ViTSpec
from mmpatchmix.models import PatchMixViT

SPEC = ViTSpec(
    embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=96, patch_size=4, img_size=16
)


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def make_timm_vit(spec=SPEC, seed=0, num_classes=0, **options):
    vit = TimmViT(
        img_size=spec.img_size, patch_size=spec.patch_size, embed_dim=spec.embed_dims,
        depth=spec.num_layers, num_heads=spec.num_heads, num_classes=num_classes, **options,
    )  # fmt: skip
    return randomise(vit, seed).eval()


def save(folder, content):
    torch.save(content, folder / 'x.pth')
    return folder / 'x.pth'


def make_published_checkpoint(query, momentum, wrapped=True):
    """The published layout: timm's names, projector as the encoder's head."""
    state = {}
    for name, model in (('base_encoder', query), ('momentum_encoder', momentum)):
        state |= {f'{name}.{key}': value for key, value in model.state_dict().items()}
        state |= {f'{name}.head.{i}.weight': torch.ones(2, 2) for i in (0, 3, 6)}
        state |= {f'{name}.head.1.running_mean': torch.ones(2)}
    state |= {f'predictor.{i}.weight': torch.ones(2, 2) for i in (0, 3)}
    if wrapped:
        state = {f'module.{key}': value for key, value in state.items()}
    return dict(epoch=3, arch='vit_small', state_dict=state, optimizer=dict(state={}))


def images(size=16, count=3):
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(count, 3, size, size, generator=generator)
    return noise + 3 * torch.randn(count, 3, 1, 1, generator=generator)  # each its own colour


def hugging_face(folder, name, config, **options):
    """Save a small model of transformers; return its folder and itself."""
    transformers = pytest.importorskip('transformers')
    config = getattr(transformers, config)(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96,
        image_size=16, patch_size=4, layer_norm_eps=1e-6, **options,
    )  # fmt: skip
    model = randomise(getattr(transformers, name)(config)).eval()
    model.save_pretrained(folder / 'hf')
    return folder / 'hf', model


def make_vit(path, **options):
    """Return a ViT of ours that starts from a file."""
    options = dict(arch=dict(SPEC.arch), img_size=16, patch_size=4) | options
    return PatchMixViT(init_cfg=dict(type='Pretrained', checkpoint=str(path)), **options)
