import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from mmpatchmix.evaluation.features import Features
from mmpatchmix.evaluation.linear_probe import fit_linear, linear_probe, low_shot, low_shot_indices


def make_features(size, seed, num_classes=4, dim=6, spread=1.0):
    """Gaussian clouds around fixed centres."""
    centres = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % num_classes
    noise = torch.randn(size, dim, generator=generator)
    return Features(centres[labels] + spread * noise, labels)


def fit_one(features, labels, rate, num_classes, num_epochs, batch_size, seed):
    """Train the same classifier by torch's own layer, optimizer and schedule."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(features.shape[1], num_classes)
    start = torch.randn(1, features.shape[1], num_classes, generator=generator) * 0.01
    with torch.no_grad():
        layer.weight.copy_(start[0].T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    num_steps = num_epochs * math.ceil(len(features) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * step / num_steps)) / 2
    )
    for _ in range(num_epochs):
        order = torch.randperm(len(features), generator=generator)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return layer


def test_each_classifier_equals_the_one_trained_alone():
    features, labels = make_features(50, seed=0)
    rates = (0.01, 0.3, 2.0)
    settings = dict(num_classes=4, num_epochs=4, batch_size=16, seed=3)
    weight, bias = fit_linear(features, labels, rates, **settings)
    for index, rate in enumerate(rates):
        layer = fit_one(features, labels, rate, **settings)
        assert torch.allclose(weight[index].T, layer.weight, atol=1e-5)
        assert torch.allclose(bias[index, 0], layer.bias, atol=1e-5)
    assert not torch.allclose(weight[0], weight[1], atol=1e-2)


def test_probe_chooses_its_rate_on_held_out_training_images():
    train, test = make_features(400, seed=0), make_features(200, seed=1)
    rates = (1e-6, 0.1)
    metrics = linear_probe(train, test, rates, num_epochs=20, batch_size=64)
    assert metrics['linear/lr'] == 0.1
    assert metrics['linear/heldout_top1_lr0.1'] > metrics['linear/heldout_top1_lr1e-06']
    # Wrong labels of the test set change the accuracy but not the choice.
    wrong = Features(test.features, (test.labels + 1) % 4)
    other = linear_probe(train, wrong, rates, num_epochs=20, batch_size=64)
    assert other['linear/lr'] == 0.1
    assert other['linear/top1'] < 40 < 70 < metrics['linear/top1'] <= 100
    assert metrics['linear/top5'] == 100.0  # four classes
    # A common offset changes nothing: features are standardised.
    plain = linear_probe(train, test, (0.1,), num_epochs=10)
    train, test = (part._replace(features=part.features * 0.125 + 8) for part in (train, test))
    moved = linear_probe(train, test, (0.1,), num_epochs=10)
    assert moved['linear/top1'] == pytest.approx(plain['linear/top1'], abs=0.5)
    assert plain['linear/top1'] > 70


def test_top1_is_the_accuracy_of_the_final_classifier():
    train, test = make_features(100, seed=0, spread=2.0), make_features(60, seed=1, spread=2.0)
    metrics = linear_probe(train, test, (0.1,), num_epochs=5, batch_size=32, seed=2)
    scaler = StandardScaler().fit(train.features)
    scaled = torch.from_numpy(scaler.transform(train.features)).float()
    layer = fit_one(scaled, train.labels, 0.1 * 32 / 256, 4, 5, 32, seed=2)
    logits = layer(torch.from_numpy(scaler.transform(test.features)).float())
    expected = (logits.argmax(1) == test.labels).double().mean().item()
    assert 0.3 < expected < 0.99
    assert metrics['linear/top1'] == pytest.approx(100 * expected)


def test_one_image_per_class_is_trained_on_and_one_class_or_no_epoch_is_refused():
    train = Features(torch.eye(3), torch.arange(3))
    metrics = linear_probe(train, train, (0.1, 10.0), num_epochs=50)
    assert metrics['linear/top1'] == metrics['linear/heldout_top1_lr10'] == 100
    with pytest.raises(ValueError, match='1 epoch or more; got 0'):
        linear_probe(train, train, num_epochs=0)
    with pytest.raises(ValueError, match='of two classes or more'):
        linear_probe(*[Features(torch.eye(3), torch.zeros(3, dtype=torch.int64))] * 2)


def test_low_shot_lists_are_stratified_and_depend_on_labels_fraction_and_seed_alone():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 3)
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    first = low_shot_indices(labels, 0.1, seed=0)
    assert labels[first].bincount().tolist() == [5, 2, 1]
    assert first.tolist() == sorted(set(first.tolist()))
    assert torch.equal(low_shot_indices(labels, 1.0, seed=0), torch.arange(len(labels)))
    with pytest.raises(ValueError, match='above 0 and at most 1; got 10'):
        low_shot_indices(labels, 10, seed=0)
    # Class by class, the first entries of one generator's permutations.
    generator = torch.Generator().manual_seed(7)
    expected = []
    for label in (0, 1):
        places = torch.randperm(20, generator=generator)[:2].tolist()
        expected += [2 * place + label for place in places]
    torch.manual_seed(123)
    assert low_shot_indices(torch.arange(40) % 2, 0.1, seed=7).tolist() == sorted(expected)


def test_low_shot_is_logistic_regression_on_the_list():
    train, test = make_features(200, seed=0, spread=2.0), make_features(100, seed=1, spread=2.0)
    metrics = low_shot(train, test, 0.05, seeds=(0, 1))
    scores = []
    for seed in (0, 1):
        rows = low_shot_indices(train.labels, 0.05, seed)
        scaler = StandardScaler().fit(train.features[rows])
        model = LogisticRegression(max_iter=1000)
        model.fit(scaler.transform(train.features[rows]), train.labels[rows])
        scores.append(100 * model.score(scaler.transform(test.features), test.labels))
    assert metrics['lowshot_5pct/top1'] == pytest.approx(sum(scores) / 2)
    assert metrics['lowshot_5pct/top1_std'] == pytest.approx(abs(scores[0] - scores[1]) / 2)
    assert metrics['lowshot_5pct/num_images'] == 8  # round(0.05 * 50) of each of four
    with pytest.raises(ValueError, match='needs labels'):
        linear_probe(train._replace(labels=None), test)
    with pytest.raises(ValueError, match=r'Classes \[4, 5\] of the test set'):
        low_shot(train, test._replace(labels=test.labels + 2), 0.5)
