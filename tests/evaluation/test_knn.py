import math

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from mmpatchmix.evaluation.knn import find_neighbors, knn_predict, vote

KS = (1, 3, 10, 40)


def make_data(seed=0, num_bank=97, num_queries=31, dim=12, num_classes=7):
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randn(num_bank, dim, generator=generator)
    queries = torch.randn(num_queries, dim, generator=generator)
    labels = torch.randint(num_classes, (num_bank,), generator=generator)
    return queries, bank, labels


def naive_predict(queries, bank, labels, k, temperature, top):
    """Double loop in Python floats: cosine, sort, add up, sort."""
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


@pytest.mark.parametrize('k', KS)
def test_equals_scikit_learn_where_votes_are_uniform(k):
    queries, bank, labels = make_data(seed=1)
    reference = KNeighborsClassifier(k, metric='cosine', algorithm='brute').fit(bank, labels)
    predictions = knn_predict(queries, bank, labels, (k,), temperature=None)[k]
    assert predictions[:, 0].tolist() == reference.predict(queries).tolist()


def test_neighbors_equal_scikit_learn():
    queries, bank, labels = make_data(seed=2)
    reference = KNeighborsClassifier(20, metric='cosine', algorithm='brute').fit(bank, labels)
    distances, expected = reference.kneighbors(queries)
    similarities, indices = find_neighbors(queries, bank, 20, query_chunk=7, bank_chunk=13)
    assert indices.tolist() == expected.tolist()
    assert torch.allclose(
        1 - similarities.double(), torch.from_numpy(distances).double(), atol=1e-6
    )


@pytest.mark.parametrize(
    ('query_chunk', 'bank_chunk'), [(1, 1), (5, 2), (31, 97), (7, 40), (64, 96)]
)
def test_chunks_do_not_change_the_result(query_chunk, bank_chunk):
    queries, bank, labels = make_data(seed=3)
    whole = knn_predict(queries, bank, labels, KS)
    chunked = knn_predict(queries, bank, labels, KS, query_chunk=query_chunk, bank_chunk=bank_chunk)
    for k in KS:
        assert torch.equal(whole[k], chunked[k])


@pytest.mark.parametrize('bank_chunk', [1, 2, 3, 64])
def test_ties_go_to_the_lower_bank_index(bank_chunk):
    # Signs in 16 dimensions: norms are 4, so every cosine is exact in float32.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 2, (4, 16), generator=generator).float() * 2 - 1
    bank = rows[[1, 0, 2, 0, 3, 0, 0, 1]]
    similarities, indices = find_neighbors(rows[:1], bank, 4, bank_chunk=bank_chunk)
    assert indices.tolist() == [[1, 3, 5, 6]]
    assert similarities.tolist() == [[1.0, 1.0, 1.0, 1.0]]
    _, fewer = find_neighbors(rows[:1], bank, 2, bank_chunk=bank_chunk)
    assert fewer.tolist() == [[1, 3]]


def sign_rows(num_rows, num_distinct, dim=16, seed=0):
    """Rows of +-1 with repetitions: norms are 4, so every cosine is exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randint(0, 2, (num_distinct, dim), generator=generator).float() * 2 - 1
    return distinct[torch.randint(num_distinct, (num_rows,), generator=generator)]


def exact_neighbors(queries, bank, k):
    """All similarities in float64, sorted stably: the lower index first among equals."""
    queries, bank = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (queries, bank))
    similarities, indices = (queries @ bank.T).sort(dim=1, descending=True, stable=True)
    return similarities[:, :k], indices[:, :k]


# Nearest of 64 columns are looked at first where the block is a multiple of it, else of 16, 4 ...
@pytest.mark.parametrize('bank_chunk', [16, 100, 128, 1024])
@pytest.mark.parametrize('order', ['random', 'rising', 'falling'])
@pytest.mark.parametrize('num_neighbors', [1, 7, 200])
def test_neighbors_are_exact_whatever_the_order_of_the_bank(bank_chunk, order, num_neighbors):
    """Many ties; a bank in which each chunk beats the last, or none does; k above a chunk."""
    queries, bank = sign_rows(9, 9, seed=1), sign_rows(2000, 300)
    if order != 'random':
        ranks = (bank @ queries[0]).sort(descending=order == 'falling').indices
        bank = bank[ranks]
    similarities, indices = find_neighbors(
        queries, bank, num_neighbors, query_chunk=4, bank_chunk=bank_chunk
    )
    expected_similarities, expected = exact_neighbors(queries, bank, num_neighbors)
    assert torch.equal(indices, expected)
    assert torch.equal(similarities.double(), expected_similarities)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_neighbors_are_exact(dtype):
    queries, bank = sign_rows(5, 5, seed=1).to(dtype), sign_rows(700, 100).to(dtype)
    _, indices = find_neighbors(queries, bank, 30, bank_chunk=64)
    assert torch.equal(indices, exact_neighbors(queries, bank, 30)[1])


def test_equal_rows_throughout_give_the_first_ones():
    bank = torch.ones(500, 16)
    _, indices = find_neighbors(bank[:3], bank, 10, bank_chunk=64)
    assert indices.tolist() == [list(range(10))] * 3


def test_one_query_may_find_many_in_a_block_that_has_none_for_the_others():
    """Its candidates must not spill into the rows of others."""
    queries = torch.eye(4, 16)
    bank = torch.zeros(256, 16)
    bank[:, 15] = 1.0  # similarity 0 to all queries
    bank[130:170, 2] = torch.linspace(0.1, 5, 40)
    similarities, indices = find_neighbors(queries, bank, 20, bank_chunk=128)
    assert indices[2].tolist() == list(range(169, 149, -1))
    for other in (0, 1, 3):
        assert indices[other].tolist() == list(range(20))
    assert (similarities[2] > 0.5).all() and (similarities[[0, 1, 3]] == 0).all()


def test_features_that_require_gradients_are_searched_without():
    queries, bank, _ = make_data()
    similarities, _ = find_neighbors(queries.requires_grad_(), bank.requires_grad_(), 3)
    assert not similarities.requires_grad


def test_finite_rows_with_a_norm_beyond_float32_are_no_error():
    queries, bank, _ = make_data()
    bank[4] = 1e38
    similarities, indices = find_neighbors(queries, bank, len(bank))
    assert similarities[indices == 4].tolist() == [0.0] * len(queries)


def test_ties_of_votes_go_to_the_lower_class():
    query = torch.tensor([[1.0, 0.0]])
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    labels = torch.tensor([4, 2, 4, 2])
    assert knn_predict(query, bank, labels, (4,), top=2)[4].tolist() == [[2, 4]]


def test_sum_of_votes_does_not_depend_on_their_order():
    # Classes 0 and 1 have the same votes in another order: in floating point one sum is larger.
    weights = torch.tensor([1.0, 0.3, 0.3, 0.2, 0.2, 0.1, 0.1], dtype=torch.float64)
    for labels in ([2, 0, 1, 1, 0, 0, 1], [2, 1, 0, 0, 1, 1, 0]):
        classes = vote(weights.log()[None] * 0.07, torch.tensor([labels]), 3, 0.07)
        assert classes.tolist() == [[2, 0, 1]]


def test_k_larger_than_the_bank_uses_all_of_it_and_says_so():
    queries, bank, labels = make_data(num_bank=6)
    with pytest.warns(UserWarning, match='k = 200 exceeds the bank of 6'):
        predictions = knn_predict(queries, bank, labels, (5, 6, 10, 200))
    assert torch.equal(predictions[10], predictions[6])
    assert torch.equal(predictions[200], predictions[6])
    assert torch.equal(predictions[5], naive_predict(queries, bank, labels, 5, 0.07, 5))


def test_a_class_without_a_neighbor_is_never_predicted():
    queries, bank, labels = make_data()
    predictions = knn_predict(queries, bank, labels, (1,))[1]
    assert (predictions[:, 0] >= 0).all()
    assert (predictions[:, 1:] == -1).all()


def test_scale_of_features_does_not_matter():
    queries, bank, _ = make_data()
    scale = torch.rand(len(bank), 1, generator=torch.Generator().manual_seed(0)) + 0.5
    _, expected = find_neighbors(queries, bank, 10)
    _, indices = find_neighbors(queries * 64, bank * scale, 10)
    assert torch.equal(indices, expected)


def test_half_precision_features_are_compared_in_float32():
    queries, bank, _ = make_data()
    similarities, _ = find_neighbors(queries.half(), bank.half(), 10)
    expected, _ = find_neighbors(queries.half().float(), bank.half().float(), 10)
    assert torch.equal(similarities, expected)


def test_no_query_gives_no_prediction():
    queries, bank, labels = make_data()
    assert knn_predict(queries[:0], bank, labels, (3,))[3].shape == (0, 5)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(num_neighbors=()), 'num_neighbors must be integers'),
        (dict(num_neighbors=(0,)), 'num_neighbors must be integers'),
        (dict(temperature=0.0), 'temperature must be positive'),
        (dict(bank=torch.zeros(97, 5)), 'same D'),
        (dict(bank=torch.zeros(0, 12), bank_labels=torch.zeros(0)), 'bank is empty'),
        (dict(bank_labels=torch.zeros(3)), r'must be \(97,\) classes'),
        (dict(queries=torch.full((2, 12), math.nan)), 'Row 0 of the queries'),
        (dict(bank_labels=torch.full((97,), -1)), r'must be \(97,\) classes from 0'),
    ],
)
def test_bad_input_is_refused(change, message):
    queries, bank, labels = make_data()
    arguments = dict(queries=queries, bank=bank, bank_labels=labels, num_neighbors=(3,)) | change
    with pytest.raises(ValueError, match=message):
        knn_predict(**arguments)


def test_a_search_for_no_neighbor_is_refused():
    queries, bank, _ = make_data()
    with pytest.raises(ValueError, match='num_neighbors=0 is below 1'):
        find_neighbors(queries, bank, 0)


def test_broken_bank_row_is_named_across_chunks():
    queries, bank, _ = make_data()
    bank[50, 3] = math.inf
    with pytest.raises(ValueError, match='Row 50 of the bank'):
        find_neighbors(queries, bank, 3, bank_chunk=16)
