import json
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from safetensors.torch import load_file
from test_knn_loop import make_config, make_loader

from mmpatchmix.cli import evaluate
from mmpatchmix.cli.evaluate import make_table
from mmpatchmix.evaluation.features import extract_features
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


def test_unlabelled_images_are_extracted_once(tmp_path, monkeypatch):
    folder = make_loader(9, seed=0, labelled=False)  # bank and queries alike
    runner = Runner.from_cfg(make_config(tmp_path, bank=folder, queries=folder))
    calls = []

    def count(*args, **kwargs):
        calls.append(kwargs['title'])
        return extract_features(*args, **kwargs)

    monkeypatch.setattr('mmpatchmix.evaluation.judge.extract_features', count)
    train, test = load_features(runner, save(tmp_path / 'a.pth', scale=torch.ones(3)))
    assert calls == ['bank']
    assert train.features.shape == (9, 3) and torch.equal(train.features, test.features)
    assert train.labels is None
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert 'no labels: kNN, linear and low-shot are left out' in log
    assert 'one extraction for both' in log


def test_configs_without_knn_or_pretrained_backbone_raise(tmp_path):
    with pytest.raises(ValueError, match="has no init_cfg of type 'Pretrained'"):
        finetune(Config(dict(model=dict(backbone=dict(depth=1)))), 'a.pth', None)
    config = make_config(tmp_path)
    config.test_cfg, config.test_evaluator = dict(type='TestLoop'), dict(type='Accuracy')
    with pytest.raises(ValueError, match=r'no mmpatchmix\.KNNLoop'):
        load_features(Runner.from_cfg(config), save(tmp_path / 'a.pth', scale=torch.ones(3)))


def test_table():
    groups = dict(
        knn=dict(top1=50.0, top1_k5=50.0, top5_k5=90.0),
        pixels=dict(top1_k5=40.0, top5_k5=80.0),
        knn_turned=dict(top1_k5=30.0, top5_k5=70.0),
        lowshot_1pct=dict(top1=30.04, top1_std=2.0, num_images=10.0),
        similarity=dict(auroc=0.75, share_error_m2=0.1234),
        geometry=dict(rank_me=12.34, width=96.0),
    )
    flat = {f'{group}/{n}': v for group, part in groups.items() for n, v in part.items()}
    rows = list(zip(*(column.cells for column in make_table(flat).columns), strict=True))
    assert rows == [
        ('kNN on raw pixels, k=5', '40.0', '80.0'),
        ('kNN on features, k=5', '50.0', '90.0'),
        ('kNN on features, k=5, queries turned', '30.0', '70.0'),
        ('1 % of labels (10 images)', '30.0 ± 2.0', ''),
        ('', '', ''),
        ('AUROC, same class nearer than another (chance 0.5)', '0.75', ''),
        ('share of a mix of 2, error of the curve', '0.123', ''),
        ('', '', ''),
        ('RankMe, of 96 dimensions', '12.3', ''),
    ]


def test_the_verb_runs_all_evaluations(tmp_path, capsys):
    """On digits, from random weights: figures near chance."""
    config = Config.fromfile(ROOT / 'configs' / 'patchmix_vit-digits.py')
    model = MODELS.build(config.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_0.pth')
    evaluate.main([
        str(config.filename), str(tmp_path / 'epoch_0.pth'), '--linear-epochs', '2',
        '--work-dir', str(tmp_path / 'out'), '--finetune', 'configs/finetune/vit-digits.py',
        '--cfg-options', 'train_dataloader.dataset.indices=200',
    ])  # fmt: skip
    text = capsys.readouterr().out
    report = json.loads((tmp_path / 'out' / 'evaluation.json').read_text())
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
    assert (tmp_path / 'out' / 'similarity.png').stat().st_size > 10_000
    for row in ('kNN on raw pixels', 'kNN on features', 'linear on', 'fine-tuned, 2 epochs'):
        assert row in text
    assert (tmp_path / 'out' / 'features' / 'bank.safetensors').is_file()
