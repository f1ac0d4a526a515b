"""The functions of the package: the verbs without a command line, imported at their first use."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

import mmpatchmix
from mmpatchmix.checkpoints.reading import read_checkpoint, read_config_text
from mmpatchmix.datasets import Digits
from tests.engine.tiny_run import tiny_run_config


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Config, work dir and checkpoint of a run of one epoch by ``pretrain``."""
    folder = tmp_path_factory.mktemp('api')
    tiny_run_config(folder / 'unused').dump(folder / 'tiny.py')
    options = dict(seed=3, cfg_options={'train_dataloader.batch_size': 16})
    checkpoint = mmpatchmix.pretrain(
        recipe=folder / 'tiny.py', work_dir=folder / 'run', epochs=1, amp=False, **options
    )
    return folder / 'tiny.py', folder / 'run', checkpoint


@pytest.fixture(scope='module')
def digits():
    """The first 20 test digits, (20, 3, 32, 32) uint8."""
    dataset = Digits('test', indices=20)
    images = [torch.tensor(dataset[index]['img']) for index in range(20)]
    return torch.stack(images).permute(0, 3, 1, 2)


def test_importing_the_package_imports_no_other():
    code = """
import sys, time
before, began = set(sys.modules), time.process_time()
import mmpatchmix
seconds = time.process_time() - began
new = {name.partition('.')[0] for name in set(sys.modules) - before}
assert new & {'torch', 'numpy', 'mmengine', 'rich'} == set(), new
assert 'pretrain' in mmpatchmix.__all__ and not hasattr(mmpatchmix, 'pretain')
print(seconds)
"""
    done = subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.1


def test_pretrain_applies_its_options_and_returns_the_checkpoint(run):
    _, work_dir, checkpoint = run
    assert checkpoint == work_dir / 'epoch_1.pth'
    meta = read_checkpoint(checkpoint).meta
    assert read_config_text(meta, 'train_dataloader')['batch_size'] == 16
    assert read_config_text(meta, 'randomness')['seed'] == 3
    assert read_config_text(meta, 'optim_wrapper')['enabled'] is False


def test_backbone_and_embedding_give_the_same_features(run, digits, tmp_path, monkeypatch):
    # Both embeddings begin in one second, of which mmengine names a run.
    monkeypatch.setattr(time, 'strftime', lambda *arguments: '20260101_000000')
    config, work_dir, checkpoint = run
    backbone = mmpatchmix.load_backbone(work_dir)
    with torch.no_grad():
        expected = backbone(digits).numpy()
    assert expected.shape == (20, backbone.embed_dims) == (20, 12)
    assert not backbone.training and np.ptp(expected, axis=0).min() > 0
    features, table = mmpatchmix.embed(checkpoint)  # the images of the recipe: all test digits
    assert np.allclose(features[:20], expected, atol=1e-5) and table['readable'] == [True] * 360
    for number in (1, 0):
        Image.fromarray(digits[number].permute(1, 2, 0).numpy()).save(tmp_path / f'{number}.png')
    (tmp_path / '2.png').write_bytes(b'damaged')
    out = tmp_path / 'out'
    features, table = mmpatchmix.embed(work_dir, images=tmp_path, out=out, recipe=config)
    assert np.allclose(features[:2], expected[:2], atol=1e-5) and np.isnan(features[2]).all()
    assert table == dict(file=['0.png', '1.png', '2.png'], readable=[True, True, False])
    assert (out / 'features.npy').is_file()


def test_the_query_encoder_differs(run, digits):
    backbones = [mmpatchmix.load_backbone(run[1], encoder) for encoder in ('momentum', 'query')]
    first, second = ([p.detach() for p in each.parameters()] for each in backbones)
    assert not all(map(torch.equal, first, second))


def test_refusals_of_the_verbs_are_raised(run, tmp_path):
    config, work_dir, _ = run
    with pytest.raises(ValueError, match='holds an earlier run'):
        mmpatchmix.pretrain(recipe=config, work_dir=work_dir)
    with pytest.raises(ValueError, match='unrecognized arguments: --lr=1'):
        mmpatchmix.pretrain(recipe=config, work_dir=tmp_path, lr=1)
    with pytest.raises(FileNotFoundError, match='did you mean patchmix_vit-s_folder'):
        mmpatchmix.pretrain(tmp_path, recipe='patchmix_vit-s_foldr')
    with pytest.raises(FileNotFoundError, match='there is no good checkpoint'):
        mmpatchmix.load_backbone(tmp_path)
    torch.save({'state_dict': read_checkpoint(run[2]).state_dict}, tmp_path / 'bare.pth')
    with pytest.raises(ValueError, match='does not hold its config: give recipe'):
        mmpatchmix.embed(tmp_path / 'bare.pth')
