"""Figures of health against closed forms, and troubles of good and bad runs."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper

from mmpatchmix.evaluation.features import TrainingFeatures
from mmpatchmix.evaluation.health import MOST_LINES, Line, feature_std, find_troubles, thin_out
from mmpatchmix.models import contrastive_head
from tests.models.tiny import tiny_model, uint8_batch


def test_feature_std_of_known_spreads():
    axes = torch.eye(5)
    assert feature_std(torch.cat([axes, -axes]) * 7) == pytest.approx(1)
    assert feature_std(torch.ones(9, 4)) == pytest.approx(0, abs=1e-9)
    # Two of four directions: two standard deviations of sqrt(1/2), two of 0, times sqrt(4) / 4.
    half = torch.cat([axes[:2], -axes[:2]])[:, :4]
    assert feature_std(half) == pytest.approx(math.sqrt(1 / 2))


@pytest.mark.parametrize(('images', 'rank'), [(None, 0), (range(2, 5), 1)])
def test_similarities_are_means_over_pairs(monkeypatch, images, rank):
    """Of two ranks with 6 images each, pair by pair."""
    monkeypatch.setattr(contrastive_head.dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(contrastive_head.dist, 'get_rank', lambda: rank)
    generator = torch.Generator().manual_seed(0)
    keys = F.normalize(torch.randn(12, 4, generator=generator), dim=1)
    numbers = list(images or range(6))
    queries = F.normalize(torch.randn(len(numbers), 4, generator=generator), dim=1)
    own, others = [], []
    for query, number in zip(queries.tolist(), numbers, strict=True):
        for index, key in enumerate(keys.tolist()):
            cosine = sum(a * b for a, b in zip(query, key, strict=True))
            (own if index == 6 * rank + number else others).append(cosine)
    found = tiny_model().head.measure_similarity(queries, keys, images)
    assert found['health/positive_similarity'].item() == pytest.approx(sum(own) / len(own))
    expected = sum(others) / len(others)
    assert found['health/negative_similarity'].item() == pytest.approx(expected, abs=1e-6)


def test_gaps_of_the_terms_add_up_to_that_of_the_loss():
    model = tiny_model().train()
    inputs = model.data_preprocessor(uint8_batch(6, num_local=2), training=True)['inputs']
    losses = model(inputs, mode='loss')
    # Terms of one contrast, and local ones that are sums over two keys.
    weights = dict(source=1, mix_source=0.5, mix_mix=0.5, local=2, mix_local=2)
    total = sum(weight * losses[f'kl_{name}'] for name, weight in weights.items())
    assert losses['kl'].item() == pytest.approx(total.item(), rel=1e-5)
    # Of whole images the target is one key: its entropy is 0.
    assert losses['kl_source'].item() == pytest.approx(losses['loss_source'].item())


@pytest.mark.parametrize('micro_batch_size', [None, 3])
@pytest.mark.parametrize('momentum_encoder', [dict(type='mmpatchmix.MomentumEncoder'), None])
def test_features_of_a_step_are_those_of_its_views(momentum_encoder, micro_batch_size):
    model = tiny_model(momentum_encoder=momentum_encoder, micro_batch_size=micro_batch_size)
    model.train()
    seen, views = TrainingFeatures(model), {}

    def keep(module, args, output):
        views.update({name: output['inputs'][name] for name in ('view_1', 'view_2')})

    model.data_preprocessor.register_forward_hook(keep)
    cfg = ConfigDict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))
    assert seen.take() is None
    model.train_step(uint8_batch(), build_optim_wrapper(model, cfg))
    found = seen.take()
    with torch.no_grad():
        expected = torch.stack([model.extract_feat(view) for view in views.values()], dim=1)
    assert found.shape == (6, 2, 16) and not found.requires_grad
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=1e-2)
    assert seen.take() is None  # each step once
    model.eval().extract_feat(torch.ones(4, 3, 16, 16))
    (model.momentum_encoder or model).neck((torch.ones(4, 16),))
    assert seen.take() is None  # of evaluation none


def run(kl_source, num_iters=400, every=10, lr=None, rank=9.0, share=0.2, gap=1.0):
    """Return lines of a run whose figures are functions of the share that is done."""
    lines = []
    for done in range(every, num_iters + 1, every):
        at = done / num_iters
        kl = kl_source(at) if callable(kl_source) else kl_source
        noise = 0.02 * math.sin(37.0 * done)
        rate = lr(at) if lr else math.cos(math.pi * at / 2)
        lines.append(Line(done, rate, share, gap + kl + noise, kl + noise, rank))
    return lines


def found(lines, num_iters=400, num_keys=64, **options):
    """Return the iteration at which each trouble is found first."""
    found = {}
    for end in range(1, len(lines) + 1):
        for trouble in find_troubles(lines[:end], num_iters, num_keys, **options):
            found.setdefault(trouble.name, lines[end - 1].iteration)
    return found


GUESS = math.log(64)


def fall(at):
    return GUESS * (1.05 - 0.7 * at)


def bounce(back, turn=0.5):
    return lambda at: 4.0 - 4 * min(at, turn) + back * max(at - turn, 0)


@pytest.mark.parametrize(
    ('lines', 'expected'),
    [
        (run(lambda at: GUESS * (0.4 + 0.65 * math.exp(-4 * at))), {}),  # as its rate falls
        (run(fall, rank=1.5), {}),  # few dimensions alone are no collapse
        (run(bounce(16)), {'plateau': 220, 'divergence': 230}),  # 4 to 2, and over 3
        (run(bounce(1.0), lr=lambda at: 1 - at), {}),
        (run(bounce(0, 0.3), lr=lambda at: 1.0), {'plateau': 200}),
        (run(bounce(0, 0.3), lr=lambda at: max(0.1, 1 - 2 * at)), {}),
        (run(fall, share=0.6), {'starving': 30}),
        (run(fall, share=0.6)[:2], {}),
        ([Line(10 * n, 1.0, 0.7) for n in range(1, 20)], {'starving': 30}),  # without kl
    ],
)
def test_troubles_of_runs(lines, expected):
    assert found(lines) == expected
    if 'starving' in expected:
        assert found(lines, loads_beside=False) == {}


@pytest.mark.parametrize(('rank', 'name'), [(1.3, 'collapse'), (math.nan, 'plateau')])
def test_guessing_is_found_after_a_quarter_of_the_run(rank, name):
    assert found(run(GUESS, 1200, rank=rank), 1200) == {name: 300}
    assert found(run(GUESS, 400, rank=rank), 400) == {name: 200}  # in a short run some iterations
    assert found(run(GUESS, 100, rank=rank), 100) == {}
    if name == 'plateau':  # in a long run before a quarter: after 1,000 iterations of warm-up
        lines = run(GUESS, 100_000, every=50, lr=lambda at: min(1.0, at / 0.01))
        assert found(lines[:100], num_iters=100_000) == {'plateau': 3050}


def test_the_number_of_lines_is_bounded():
    lines = run(fall, num_iters=20_000, every=1)
    kept = []
    for line in lines:
        kept.append(line)
        thin_out(kept)
        assert kept[-3:] == lines[max(0, line.iteration - 3) : line.iteration]
        assert len(kept) <= MOST_LINES
    assert kept[0] == lines[0] and kept == sorted(kept)
    assert list(find_troubles(kept, 20_000, 64)) == []
    lost = [*kept, kept[0]._replace(iteration=20_001)]
    assert [trouble.name for trouble in find_troubles(lost, 20_000, 64)] == ['divergence']
