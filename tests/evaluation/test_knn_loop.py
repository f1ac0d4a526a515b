import json

import numpy as np
import pytest
import torch
from mmengine import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from torch import nn

from mmpatchmix.evaluation import Features, KNNMetric
from mmpatchmix.evaluation.knn import knn_predict


@DATASETS.register_module()
class ColouredNoise(BaseDataset):
    """Class c is a noisy image whose channel c is brighter."""

    def __init__(self, size, seed, labelled=True, metainfo=None):
        self.size, self.seed, self.with_labels = size, seed, labelled
        super().__init__(metainfo=metainfo)

    def load_data_list(self):
        generator = torch.Generator().manual_seed(self.seed)
        rows = []
        for index in range(self.size):
            image = torch.randint(0, 100, (3, 4, 4), generator=generator)
            image[index % 3] += 12
            rows.append(dict(image=image.to(torch.uint8), label=index % 3))
        return rows

    def prepare_data(self, index):
        row = self.get_data_info(index)
        sample = DataSample()
        if self.with_labels:
            sample.set_gt_label(row['label'])
        return dict(inputs=row['image'], data_samples=sample)


@MODELS.register_module()
class MeanColour(BaseModel):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0, 1.0]))

    def extract_feat(self, inputs):
        return inputs.float().mean(dim=(2, 3)) * self.scale

    def forward(self, inputs, data_samples=None, mode='tensor'):
        features = self.extract_feat(inputs)
        return dict(loss=(features - 1).pow(2).mean()) if mode == 'loss' else features


def make_loader(size, seed, **dataset):
    return dict(
        batch_size=8,
        num_workers=0,
        dataset=dict(type='ColouredNoise', size=size, seed=seed, **dataset),
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )


def make_config(tmp_path, bank=None, queries=None, **loop):
    loop.update(type='mmpatchmix.KNNLoop', bank_dataloader=bank or make_loader(31, seed=0))
    cfg = dict(
        model=dict(type='MeanColour'),
        work_dir=str(tmp_path),
        default_scope='mmpretrain',
        train_dataloader=make_loader(8, seed=2),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e-9)),
        train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best='knn/top1')),
        experiment_name=tmp_path.name,
    )
    for phase in ('val', 'test'):
        cfg[f'{phase}_dataloader'] = queries or make_loader(17, seed=1)
        cfg[f'{phase}_cfg'] = loop
        cfg[f'{phase}_evaluator'] = dict(type='mmpatchmix.KNNMetric', num_neighbors=(5, 3))
    return Config(cfg)


def features_of(loader):
    data = DATASETS.build(loader['dataset'])
    images = torch.stack([data[i]['inputs'] for i in range(len(data))]).float()
    return images, torch.tensor([data[i]['data_samples'].gt_label.item() for i in range(len(data))])


def read_logged(work_dir, name):
    (path,) = work_dir.glob('*/vis_data/scalars.json')
    return [row for row in map(json.loads, path.read_text().splitlines()) if name in row]


def test_online_and_offline_agree_and_reach_log_and_checkpoint(tmp_path):
    runner = Runner.from_cfg(make_config(tmp_path, pixel_baseline=True))
    runner.train()
    online = runner.val()
    offline = runner.test()
    assert online == offline
    runner.test_loop._pixels = None  # pixels are evaluated once
    assert runner.test() == offline

    bank, bank_labels = features_of(make_loader(31, seed=0))
    queries, labels = features_of(make_loader(17, seed=1))
    for prefix, pool in (('knn', lambda x: x.mean(dim=(2, 3))), ('pixels', lambda x: x.flatten(1))):
        predictions = knn_predict(pool(queries), pool(bank), bank_labels, (5, 3))
        for k in (5, 3):
            accuracy = (predictions[k][:, 0] == labels).double().mean().item() * 100
            assert online[f'{prefix}/top1_k{k}'] == pytest.approx(accuracy)
        assert online[f'{prefix}/top1'] == online[f'{prefix}/top1_k5']
    assert 40 < online['knn/top1'] < 100

    assert list(tmp_path.glob('best_knn_top1_epoch_*.pth'))
    logged = read_logged(tmp_path, 'knn/top1')
    assert [row['step'] for row in logged] == [1, 2, 2]
    assert logged[0]['knn/top1'] == pytest.approx(online['knn/top1'])


@pytest.mark.parametrize('how', ['metainfo', 'samples'])
def test_unlabelled_data_get_geometry_instead_of_knn(tmp_path, how):
    option = dict(metainfo=dict(labelled=False)) if how == 'metainfo' else dict(labelled=False)
    cfg = make_config(tmp_path, bank=make_loader(9, seed=0, **option), num_unlabelled=9)
    cfg.default_hooks.checkpoint.type = 'mmpatchmix.SafeCheckpointHook'
    runner = Runner.from_cfg(cfg)
    runner.train()
    log = next(tmp_path.glob('*/*.log')).read_text()
    assert log.count('The images have no labels: RankMe, LiDAR and the like instead of kNN.') == 1
    assert log.count("save_best='knn/top1' is not among the metrics, so no best checkpoint") == 1
    assert 'Saving checkpoint at 2 epochs' in log and 'empty dict' not in log
    assert not list(tmp_path.glob('best_*'))
    # Every second one of 17 images; the entropy of the singular values by numpy.
    images, _ = features_of(make_loader(17, seed=1))
    values = np.linalg.svd(images[::2].mean(dim=(2, 3)).double().numpy(), compute_uv=False)
    shares = values / values.sum()
    expected = np.exp(-(shares * np.log(shares)).sum())
    assert len(runner.val_loop.unlabelled) == 9 and 1 < expected < 3
    assert runner.test()['geometry/rank_me'] == pytest.approx(expected, rel=1e-4)
    assert [row['step'] for row in read_logged(tmp_path, 'geometry/rank_me')][:2] == [1, 2]


def test_loops_without_a_bank_another_metric_and_too_many_pixels_raise(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    config.val_cfg, config.test_cfg = dict(type='ValLoop'), dict(type='TestLoop')
    runner = Runner.from_cfg(config)
    for start in (runner.train, runner.test):
        with pytest.raises(ValueError, match=r"needs features of a bank.*'mmpatchmix\.KNNLoop'"):
            start()
        assert runner.iter == 0
    monkeypatch.setattr('mmpatchmix.evaluation.knn_loop._MAX_PIXEL_BYTES', 1000)
    config = make_config(tmp_path / 'pixels', pixel_baseline=True)
    config.val_evaluator = dict(type='mmpretrain.Accuracy')
    runner = Runner.from_cfg(config)
    with pytest.raises(ValueError, match=r"mmpatchmix.KNNMetric.*\['Accuracy'\]"):
        runner.val()
    with pytest.raises(ValueError, match='Set pixel_baseline=False'):
        runner.test()
    features = Features(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match='needs labels'):
        KNNMetric((1,)).compute(features, Features(torch.eye(3), None))
    assert KNNMetric((1,)).compute(features, features)['knn/top1'] == 100.0


def test_more_queries_use_the_same_bank(tmp_path):
    more = dict(other=make_loader(13, seed=5), same=make_loader(17, seed=1))
    runner = Runner.from_cfg(make_config(tmp_path, pixel_baseline=True, more_queries=more))
    metrics = runner.test()
    config = make_config(tmp_path / 'other', queries=more['other'], pixel_baseline=True)
    alone = Runner.from_cfg(config).test()
    for kind in ('knn', 'pixels'):
        for name in ('top1', 'top5_k3'):
            assert metrics[f'{kind}_same/{name}'] == metrics[f'{kind}/{name}']
            assert metrics[f'{kind}_other/{name}'] == alone[f'{kind}/{name}']
