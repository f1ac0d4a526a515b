from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.model import BaseModel
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, RandomSampler

import mmpatchmix.evaluation.features as features_module
import tests.calls  # noqa: F401  sets the modules that the fork server imports
from mmpatchmix.evaluation.feature_cache import cached_features
from mmpatchmix.evaluation.features import extract_features, is_labelled
from mmpatchmix.evaluation.knn_loop import KNNMetric


class Numbers(Dataset):
    """Image i is filled with i % 256; its class is i % 3."""

    def __init__(self, size, labelled=True):
        self.size, self.labelled = size, labelled

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        sample = DataSample(metainfo=dict(sample_idx=index))
        if self.labelled:
            sample.set_gt_label(index % 3)
        return dict(
            inputs=torch.full((3, 2, 2), index % 256, dtype=torch.uint8), data_samples=sample
        )


class Sums(BaseModel):
    """Feature of an image: its mean and twice its mean; BatchNorm depends on the mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)

    def extract_feat(self, inputs):
        mean = inputs.float().mean(dim=(1, 2, 3))
        return (torch.zeros(1), self.norm(torch.stack([mean, 2 * mean], dim=1)))

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.extract_feat(inputs)


def make_loader(dataset, batch_size=4, sampler=None, **options):
    if sampler is None:
        sampler = DefaultSampler(dataset, shuffle=False)
    return DataLoader(dataset, batch_size, sampler=sampler, collate_fn=default_collate, **options)


def expected_features(size):
    values = torch.arange(size).float()
    return torch.stack([values, 2 * values], dim=1) / (1 + 1e-5) ** 0.5


def test_every_image_once_in_data_set_order():
    data, numbers = ConcatDataset([Numbers(8), Numbers(3)]), [*range(8), *range(3)]
    sampler = DefaultSampler(data, shuffle=True, seed=3)
    features, labels = extract_features(Sums(), make_loader(data, sampler=sampler))
    assert torch.allclose(features, expected_features(8)[numbers])
    assert features.dtype == torch.float32
    assert labels.tolist() == [number % 3 for number in numbers]


def test_modes_random_state_and_grad_mode_are_kept():
    model = Sums()
    model.eval()
    model.norm.train()
    before = model.norm.running_mean.clone()
    state = torch.get_rng_state()
    features, _ = extract_features(model, make_loader(Numbers(4)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and model.norm.training
    assert torch.equal(model.norm.running_mean, before)
    assert not features.requires_grad and torch.is_grad_enabled()
    model.extract_feat = lambda inputs: inputs.float()
    with pytest.raises(ValueError, match=r"\(4, 3, 2, 2\).*out_type='cls_token'"):
        extract_features(model.train(), make_loader(Numbers(4)))
    assert model.training  # after a failure, too


def test_all_or_no_images_have_labels():
    assert extract_features(Sums(), make_loader(Numbers(4, labelled=False))).labels is None
    loader = make_loader(ConcatDataset([Numbers(4), Numbers(3, labelled=False)]))
    with pytest.raises(ValueError, match=r'3 of 7 images \(the first: number 4\) have no label'):
        extract_features(Sums(), loader)
    for labelled in (True, False):
        assert is_labelled(Numbers(4, labelled=labelled)) is labelled
        known = Numbers(4, labelled=not labelled)
        known.metainfo = dict(labelled=labelled)
        assert is_labelled(known) is labelled
    assert is_labelled(Numbers(0)) is False


@pytest.mark.parametrize('kind', ['classifier', 'backbone'])
def test_models_of_mmpretrain(kind):
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16)
    backbone = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=2, patch_size=1)
    head = dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=8)
    parts = dict(data_preprocessor=dict(type='mmpretrain.ClsDataPreprocessor'))
    parts |= dict(backbone=backbone, head=head)
    model = MODELS.build(dict(type='mmpretrain.ImageClassifier', **parts))
    images = torch.stack([Numbers(5)[i]['inputs'] for i in range(5)]).float()
    with torch.no_grad():
        expected = model.eval().backbone(images)[-1]
    preprocessor = None
    if kind == 'backbone':
        model, preprocessor = model.backbone, model.data_preprocessor
    features = extract_features(model, make_loader(Numbers(5)), preprocessor).features
    assert torch.allclose(features, expected, atol=1e-6)


def test_progress_is_logged_every_20_seconds(monkeypatch):
    lines = []
    logger = SimpleNamespace(info=lines.append)
    monkeypatch.setattr(features_module.MMLogger, 'get_current_instance', lambda: logger)
    clock = iter([0, 25, 30])  # seconds: the start, then one call per batch
    monkeypatch.setattr(features_module, 'time', SimpleNamespace(monotonic=lambda: next(clock)))
    arguments = [dict(data_samples='x')] * 2, 'ab', lambda batch: torch.ones(1), 'bank', 1_000_002
    assert [index for index, *_ in features_module.iterate_features(*arguments)] == ['a', 'b']
    assert lines[0] == 'bank: 500,001 of 1,000,002 images, 20,000 images/s, ETA 0:00:25'
    assert len(lines) == 1


def test_loaders_that_miss_or_repeat_images_and_models_without_preprocessor_raise():
    data, missed = Numbers(10), r'2 of 10 images .*number 8\) were not visited.*drop_last'
    with pytest.raises(ValueError, match='no data_preprocessor of its own'):
        extract_features(nn.Linear(2, 2), make_loader(data))
    with pytest.raises(ValueError, match=missed):
        extract_features(Sums(), make_loader(data, drop_last=True))
    with pytest.raises(ValueError, match='RandomSampler does not visit'):
        extract_features(Sums(), make_loader(data, sampler=RandomSampler(data)))
    with pytest.raises(ValueError, match='empty'):
        extract_features(Sums(), make_loader(Numbers(0), sampler=[]))


def noisy(features, seed=0):
    """Add noise to features, which are all parallel, so that no two cosines are equal."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(features.features.shape, generator=generator)
    return features._replace(features=features.features + 3 * noise)


def _start_rank(rank, function, folder):
    store = (folder / 'store').as_uri()
    torch.distributed.init_process_group('gloo', init_method=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    function(rank, folder)
    torch.distributed.destroy_process_group()


def on_two_ranks(function, folder):
    """Call ``function(rank, folder)`` in two processes of one gloo group."""
    context = dict(nprocs=2, start_method='forkserver')
    torch.multiprocessing.start_processes(_start_rank, (function, folder), **context)


def _extract_on_rank(rank, folder):
    results = {}
    for size, round_up in ((1, True), (1, False), (8, True), (13, True), (13, False)):
        data = Numbers(size)
        sampler = DefaultSampler(data, shuffle=False, round_up=round_up)
        model = nn.parallel.DistributedDataParallel(nn.Linear(1, 1))
        model.module = Sums()
        features = extract_features(model, make_loader(data, batch_size=3, sampler=sampler))
        path = folder / f'{size}-{round_up}.safetensors'
        cached = cached_features(path, dict(size=size), lambda f=features: f)
        assert torch.equal(cached.features, features.features)
        again = cached_features(path, dict(size=size), None)
        assert torch.equal(again.features, features.features)
        metrics = KNNMetric((1,)).compute(noisy(features), noisy(features, 1))
        results[size, round_up] = (*again, metrics)
    torch.save(results, folder / f'{rank}.pt')


def test_two_ranks_equal_one_process(tmp_path):
    on_two_ranks(_extract_on_rank, tmp_path)
    for rank in range(2):
        results = torch.load(tmp_path / f'{rank}.pt')
        for (size, _), (features, labels, metrics) in results.items():
            single = extract_features(Sums(), make_loader(Numbers(size)))
            assert torch.equal(features, single.features)
            assert torch.equal(labels, single.labels)
            assert metrics == KNNMetric((1,)).compute(noisy(single), noisy(single, 1))
