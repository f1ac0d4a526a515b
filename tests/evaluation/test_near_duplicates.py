"""Near-duplicates against the whole matrix of cosines."""

import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation import knn as near_duplicates
from mmpatchmix.evaluation.knn import find_near_duplicates


def by_hand(features, threshold):
    unit = F.normalize(features.double(), dim=1)
    cosines = unit @ unit.T
    return {
        (i, j): float(cosines[i, j])
        for i in range(len(unit))
        for j in range(i + 1, len(unit))
        if cosines[i, j] >= threshold
    }


@pytest.mark.parametrize('rows', [7, 8192])
@pytest.mark.parametrize('first_k', [1, 16])
@pytest.mark.parametrize('threshold', [-0.5, 0.3, 0.9])
def test_all_pairs_are_found_once(monkeypatch, rows, first_k, threshold):
    monkeypatch.setattr(near_duplicates, '_ROWS', rows)
    monkeypatch.setattr(near_duplicates, '_FIRST_K', first_k)
    monkeypatch.setattr(near_duplicates, '_MAX_FOUND', 40)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 6, generator=generator)
    features[40:] = features[:20] + 0.1 * torch.randn(20, 6, generator=generator)
    features[30] = features[31] = features[32] = 5 * features[3]  # the same, of another length
    expected = by_hand(features, threshold)
    pairs = find_near_duplicates(features, threshold).tolist()
    assert len(pairs) == len(expected) > 20
    for first, second, cosine in pairs:
        assert cosine == pytest.approx(expected[first, second], abs=1e-6)
    cosines = [cosine for *_, cosine in pairs]
    assert cosines == sorted(cosines, reverse=True)


def test_a_set_of_equal_images_is_all_pairs(monkeypatch):
    monkeypatch.setattr(near_duplicates, '_ROWS', 16)
    pairs = find_near_duplicates(torch.ones(50, 3), 0.999)
    assert {(int(i), int(j)) for i, j, _ in pairs} == {(i, j) for j in range(50) for i in range(j)}


def test_none_and_no_cosine():
    assert find_near_duplicates(torch.eye(4), 0.5).shape == (0, 3)
    with pytest.raises(ValueError, match=r'above -1 and at most 1; got 97\.0'):
        find_near_duplicates(torch.eye(4), 97.0)
