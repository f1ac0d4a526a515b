import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation import knn
from mmpatchmix.evaluation.knn import find_near_duplicates, find_neighbors, knn_predict, vote

KS = (1, 3, 10, 40)


def make_data(seed=0, num_bank=97, num_queries=31, dim=12, num_classes=7):
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(num_bank, dim, generator=generator)
    queries = torch.randn(num_queries, dim, generator=generator)
    labels = torch.randint(num_classes, (num_bank,), generator=generator)
    return queries, bank, labels


def naive_predict(queries, bank, labels, k, temperature, top):
    """Compute predictions by a double loop in Python floats."""
    result = []
    for query in queries.tolist():
        neighbors = []
        for index, row in enumerate(bank.tolist()):
            dot = sum(a * b for a, b in zip(query, row, strict=True))
            norm = math.sqrt(sum(a * a for a in query)) * math.sqrt(sum(b * b for b in row))
            neighbors.append((-dot / norm, index))
        votes = {}
        for negative, index in sorted(neighbors)[:k]:
            weight = 1.0 if temperature is None else math.exp(-negative / temperature)
            votes[int(labels[index])] = votes.get(int(labels[index]), 0.0) + weight
        classes = sorted(votes, key=lambda c: (-votes[c], c))[:top]
        result.append(classes + [-1] * (top - len(classes)))
    return torch.tensor(result)


@pytest.mark.parametrize('temperature', [0.07, 0.5, None])
def test_equals_a_naive_double_loop(temperature):
    queries, bank, labels = make_data()
    predictions = knn_predict(queries, bank, labels, KS, temperature)
    for k in KS:
        expected = naive_predict(queries, bank, labels, k, temperature, top=5)
        assert torch.equal(predictions[k], expected), k


def sign_rows(num_rows, num_distinct, dim=16, seed=0):
    """Rows of +-1 with repetitions: norms are 4, so every cosine is exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randint(0, 2, (num_distinct, dim), generator=generator).float() * 2 - 1
    return distinct[torch.randint(num_distinct, (num_rows,), generator=generator)]


def check_neighbors(queries, bank, k):
    """Compare with the largest of all similarities in float64; equal ones may be in any order."""
    similarities, indices = find_neighbors(queries, bank, k)
    queries, bank = (F.normalize(x.double(), dim=1) for x in (queries, bank))
    expected = (queries @ bank.T).sort(dim=1, descending=True).values[:, :k]
    assert torch.equal(similarities.double(), expected)
    assert torch.equal((queries @ bank.T).gather(1, indices), expected)
    assert all(len(row.unique()) == len(row) for row in indices)


# Blocks that are multiples of the group size are searched in groups, for few neighbours.
@pytest.mark.parametrize('bank_chunk', [7, 128])
@pytest.mark.parametrize('order', ['random', 'rising', 'falling'])
@pytest.mark.parametrize('k', [7, 30, 200])
@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_neighbors_are_exact_in_any_order_of_the_bank(monkeypatch, bank_chunk, order, k, dtype):
    """Many ties; a bank in which each chunk beats the last, or none does; k above a chunk."""
    queries, bank = sign_rows(9, 9, seed=1), sign_rows(2000, 300)
    if order != 'random':
        bank = bank[(bank @ queries[0]).sort(descending=order == 'falling').indices]
    monkeypatch.setattr(knn, 'CHUNKS', (4, bank_chunk))
    check_neighbors(queries.to(getattr(torch, dtype)), bank.to(getattr(torch, dtype)), k)


def test_rows_that_are_not_finite_raise_and_those_with_an_infinite_norm_do_not(monkeypatch):
    monkeypatch.setattr(knn, 'CHUNKS', (8, 16))
    queries, bank, _ = make_data()
    bank[4] = 1e38
    similarities, indices = find_neighbors(queries, bank, len(bank))
    assert similarities[indices == 4].tolist() == [0.0] * len(queries)
    bank[50, 3] = math.inf
    with pytest.raises(ValueError, match='Row 50 of the bank'):
        find_neighbors(queries, bank, 3)


def test_ties_of_votes_go_to_the_lower_class_in_any_order_of_the_votes():
    query = torch.tensor([[1.0, 0.0]])
    bank, labels = query.expand(4, 2), torch.tensor([4, 2, 4, 2])
    assert knn_predict(query, bank, labels, (4,))[4].tolist() == [[2, 4, -1, -1, -1]]
    # Classes 0 and 1 have the same votes in another order: in floating point one sum is larger.
    weights = torch.tensor([1.0, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64)
    for labels in ([2, 0, 1, 1, 0, 0, 1], [2, 1, 0, 0, 1, 1, 0]):
        classes = vote(weights.log()[None] * 0.07, torch.tensor([labels]), 3, 0.07)
        assert classes.tolist() == [[2, 0, 1]]


def test_k_larger_than_the_bank_uses_all_of_it_with_a_warning():
    queries, bank, labels = make_data(num_bank=6)
    assert knn_predict(queries[:0], bank, labels, (3,))[3].shape == (0, 5)
    with pytest.warns(UserWarning, match='k = 200 exceeds the bank of 6'):
        predictions = knn_predict(queries, bank, labels, (5, 6, 10, 200))
    assert torch.equal(predictions[10], predictions[6])
    assert torch.equal(predictions[200], predictions[6])
    assert torch.equal(predictions[5], naive_predict(queries, bank, labels, 5, 0.07, 5))


def test_invalid_input_raises():
    queries, bank, labels = make_data()
    arguments = dict(queries=queries, bank=bank, bank_labels=labels, num_neighbors=(3,))
    for message, change in {
        'num_neighbors must be integers': dict(num_neighbors=(0,)),
        'temperature must be positive': dict(temperature=0.0),
        'same D': dict(bank=torch.zeros(97, 5)),
        'bank is empty': dict(bank=torch.zeros(0, 12), bank_labels=torch.zeros(0)),
        'Row 0 of the queries': dict(queries=torch.full((2, 12), math.nan)),
        r'must be \(97,\) classes from 0': dict(bank_labels=torch.full((97,), -1)),
    }.items():
        with pytest.raises(ValueError, match=message):
            knn_predict(**arguments | change)


@pytest.mark.parametrize('chunks', [(5, 7), knn.CHUNKS])
@pytest.mark.parametrize('threshold', [-0.5, 0.3, 0.9])
def test_near_duplicates_are_all_pairs_once(monkeypatch, chunks, threshold):
    monkeypatch.setattr(knn, 'CHUNKS', chunks)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 6, generator=generator)
    features[40:] = features[:20] + 0.1 * torch.randn(20, 6, generator=generator)
    features[30] = features[31] = features[32] = 5 * features[3]  # the same, of another length
    unit = F.normalize(features.double(), dim=1)
    cosines = (unit @ unit.T).tolist()
    expected = {(i, j) for i, j in combinations(range(60), 2) if cosines[i][j] >= threshold}
    pairs = find_near_duplicates(features, threshold).tolist()
    assert len(pairs) == len(expected) > 20
    for first, second, cosine in pairs:
        assert (first, second) in expected
        assert cosine == pytest.approx(cosines[int(first)][int(second)], abs=1e-6)
    cosines = [cosine for *_, cosine in pairs]
    assert cosines == sorted(cosines, reverse=True)
    assert find_near_duplicates(torch.eye(4), 0.5).shape == (0, 3)
    with pytest.raises(ValueError, match=r'above -1 and at most 1; got 97\.0'):
        find_near_duplicates(torch.eye(4), 97.0)


def test_copies_are_near_duplicates_from_a_cosine_of_one():
    features = torch.randn(100, 384, generator=torch.Generator().manual_seed(0))
    pairs = find_near_duplicates(torch.cat([features, features]), 1.0)
    assert sorted(pairs[:, :2].tolist()) == [[n, n + 100] for n in range(100)]
