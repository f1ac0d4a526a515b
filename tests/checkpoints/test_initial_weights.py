"""--init: a recipe that starts from a checkpoint of another network."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.models import VisionTransformer
from safetensors.torch import save_file

from mmpatchmix.checkpoints import ViTSpec
from mmpatchmix.cli import embed, train
from mmpatchmix.cli.describe_run import describe_run
from mmpatchmix.datasets import Digits
from mmpatchmix.models import PatchMix
from mmpatchmix.registry import MODELS
from tests.checkpoints.vits import images, make_timm_vit, randomise, save
from tests.engine.tiny_run import tiny_run_config

# Other width, depth, heads, patch and image than the tiny run.
SPEC = ViTSpec(
    embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=96, patch_size=4, img_size=16
)


@pytest.fixture
def checkpoint(tmp_path):
    """A timm file that states its heads, and its model."""
    vit = make_timm_vit(SPEC)
    content = dict(state_dict=vit.state_dict(), meta=dict(mmpatchmix=asdict(SPEC)))
    torch.save(content, tmp_path / 'timm.pth')
    return str(tmp_path / 'timm.pth'), vit


def apply(cfg, *arguments):
    train.apply_arguments(cfg, train.parse_args(['config.py', *arguments]))
    return cfg


def test_the_network_of_the_file_replaces_that_of_the_recipe(checkpoint, tmp_path, capsys):
    path, source = checkpoint
    cfg = apply(tiny_run_config(tmp_path), '--init', path)
    said = capsys.readouterr().out
    assert "layout 'timm', images of 16" in said and 'num_heads 3 (the recipe: 2)' in said
    assert 'patch_size 4 (the recipe: 8)' in said
    model = MODELS.build(cfg.model)
    model.init_weights()
    model.eval()
    assert model.data_preprocessor.patch_size == 4
    assert model.backbone.pos_embed.shape[1] == 1 + 8 * 8  # the recipe's images have 32 pixels
    query, momentum = model.backbone.state_dict(), model.momentum_encoder.backbone.state_dict()
    assert all(torch.equal(query[key], momentum[key]) for key in query)
    small = MODELS.build(dict(cfg.model, backbone=dict(cfg.model.backbone, img_size=16)))
    small.init_weights()
    small.eval()
    with torch.no_grad():
        expected = source(images())
        assert torch.allclose(small.extract_feat(images()), expected, atol=1e-5)
        assert torch.allclose(small.backbone(images())[-1], expected, atol=1e-5)


def test_another_normalisation_than_that_of_the_file_is_printed(checkpoint, tmp_path):
    path, vit = checkpoint
    own = dict(mean=[12.5, 2.0, 3.0], std=[64.0, 65.0, 66.0])
    meta = asdict(SPEC) | dict(preprocessing=own | dict(resize=16, crop=16))
    torch.save(dict(state_dict=vit.state_dict(), meta=dict(mmpatchmix=meta)), path)
    cfg = apply(tiny_run_config(tmp_path), '--init', path)
    cfg.model.data_preprocessor.update(own, mean=[1, 2, 3])
    note = 'was trained with the mean (12.5, 2.0, 3.0), and the config has (1.0, 2.0, 3.0)'
    assert describe_run(Runner.from_cfg(cfg))[1]['starts from'] == f'{path}  <- {note}'
    cfg.model.data_preprocessor.update(own)
    assert describe_run(Runner.from_cfg(cfg))[1]['starts from'] == str(path)


def test_the_dumped_config_starts_and_resumes_the_same_run(checkpoint, tmp_path):
    cfg = apply(tiny_run_config(tmp_path, epochs=1, num_images=16), '--init', checkpoint[0])
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.dump(tmp_path / 'copy.py')
    again = Config.fromfile(tmp_path / 'copy.py')
    assert again.model == cfg.model
    runner = Runner.from_cfg(again)
    assert f'starts from   {checkpoint[0]}' in '\n'.join(describe_run(runner)[0])
    runner.train()
    # A resumed run does not need the file, with and without --init.
    Path(checkpoint[0]).unlink()
    resumed = apply(tiny_run_config(tmp_path), '--init', checkpoint[0], '--resume')
    assert resumed.model == cfg.model
    again.load_from, again.resume = str(tmp_path / 'epoch_1.pth'), True
    again.experiment_name += '-resumed'
    runner = Runner.from_cfg(again)
    runner.load_or_resume()
    assert runner.epoch == 1
    # With other heads the same shapes would be another network.
    again.experiment_name += '-other'
    again.model.backbone.update(arch=again.model.backbone.arch | dict(num_heads=4), init_cfg=None)
    with pytest.raises(ValueError, match='3 attention heads and the config has 4'):
        Runner.from_cfg(again).load_checkpoint(str(tmp_path / 'epoch_1.pth'))


def test_other_ways_to_load_a_backbone_are_errors(checkpoint, tmp_path):
    cfg = Config.fromfile('configs/linear/vit-s_cifar10.py')
    message = r'pre-training recipes.*backbone\.init_cfg\.checkpoint=FILE'
    with pytest.raises(ValueError, match=message):
        apply(cfg, '--init', checkpoint[0])
    cfg = tiny_run_config(tmp_path)
    cfg.load_from = checkpoint[0]
    with pytest.raises(ValueError, match=r'does not fit the model.*--init FILE'):
        Runner.from_cfg(cfg).train()
    pretrained = dict(type='Pretrained', checkpoint=checkpoint[0])
    cfg.model.backbone.init_cfg = pretrained
    with pytest.raises(ValueError, match='embed_dims: 24 in the file, 12 in the model'):
        MODELS.build(cfg.model).init_weights()
    with pytest.raises(ValueError, match='load_from=FILE loads all of a model, --init FILE'):
        PatchMix(backbone={}, neck={}, head={}, init_cfg=pretrained)


def test_a_vit_of_timm_starts_trains_and_embeds(tmp_path):
    """All of ``--timm``, ``--init``, a run with kNN, and the verb embed, patch tokens included."""
    name = 'vit_tiny_patch16_dinov3_qkvb'
    source = timm.create_model(name, num_classes=0)
    save_file(source.state_dict(), tmp_path / 'dinov3.safetensors')
    options = '--timm', name, '--init', str(tmp_path / 'dinov3.safetensors')
    cfg = apply(tiny_run_config(tmp_path, epochs=1, num_images=16), *options)
    assert cfg.model.data_preprocessor.patch_size == 16
    assert cfg.model.data_preprocessor.mean == pytest.approx([123.675, 116.28, 103.53])
    cfg.dump(tmp_path / 'copy.py')
    Runner.from_cfg(Config.fromfile(tmp_path / 'copy.py')).train()
    out = tmp_path / 'embedded'
    work = '--work-dir', str(tmp_path / 'log')
    checkpoint = str(tmp_path / 'epoch_1.pth')
    embed.main([str(tmp_path / 'copy.py'), checkpoint, *work, '--out', str(out), '--patch-tokens'])
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    prefix = 'momentum_encoder.backbone.model.'
    source.load_state_dict(
        {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    )
    image = Digits(split='test', image_size=32)[0]['img']
    pixels = torch.from_numpy(image).float() - torch.tensor(cfg.model.data_preprocessor.mean)
    pixels = (pixels / torch.tensor(cfg.model.data_preprocessor.std)).permute(2, 0, 1)[None]
    with torch.no_grad():
        tokens = source.eval().forward_features(pixels)[0]
    assert np.allclose(np.load(out / 'features.npy')[0], tokens[0], atol=1e-4)
    assert np.allclose(np.load(out / 'patch_tokens.npy')[0], tokens[5:], atol=1e-2)  # float16


def test_a_plain_vit_starts_one_of_timm_with_its_heads_and_layer_scale(tmp_path):
    own = VisionTransformer('deit-tiny', img_size=32, layer_scale_init_value=0.1)
    randomise(own).eval()
    path = save(tmp_path, dict(state_dict=own.state_dict()))
    vit = dict(type='mmpatchmix.TimmViT', model='vit_tiny_patch16_224', img_size=32)
    vit |= dict(init_cfg=dict(type='Pretrained', checkpoint=str(path)))
    model = MODELS.build(vit)
    model.init_weights()
    with torch.no_grad():
        assert torch.allclose(model.eval()(images(32))[0], own(images(32))[-1], atol=1e-4)
    save(tmp_path, dict(state_dict=own.state_dict(), meta=dict(mmpatchmix=dict(num_heads=12))))
    with pytest.raises(ValueError, match='has 12 attention heads and 0 registers, not 3'):
        MODELS.build(vit).init_weights()
