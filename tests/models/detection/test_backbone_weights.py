"""Loading a backbone: all tensors or an error."""

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmpretrain.models import VisionTransformer
from mmpretrain.models.utils import resize_pos_embed

from mmpatchmix.models.detection import DetectionViT, WindowedViT

# Heads cannot be read off weights; at this width they are known.
ARCH = {'embed_dims': 192, 'num_layers': 2, 'num_heads': 3, 'feedforward_channels': 24}
SMALL = {'arch': ARCH, 'img_size': 32, 'patch_size': 8, 'out_indices': (1,)}
KINDS = [(DetectionViT, {}), (WindowedViT, {}), (WindowedViT, {'use_rel_pos': True})]


def vit(seed, out_type='cls_token'):
    torch.manual_seed(seed)
    model = VisionTransformer(arch=ARCH, img_size=32, patch_size=8, out_type=out_type)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.state_dict()


@pytest.fixture
def pretraining(tmp_path):
    """A checkpoint of pre-training: two encoders, projector, predictor, log buffers."""
    query, momentum = vit(0), vit(1)
    state = {f'backbone.{key}': value for key, value in query.items()}
    state |= {f'momentum_encoder.backbone.{key}': value for key, value in momentum.items()}
    state |= {'neck.fc.weight': torch.ones(2, 2), 'head.predictor.fc.weight': torch.ones(2, 2)}
    state['momentum_encoder.neck.fc.weight'] = torch.ones(2, 2)
    buffers = {'log_scalars': {'train/loss': HistoryBuffer([1.0], [1])}}
    file = tmp_path / 'epoch_1.pth'
    torch.save({'state_dict': state, 'message_hub': buffers, 'meta': {'epoch': 1}}, file)
    return file, query, momentum


def build(kind, file, prefix=None, **kwargs):
    init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix=prefix)
    return kind(**{**SMALL, **kwargs}, init_cfg=init_cfg)


def load(kind, file, **kwargs):
    model = build(kind, file, **kwargs)
    model.init_weights()
    return model.state_dict()


def assert_equals(loaded, expected):
    """Every parameter of the backbone is the checkpoint's, but the new ones."""
    for key, value in loaded.items():
        if 'rel_pos' in key:
            assert not value.any()
        elif key == 'pos_embed' and value.shape != expected[key].shape:
            assert torch.equal(value, expected[key][:, 1:])  # without the class token's
        else:
            assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(('kind', 'kwargs'), KINDS)
def test_a_pretraining_checkpoint_gives_the_momentum_encoder(pretraining, kind, kwargs):
    file, query, momentum = pretraining
    assert_equals(load(kind, file, **kwargs), momentum)
    assert_equals(load(kind, file, prefix='backbone.', **kwargs), query)


@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
@pytest.mark.parametrize(('kind', 'kwargs'), KINDS)
def test_a_bare_backbone_loads(tmp_path, kind, kwargs, out_type):
    torch.save(vit(0, out_type), tmp_path / 'a.pth')
    assert_equals(load(kind, tmp_path / 'a.pth', **kwargs), vit(0, out_type))


def test_the_position_embedding_is_interpolated(pretraining):
    file, _, momentum = pretraining
    expected = resize_pos_embed(momentum['pos_embed'], (4, 4), (6, 6), 'bicubic', 1)
    assert torch.equal(load(DetectionViT, file, img_size=48)['pos_embed'], expected)
    assert torch.equal(load(WindowedViT, file, img_size=48)['pos_embed'], expected[:, 1:])
