"""Geometry of features against closed forms and loops over pairs."""

import itertools
import math

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation import rank_me


def test_alignment_of_equal_opposite_and_orthogonal_views():
    first = torch.eye(4)
    assert rank_me.alignment(first, 3 * first) == 0
    assert rank_me.alignment(first, -first) == pytest.approx(4)
    assert rank_me.alignment(first, first.roll(1, 0)) == pytest.approx(2)


@pytest.mark.parametrize('chunk', [3, 2048])
def test_uniformity_equals_the_sum_over_pairs(chunk, monkeypatch):
    monkeypatch.setattr(rank_me, '_CHUNK', chunk)
    features = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(features.double(), dim=1)
    total = 0.0
    for i, j in itertools.permutations(range(10), 2):
        total += math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
    assert rank_me.uniformity(features) == pytest.approx(math.log(total / 90))
    assert rank_me.uniformity(torch.ones(7, 3)) == pytest.approx(0, abs=1e-9)
    assert not math.isfinite(rank_me.uniformity(torch.ones(1, 3)))
    assert rank_me.measure_geometry(None, torch.ones(1, 3)).keys() == {'geometry/rank_me'}


def test_rank_me_of_a_known_spectrum():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    shares = (values / 8).tolist()
    entropy = -sum(share * math.log(share) for share in shares)
    assert rank_me.rank_me(torch.diag(values)) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_nearest_others_equal_a_sorted_list_and_their_share_is_counted():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    unit = F.normalize(features, dim=1).tolist()

    def cosine(i, j):
        return sum(a * b for a, b in zip(unit[i], unit[j], strict=True))

    for i, row in enumerate(rank_me.nearest_others(features, 3).tolist()):
        others = sorted((j for j in range(9) if j != i), key=lambda j: -cosine(i, j))
        assert row == others[:3]
    before = torch.tensor([[1, 2, 3], [0, 2, 3]])
    now = torch.tensor([[3, 9, 1], [4, 5, 6]])  # two of three, none of three
    assert rank_me.share_kept(before, now) == pytest.approx(1 / 3)
    assert rank_me.share_kept(before, before.flip(1)) == 1.0


def test_lidar_equals_the_equation_loop_by_loop():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(7, 1, 4, generator=generator) * torch.tensor([3.0, 1.0, 1.0, 0.1])
    noise = torch.randn(7, 5, 4, generator=generator) * torch.tensor([1.5, 2.0, 0.5, 0.5])
    features = (images + noise).double().numpy()
    mean = sum(view for image in features for view in image) / 35
    between, within = np.zeros((4, 4)), 1e-4 * np.eye(4)
    for image in features:
        own = sum(image) / 5
        between += np.outer(own - mean, own - mean) / 7
        for view in image:
            within += np.outer(view - own, view - own) / 35
    root = np.linalg.inv(scipy.linalg.sqrtm(within))
    values = np.linalg.eigvals(root @ between @ root).real
    shares = values / np.abs(values).sum() + 1e-7
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert 1.2 < expected < 3.8
    assert rank_me.lidar(torch.from_numpy(features)) == pytest.approx(expected, rel=1e-9)
    for shape in ((1, 5, 3), (5, 1, 3), (5, 3)):
        with pytest.raises(ValueError, match='at least two images and two views'):
            rank_me.lidar(torch.ones(shape))


class Drawn(torch.utils.data.Dataset):
    """Two views of image i: around i, and around 1000 + i, both with three drawn digits."""

    def __len__(self):
        return 45

    def __getitem__(self, index):
        first = index + np.random.randint(100) / 100 + torch.rand(()).item() / 100
        views = {'view_1': first, 'view_2': 1000 + index + torch.rand(()).item()}
        return dict(inputs={name: torch.tensor([value]) for name, value in views.items()})


class Plain(torch.nn.Module):
    """The features of a view are the view."""

    def data_preprocessor(self, data, training):
        assert not training
        return data

    def extract_feat(self, inputs):
        return inputs


def test_encode_views_is_ordered_repeatable_and_keeps_random_states():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    views = rank_me.encode_views(Plain(), Drawn(), num_images=20, num_pairs=2)
    assert torch.equal(torch.get_rng_state(), state)
    # Every third of 45 images is 15; more than 20 are never taken.
    assert views.shape == (15, 4, 1)
    expected = torch.arange(0, 45, 3)[:, None] + torch.tensor([0, 1000, 0, 1000])
    assert torch.equal(views[..., 0].floor().long(), expected)
    assert (views[:, 0] != views[:, 2]).all()  # drawn anew
    assert torch.equal(rank_me.encode_views(Plain(), Drawn(), 20, 2), views)
