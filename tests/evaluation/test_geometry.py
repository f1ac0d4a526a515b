"""Geometry of features against closed forms and pair-by-pair sums."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation import geometry
from mmpatchmix.evaluation.geometry import (
    alignment,
    nearest_others,
    rank_me,
    share_kept,
    uniformity,
)


def test_alignment_of_the_same_of_opposite_and_of_orthogonal_views():
    first = torch.eye(4)
    assert alignment(first, 3 * first) == 0
    assert alignment(first, -first) == pytest.approx(4)
    assert alignment(first, first.roll(1, 0)) == pytest.approx(2)


@pytest.mark.parametrize('chunk', [3, 2048])
def test_uniformity_equals_the_sum_over_pairs(chunk, monkeypatch):
    monkeypatch.setattr(geometry, '_CHUNK', chunk)
    features = torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    unit = F.normalize(features.double(), dim=1)
    pairs = [
        math.exp(-2 * float((unit[i] - unit[j]).square().sum()))
        for i in range(10)
        for j in range(10)
        if i != j
    ]
    assert uniformity(features) == pytest.approx(math.log(sum(pairs) / 90))


def test_uniformity_of_collapse_is_zero():
    assert uniformity(torch.ones(7, 3)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize('rank', [1, 3, 8])
def test_rank_me_of_equal_singular_values_is_their_number(rank):
    basis = torch.linalg.qr(torch.randn(50, rank, generator=torch.Generator().manual_seed(1)))[0]
    features = F.pad(basis * 7, (0, 8 - rank))
    assert rank_me(features) == pytest.approx(rank, rel=1e-4)


def test_rank_me_of_a_known_spectrum():
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    shares = (values / 8).tolist()
    entropy = -sum(share * math.log(share) for share in shares)
    assert rank_me(torch.diag(values)) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_neighbours_are_those_of_a_sorted_list():
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    unit = F.normalize(features, dim=1).tolist()

    def cosine(i, j):
        return sum(a * b for a, b in zip(unit[i], unit[j], strict=True))

    for i, row in enumerate(nearest_others(features, 3).tolist()):
        others = sorted((j for j in range(9) if j != i), key=lambda j: -cosine(i, j))
        assert row == others[:3]
    assert nearest_others(torch.ones(6, 2), 3).shape == (6, 3)  # of equal rows, any three


def test_share_of_neighbours_kept():
    before = torch.tensor([[1, 2, 3], [0, 2, 3]])
    now = torch.tensor([[3, 9, 1], [4, 5, 6]])  # two of three, none of three
    assert share_kept(before, now) == pytest.approx(1 / 3)
    assert share_kept(before, before.flip(1)) == 1.0
