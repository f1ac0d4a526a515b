import pytest
import torch

from mmpatchmix.convert.features import build_vit
from tests.checkpoints.vits import SPEC, randomise


@pytest.fixture
def own(tmp_path):
    """A pre-training checkpoint of ours: query and momentum encoder differ."""
    query, momentum = (randomise(build_vit(SPEC), seed).state_dict() for seed in (1, 2))
    state = {f'backbone.{key}': value for key, value in query.items()}
    state |= {f'momentum_encoder.backbone.{key}': value for key, value in momentum.items()}
    state |= {'neck.fc0.weight': torch.ones(2), 'head.predictor.fc0.weight': torch.ones(2)}
    state |= {'momentum_encoder.neck.fc0.weight': torch.ones(2)}
    arch = ', '.join(f'{key}={value}' for key, value in SPEC.arch.items())
    cfg = f'model = dict(backbone=dict(arch=dict({arch}), patch_size=4, img_size=16))'
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg)), tmp_path / 'own.pth')
    return tmp_path / 'own.pth', query, momentum
