import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from safetensors.torch import load_file
from test_knn_loop import make_config

from mmpatchmix.cli import evaluate
from mmpatchmix.evaluation.judge import finetune, load_features

ROOT = Path(__file__).parents[2]


def save(path, **state):
    torch.save(dict(state_dict=state), path)
    return path


def test_offline_knn_equals_the_loop_and_its_features_are_cached(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path, pixel_baseline=True))
    checkpoint = save(tmp_path / 'a.pth', scale=torch.tensor([1.0, 2.0, 0.5]))
    train, test = load_features(runner, checkpoint)
    assert runner.model.scale.tolist() == [1.0, 2.0, 0.5]
    online = runner.test_loop.evaluate()
    assert runner.test_loop.judge(test, train) == online
    assert 'pixels/top1' in online

    bank = tmp_path / 'features' / 'bank.safetensors'
    assert torch.equal(load_file(bank)['features'], train.features)
    written = bank.stat().st_mtime_ns
    again, _ = load_features(runner, checkpoint)
    assert torch.equal(again.features, train.features)
    assert bank.stat().st_mtime_ns == written
    other, _ = load_features(runner, save(tmp_path / 'b.pth', scale=torch.tensor([0.0, 0, 1])))
    assert bank.stat().st_mtime_ns != written
    assert not torch.equal(other.features, train.features)
    with pytest.raises(ValueError, match='missing: scale\nunexpected: shift'):
        load_features(runner, save(tmp_path / 'a.pth', shift=torch.ones(3)))
    with pytest.raises(ValueError, match=r'wrong shape: scale: \(4,\) instead of \(3,\)'):
        load_features(runner, save(tmp_path / 'a.pth', scale=torch.ones(4)))


def test_configs_without_knn_or_pretrained_backbone_raise(tmp_path):
    with pytest.raises(ValueError, match="has no init_cfg of type 'Pretrained'"):
        finetune(Config(dict(model=dict(backbone=dict(depth=1)))), 'a.pth', None)
    config = make_config(tmp_path)
    config.test_cfg, config.test_evaluator = dict(type='TestLoop'), dict(type='Accuracy')
    with pytest.raises(ValueError, match=r'no mmpatchmix\.KNNLoop'):
        load_features(Runner.from_cfg(config), save(tmp_path / 'a.pth', scale=torch.ones(3)))


@pytest.mark.parametrize('wrong', [('--linear-epochs', '0'), ('--fractions', '0.1', '10')])
def test_numbers_out_of_range_are_refused_before_anything_is_read(wrong):
    with pytest.raises(SystemExit, match='at least 1, --fractions above 0 and at most 1'):
        evaluate.main(['no_such_config', 'no_such_checkpoint', *wrong])


def test_the_verb_runs_all_evaluations(tmp_path, capsys):
    """On digits, from random weights: figures near chance."""
    config = Config.fromfile(ROOT / 'configs' / 'patchmix_vit-digits.py')
    model = MODELS.build(config.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_0.pth')
    evaluate.main([
        str(config.filename), str(tmp_path / 'epoch_0.pth'), '--linear-epochs', '2',
        '--finetune', 'configs/finetune/vit-digits.py',
        '--cfg-options', 'train_dataloader.dataset.indices=200',
    ])  # fmt: skip
    text = capsys.readouterr().out
    report = json.loads((tmp_path / 'evaluation' / 'evaluation.json').read_text())
    metrics = report['metrics']
    assert report['checkpoint'].endswith('epoch_0.pth') and 'torch' in report['versions']
    assert metrics['pixels/top1'] > 90  # digits are easy
    assert metrics['finetune/epochs'] == 2
    for name in ('knn', 'linear', 'lowshot_1pct', 'lowshot_10pct', 'finetune'):
        assert 5 < metrics[f'{name}/top1'] < 90
    for m in (2, 3, 4):  # to random weights all sources are alike
        assert 0.05 < metrics[f'similarity/share_error_m{m}'] < 0.4
    assert 0.5 < metrics['similarity/auroc'] < 0.9
    assert 1 < metrics['geometry/lidar'] < 96 and metrics['geometry/lidar_images'] == 200
    assert 1 < metrics['geometry/rank_me'] < 96 and metrics['geometry/uniformity'] < 0
    assert 0 < metrics['geometry/alignment'] < 4
    assert (tmp_path / 'evaluation' / 'similarity.png').stat().st_size > 10_000
    config.model.data_preprocessor.mean = [1.0] * 3
    content = dict(meta=dict(cfg=config.pretty_text), state_dict=model.state_dict())
    torch.save(content, tmp_path / 'epoch_0.pth')
    config.dump(tmp_path / 'own.py')
    with pytest.raises(SystemExit, match='was trained with the mean'):
        evaluate.main([
            str(tmp_path / 'own.py'), str(tmp_path / 'epoch_0.pth'),
            '--finetune', 'configs/finetune/vit-digits.py',
        ])  # fmt: skip
    for row in ('kNN on raw pixels', 'kNN on features', 'linear on', 'fine-tuned, 2 epochs'):
        assert row in text
    assert (tmp_path / 'evaluation' / 'features' / 'bank.safetensors').is_file()
