"""Train linear classifiers on frozen features: many learning rates in one go, and few labels.

Features are extracted once (no augmentation), so a probe takes seconds where
`configs/linear` takes hours; expect it some tenths of a percent apart from
training on augmented views.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmpatchmix.evaluation.features import Features

# Per 256 images; a factor of two to three between neighbours.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_HOLDOUT = 0.1


class LinearClassifiers(NamedTuple):
    """One linear classifier per learning rate."""

    weight: Tensor  # (L, D, C) float32
    bias: Tensor  # (L, 1, C) float32


def fit_linear(
    features: Tensor,
    labels: Tensor,
    learning_rates: Sequence[float],
    num_classes: int,
    num_epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> LinearClassifiers:
    """Train one classifier per learning rate, all on the same batches.

    The recipe is that of linear probes: SGD with momentum 0.9, no weight decay,
    a cosine from the learning rate to 0 over the iterations, weights from a
    normal distribution of 0.01. Gradients of the classifiers do not mix, so
    each equals the one that would be trained alone.

    Args:
        features: (N, D) float.
        labels: (N,) int64.
        learning_rates: L rates, as they are used.
        num_classes: C.
        num_epochs: Passes over the features.
        batch_size: Features per step; the last batch may be smaller.
        seed: Of the initial weights and the order.
        device: Where to compute.

    Returns:
        LinearClassifiers: In the order of ``learning_rates``.
    """
    generator = torch.Generator().manual_seed(seed)
    features, labels = features.to(device), labels.to(device)
    rates = torch.tensor(list(learning_rates), device=device)  # (L,)
    start = torch.randn(1, features.shape[1], num_classes, generator=generator) * 0.01
    weight = start.to(device).repeat(len(rates), 1, 1).requires_grad_()  # (L, D, C)
    bias = torch.zeros(len(rates), 1, num_classes, device=device, requires_grad=True)
    # Under SGD a factor of a classifier's loss is a factor of its learning rate.
    optimizer = torch.optim.SGD([weight, bias], lr=1.0, momentum=0.9)
    num_steps = num_epochs * math.ceil(len(features) / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_epochs):
        order = torch.randperm(len(features), generator=generator).to(device)
        for rows in order.split(batch_size):
            logits = features[rows] @ weight + bias  # (L, n, C)
            targets = labels[rows].repeat(len(rates))
            losses = F.cross_entropy(logits.flatten(0, 1), targets, reduction='none')
            optimizer.zero_grad()
            (losses.view(len(rates), -1).mean(1) @ rates).backward()
            optimizer.step()
            schedule.step()
    return LinearClassifiers(weight.detach(), bias.detach())


def linear_probe(
    train: Features,
    test: Features,
    base_learning_rates: Sequence[float] = LEARNING_RATES,
    num_epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Judge features by a linear classifier, its learning rate chosen without the test set.

    The rates are compared on a tenth of the training features, held out class
    by class; the best one is then trained on all of them.

    Features are scaled to zero mean and unit variance of the training set, as a
    BatchNorm without parameters before the classifier would. That is still a
    linear classifier of the features; without it, features that share a large
    offset (class tokens after a LayerNorm do) are so badly conditioned that SGD
    stays ten percent short of logistic regression.

    Args:
        train: (N, D) and labels.
        test: (Q, D) and labels.
        base_learning_rates: Per 256 images; scaled by
            ``batch_size / 256``.
        num_epochs: Passes over the features.
        batch_size: Features per step.
        seed: Of the held-out part, the weights and the order.
        device: Where to compute.

    Returns:
        dict: ``linear/top1``, ``linear/top5`` in percent,
        ``linear/lr`` (per 256 images), and the held-out accuracy of each rate
        as ``linear/heldout_top1_lr0.1``.

    Raises:
        ValueError: If labels are missing, or a class of the test set is not in
            the training set.
    """
    num_classes = _check_labels(train, test)
    train, test = _standardize(train, test)
    settings = dict(num_epochs=num_epochs, batch_size=batch_size, seed=seed, device=device)
    scale = min(batch_size, len(train.labels)) / 256
    scaled = [rate * scale for rate in base_learning_rates]
    held = low_shot_indices(train.labels, _HOLDOUT, seed)
    kept = torch.ones(len(train.labels), dtype=torch.bool)
    kept[held] = False
    probes = fit_linear(train.features[kept], train.labels[kept], scaled, num_classes, **settings)
    heldout = _accuracy(probes, train.features[held], train.labels[held])[:, 0]  # (L,)
    best = int(heldout.argmax())
    final = fit_linear(train.features, train.labels, [scaled[best]], num_classes, **settings)
    top1, top5 = _accuracy(final, test.features, test.labels)[0].tolist()
    metrics = {'linear/top1': top1, 'linear/top5': top5, 'linear/lr': base_learning_rates[best]}
    for rate, accuracy in zip(base_learning_rates, heldout.tolist(), strict=True):
        metrics[f'linear/heldout_top1_lr{rate:g}'] = accuracy
    return metrics


def _standardize(train: Features, test: Features) -> tuple[Features, Features]:
    mean, std = train.features.mean(dim=0), train.features.std(dim=0, correction=0)  # (D,)
    std = std.where(std > 0, torch.ones(()))
    return tuple(part._replace(features=(part.features - mean) / std) for part in (train, test))


def _check_labels(train: Features, test: Features) -> int:
    """Count the classes; refuse missing labels and classes."""
    if train.labels is None or test.labels is None:
        raise ValueError('A linear probe needs labels of the training and of the test images.')
    foreign = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if foreign:
        raise ValueError(f'Classes {foreign[:10]} of the test set are not in the training set.')
    return int(train.labels.max()) + 1


def _accuracy(probes: LinearClassifiers, features: Tensor, labels: Tensor) -> Tensor:
    """Compute top-1 and top-5 of each classifier in percent, (L, 2) float64 on the CPU."""
    features, labels = features.to(probes.weight.device), labels.to(probes.weight.device)
    accuracies = []
    for weight, bias in zip(*probes, strict=True):
        nearest = (features @ weight + bias).topk(min(5, weight.shape[1])).indices  # (N, 5)
        right = nearest == labels[:, None]
        accuracies.append([right[:, 0].double().mean(), right.any(1).double().mean()])
    return 100 * torch.tensor(accuracies, dtype=torch.float64)


def low_shot_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Choose a part of a training set by a seed, class by class.

    Each class gives its share, rounded, and at least one image. The same labels,
    fraction and seed give the same list on every machine.

    Args:
        labels: (N,) int64.
        fraction: Share to take, above 0 and at most 1.
        seed: Which list.

    Returns:
        Tensor: Sorted indices (n,) int64.

    Raises:
        ValueError: If ``fraction`` is out of range.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction must be above 0 and at most 1; got {fraction}.')
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        count = max(1, round(fraction * len(members)))
        chosen.append(members[torch.randperm(len(members), generator=generator)[:count]])
    return torch.cat(chosen).sort().values


def low_shot(
    train: Features,
    test: Features,
    fraction: float,
    seeds: Sequence[int] = (0, 1, 2),
) -> dict[str, float]:
    """Judge features with few labels: logistic regression, mean over several lists.

    scikit-learn's ``LogisticRegression`` with its default L2 strength, on
    features scaled to zero mean and unit variance: with a handful of images per
    class there is nothing to hold out for choosing anything.

    Args:
        train: (N, D) and labels, of which ``fraction`` are used.
        test: (Q, D) and labels.
        fraction: Share of the labels, 0.01 for 1 %.
        seeds: One list of images each.

    Returns:
        dict: ``lowshot_1pct/top1`` (mean), ``.../top1_std`` over
        the lists, and ``.../num_images``.

    Raises:
        ValueError: As :func:`linear_probe`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    _check_labels(train, test)
    scores = []
    for seed in seeds:
        rows = low_shot_indices(train.labels, fraction, seed)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        model.fit(train.features[rows].numpy(), train.labels[rows].numpy())
        scores.append(100 * model.score(test.features.numpy(), test.labels.numpy()))
    scores = torch.tensor(scores, dtype=torch.float64)
    name = f'lowshot_{100 * fraction:g}pct'
    return {
        f'{name}/top1': scores.mean().item(),
        f'{name}/top1_std': scores.std(correction=0).item(),
        f'{name}/num_images': float(len(rows)),
    }
