"""Files of other networks than a plain ViT are refused with the reason."""

import pytest
import torch
from mmpretrain.models.backbones import VisionTransformer
from vits import SPEC, hugging_face, make_timm_vit, make_vit

from mmpatchmix.checkpoints import read_backbone


def vit_with(**extra):
    return make_timm_vit().state_dict() | extra


def without(*names):
    return {key: value for key, value in vit_with().items() if not key.startswith(names)}


def averaged():
    options = dict(arch=dict(SPEC.arch), img_size=16, patch_size=4)
    vit = VisionTransformer(**options, out_type='avg_featmap')
    return vit.state_dict()


REFUSED = {
    'rotary positions': without('pos_embed') | {'rope_embed.periods': torch.ones(4)},
    'no learned positions; they may be rotary': without('pos_embed'),
    'a distillation token': vit_with(dist_token=torch.ones(1, 1, 24)),
    'gated feed-forward': without('blocks.0.mlp') | {'blocks.0.mlp.w12.weight': torch.ones(2)},
    'a norm of the mean': without('norm.') | {'fc_norm.weight': torch.ones(24)},
    'a norm of averaged patch tokens': averaged(),
    'norms of queries': vit_with(**{'blocks.0.attn.q_norm.weight': torch.ones(8)}),
}


@pytest.mark.parametrize('reason', REFUSED)
def test_other_networks_are_refused_with_the_reason(reason, tmp_path):
    torch.save(REFUSED[reason], tmp_path / 'x.pth')
    vit = make_vit(tmp_path / 'x.pth')
    with pytest.raises(ValueError, match=f'The file has {reason}'):
        vit.init_weights()


def test_folders_of_other_networks_are_refused_with_the_reason(tmp_path):
    pytest.importorskip('transformers')
    sizes = dict(num_channels=3, mlp_ratio=4)
    path, _ = hugging_face(tmp_path / 'r', 'Dinov2WithRegistersModel',
                           'Dinov2WithRegistersConfig', use_swiglu_ffn=True, **sizes)  # fmt: skip
    with pytest.raises(ValueError, match='gated feed-forward'):
        read_backbone(path)
    path, _ = hugging_face(tmp_path / '3', 'DINOv3ViTModel', 'DINOv3ViTConfig')
    with pytest.raises(ValueError, match='rotary'):
        read_backbone(path)
    path, _ = hugging_face(tmp_path / 'a', 'ViTModel', 'ViTConfig', hidden_act='gelu_new')
    with pytest.raises(ValueError, match="hidden_act='gelu_new'"):
        read_backbone(path)
