"""Predicted shares against a computation image by image, and class agreement against pairs."""

import pytest
import torch
import torch.nn.functional as F

from mmpatchmix.evaluation import similarity
from mmpatchmix.evaluation.features import Features
from mmpatchmix.evaluation.similarity import calibrate, class_agreement, predict_shares
from mmpatchmix.models.mixing import group_shares, mix_patches
from tests.models.tiny import tiny_model


def test_unequal_groups_take_every_size_and_every_position():
    generator = torch.Generator().manual_seed(0)
    sizes = set()
    for _ in range(300):
        groups = similarity.draw_unequal_groups(8, 2, generator)
        count = groups.bincount(minlength=2)
        assert count.sum() == 8 and (count > 0).all()
        sizes.add(int(count[0]))
    assert sizes == set(range(1, 8))
    assert similarity.draw_unequal_groups(4, 4, generator).sort().values.tolist() == [0, 1, 2, 3]
    draws = [similarity.draw_unequal_groups(6, 3, generator) for _ in range(3000)]
    for group in range(3):  # each position belongs to each group in a third of the draws
        shares = (torch.stack(draws) == group).float().mean(0)
        torch.testing.assert_close(shares, torch.full((6,), 1 / 3), atol=0.04, rtol=0)


def test_predicted_shares_equal_those_computed_image_by_image():
    model = tiny_model().train()
    images = torch.randn(5, 3, 16, 16)
    with pytest.raises(ValueError, match='2 images'):
        predict_shares(model, images[:2], 3)
    true, predicted = predict_shares(model, images, num_mix=3, num_draws=2, seed=4)
    assert model.training
    model.eval()
    generator = torch.Generator().manual_seed(4)
    patch_size = model.data_preprocessor.patch_size
    momentum = model.momentum_encoder
    with torch.no_grad():
        for draw in range(2):
            groups = similarity.draw_unequal_groups((16 // patch_size) ** 2, 3, generator)
            assert torch.equal(true[draw], group_shares(groups, 3))
            mixed = mix_patches(images, groups, patch_size)
            for n in range(5):
                query = model.head.predict(model.neck(model.backbone(mixed[[n]]))[0])
                sources = [images[[(n + j) % 5]] for j in range(3)]
                keys = [momentum.neck(momentum.backbone(source))[0] for source in sources]
                cosine = F.cosine_similarity(query, torch.cat(keys))
                expected = (cosine / model.head.temperature).softmax(0)
                torch.testing.assert_close(predicted[draw, n], expected, atol=1e-5, rtol=1e-4)


def test_calibration_of_perfect_constant_and_scattered_predictions():
    true = torch.tensor([[0.1, 0.9], [0.35, 0.65], [0.5, 0.5]])
    result = calibrate(true, true[:, None].repeat(1, 4, 1))
    assert result['error'] == pytest.approx(0, abs=1e-6)
    assert result['mean_abs_error'] == pytest.approx(0, abs=1e-6)
    assert result['correlation'] == pytest.approx(1)
    assert sum(point[3] for point in result['curve']) == 24

    result = calibrate(torch.tensor([[0.2, 0.8], [0.4, 0.6]]), torch.full((2, 3, 2), 0.5))
    for name in ('mean_abs_error', 'constant_error', 'error'):
        assert result[name] == pytest.approx(0.2)  # 0.3, 0.3, 0.1, 0.1
    assert result['correlation'] == 0

    scattered = torch.tensor([[[0.15, 0.85], [0.35, 0.65]]])  # right on average
    result = calibrate(torch.tensor([[0.25, 0.75]]), scattered)
    assert result['error'] == pytest.approx(0, abs=1e-6)
    assert result['mean_abs_error'] == pytest.approx(0.1)
    assert result['curve'][0] == pytest.approx((0.25, 0.25, 0.1, 2))


@pytest.mark.parametrize('chunk', [4, 512])
def test_class_agreement_equals_counting_pairs(chunk, monkeypatch):
    monkeypatch.setattr(similarity, '_CHUNK', chunk)
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(12, 4, generator=generator)
    labels = torch.randint(3, (12,), generator=generator)
    unit = F.normalize(features, dim=1)
    aurocs, precision = [], []
    for n in range(12):
        others = [m for m in range(12) if m != n]
        cosine = {m: float(unit[n] @ unit[m]) for m in others}
        same = [m for m in others if labels[m] == labels[n]]
        different = [m for m in others if labels[m] != labels[n]]
        wins = [cosine[a] > cosine[b] for a in same for b in different]
        aurocs.append(sum(wins) / len(wins))
        nearest = sorted(others, key=cosine.get, reverse=True)[:5]
        precision.append(sum(bool(labels[m] == labels[n]) for m in nearest) / 5)
    result = class_agreement(Features(features, labels), ranks=(5, 12))
    assert result.keys() == {'auroc', 'precision_at_5'}  # there are 11 others
    assert result['auroc'] == pytest.approx(sum(aurocs) / 12)
    assert result['precision_at_5'] == pytest.approx(sum(precision) / 12)


@pytest.mark.parametrize('sizes', [(250, 50), (50, 250)])
def test_equal_similarities_count_by_half_in_any_order_of_the_files(sizes):
    labels = torch.arange(2).repeat_interleave(torch.tensor(sizes))
    result = class_agreement(Features(torch.ones(300, 4), labels), ranks=(1,))
    assert result['auroc'] == pytest.approx(0.5)
