"""The head against a dense, float64, one-element-at-a-time contrast."""

import math

import pytest
import torch
from mmengine import dist

from mmpatchmix.models import ContrastiveHead, draw_groups, mix_to_mix, mix_to_source


def make_head(**kwargs):
    predictor = dict(type='mmpretrain.NonLinearNeck', in_channels=8, hid_channels=16)
    predictor |= dict(out_channels=8, norm_cfg=dict(type='BN1d'), with_avg_pool=False)
    return ContrastiveHead(predictor=predictor, **kwargs)


def naive_rows(target, num_images, num_keys, smoothing, rank):
    """Dense target rows (N, W * N), entry by entry."""
    offsets, weights = target if target is not None else (torch.tensor([0]), torch.tensor([1.0]))
    rows = torch.full((num_images, num_keys), smoothing / num_keys, dtype=torch.float64)
    for n in range(num_images):
        for offset, weight in zip(offsets.tolist(), weights.tolist(), strict=True):
            rows[n, rank * num_images + (n + offset) % num_images] += (1 - smoothing) * weight
    return rows


def naive_contrast(queries, keys, rows, temperature):
    """-mean_n sum_m Y_nm log softmax_m(q_n . k_m / tau), in float64."""
    total = 0.0
    for n in range(len(queries)):
        logits = torch.stack([queries[n].double() @ key.double() for key in keys]) / temperature
        log_softmax = logits - torch.log(torch.exp(logits).sum())
        total = total - (rows[n % len(rows)] * log_softmax).sum()
    return total / len(queries)


def unit(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
@pytest.mark.parametrize('views', [1, 3])
@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('num_mix', [None, 1, 2, 3, 7])
def test_loss_and_gradient_equal_the_dense_float64_contrast(
    monkeypatch, smoothing, views, rank, num_mix
):
    """Two ranks of 5 images; with num_mix=7 the offsets wrap around."""
    num_images, world_size = 5, 2
    monkeypatch.setattr(dist, 'get_world_size', lambda: world_size)
    monkeypatch.setattr(dist, 'get_rank', lambda: rank)
    groups = draw_groups(16, num_mix or 1)
    target = None if num_mix is None else mix_to_mix(groups, groups, num_mix)
    keys = unit(world_size * num_images, 8, seed=1)
    queries = unit(views * num_images, 8, seed=2).requires_grad_()
    naive_queries = queries.detach().clone().requires_grad_()
    rows = naive_rows(target, num_images, len(keys), smoothing, rank)

    # The temperature of mixes is that of contrasts with a target.
    tau = dict(temperature=0.3, mix_temperature=0.2) if target else dict(temperature=0.2)
    head = make_head(**tau, label_smoothing=smoothing)
    loss, _, kl = head.contrast(queries, keys, target)
    expected = naive_contrast(naive_queries, keys, rows, 0.2)
    torch.testing.assert_close(loss.double(), expected, atol=2e-6, rtol=0)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(queries.grad, naive_queries.grad, atol=1e-6, rtol=1e-5)
    entropy = -sum(y * math.log(y) for y in rows[0].tolist() if y > 0)
    torch.testing.assert_close(kl.double(), expected.detach() - entropy, atol=3e-6, rtol=0)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_loss_and_accuracy_of_a_part_of_the_images(smoothing):
    """Three views of images 2 and 3 of 5."""
    keys = unit(5, 8, seed=1)
    groups = draw_groups(16, 3)
    target = mix_to_source(groups, 3)
    queries = unit(6, 8, seed=3)
    found = make_head(label_smoothing=smoothing).contrast(queries, keys, target, range(2, 4))
    rows = naive_rows(target, 5, 5, smoothing, 0)[2:4]
    expected = naive_contrast(queries, keys, rows, 0.2)
    torch.testing.assert_close(found.loss.double(), expected, atol=2e-6, rtol=0)
    entropy = -sum(y * math.log(y) for y in rows[0].tolist() if y > 0)
    assert found.kl.item() == pytest.approx(expected.item() - entropy, abs=3e-6)
    nearest = (queries @ keys.T).argmax(1)
    has_weight = naive_rows(target, 5, 5, 0.0, 0)[2:4].repeat(3, 1) > 0
    hits = [has_weight[row, key].item() for row, key in enumerate(nearest.tolist())]
    assert found.accuracy.item() == pytest.approx(sum(hits) / len(hits))


def test_bf16_queries_are_contrasted_in_float32():
    keys, queries = unit(6, 8, seed=3), unit(6, 8, seed=4)
    head = make_head()
    expected = head.contrast(queries, keys).loss
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert head.predict(torch.randn(6, 8)).dtype == torch.float32
        loss = head.contrast(queries, keys).loss
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def test_arguments_out_of_range_are_refused():
    wrong = [('temperature', 0), ('temperature', None), ('mix_temperature', 0)]
    for name, value in [*wrong, ('label_smoothing', 1.0)]:
        with pytest.raises(ValueError, match=f'{name}={value}'):
            make_head(**{name: value})
