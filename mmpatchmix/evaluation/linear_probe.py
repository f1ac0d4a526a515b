"""Accuracy of classifiers; linear ones on frozen features: several learning rates, few labels.

For the latter, features are extracted once, without augmentation: the accuracy differs by some
tenths of a percent from that of `configs/linear`, training on augmented views.
"""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev

import torch
import torch.nn.functional as F
from mmpretrain.evaluation import Accuracy as BaseAccuracy
from torch import Tensor

from mmpatchmix.evaluation.features import Features
from mmpatchmix.registry import METRICS

# Per 256 images; a factor of two to three between neighbours.
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_HOLDOUT = 0.1


@METRICS.register_module()
class Accuracy(BaseAccuracy):
    """mmpretrain's accuracy, leaving out each k of ``topk`` that exceeds the number of classes."""

    def compute_metrics(self, results: list) -> dict[str, float]:
        """See the base class."""
        num_classes = results[0]['pred_score'].numel()
        self.topk = tuple(k for k in self.topk if k <= num_classes)
        return super().compute_metrics(results)


def fit_linear(
    features: Tensor,
    labels: Tensor,
    learning_rates: Sequence[float],
    num_classes: int,
    num_epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> tuple[Tensor, Tensor]:
    """Train one classifier per learning rate, all on the same batches, each as if alone.

    SGD with momentum 0.9, no weight decay, cosine schedule from the learning rate (not scaled by
    the batch size) to 0 over the iterations, weights from a normal distribution of 0.01. From
    features ``(N, D)`` and labels ``(N,)`` to weights ``(L, D, C)`` and biases ``(L, 1, C)``.
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
    return weight.detach(), bias.detach()


def linear_probe(
    train: Features,
    test: Features,
    base_learning_rates: Sequence[float] = LEARNING_RATES,
    num_epochs: int = 100,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = 'cpu',
) -> dict[str, float]:
    """Evaluate features by a linear classifier; the test set has no part in choosing its rate.

    The rates, given per 256 images, are compared on a tenth of the training features, held out
    class by class; a classifier with the best one is then trained on all of them. Features are
    scaled to zero mean and unit variance of the training set: without it, SGD on class tokens,
    which share a large offset, stays ten percent short of logistic regression.

    Returns:
        dict: ``linear/top1``, ``linear/top5`` in percent, ``linear/lr`` (per 256 images), and the
        held-out accuracy of each rate as ``linear/heldout_top1_lr0.1``.

    Raises:
        ValueError: If labels are missing, a class of the test set is not in the training set, or
            ``num_epochs`` is below 1.
    """
    if num_epochs < 1:
        raise ValueError(f'a linear probe needs 1 epoch or more; got {num_epochs}.')
    num_classes = _check_labels(train, test)
    mean, std = train.features.mean(dim=0), train.features.std(dim=0, correction=0)  # (D,)
    std = std.where(std > 0, torch.ones(()))
    train, test = (x._replace(features=(x.features - mean) / std) for x in (train, test))
    settings = dict(num_epochs=num_epochs, batch_size=batch_size, seed=seed, device=device)
    scale = min(batch_size, len(train.labels)) / 256
    scaled = [rate * scale for rate in base_learning_rates]
    held = low_shot_indices(train.labels, _HOLDOUT, seed)
    kept = torch.ones(len(train.labels), dtype=torch.bool)
    kept[held] = len(held) == len(kept)  # one image per class: none to spare
    probes = fit_linear(train.features[kept], train.labels[kept], scaled, num_classes, **settings)
    heldout = _accuracy(probes, train.features[held], train.labels[held])[:, 0]  # (L,)
    best = int(heldout.argmax())
    final = fit_linear(train.features, train.labels, [scaled[best]], num_classes, **settings)
    top1, top5 = _accuracy(final, test.features, test.labels)[0].tolist()
    metrics = {'linear/top1': top1, 'linear/top5': top5, 'linear/lr': base_learning_rates[best]}
    names = (f'linear/heldout_top1_lr{rate:g}' for rate in base_learning_rates)
    return metrics | dict(zip(names, heldout.tolist(), strict=True))


def low_shot_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Return sorted indices ``(n,)`` int64 of a share of ``labels`` ``(N,)``, class by class.

    The share of each class is rounded, to at least one image. The same labels, fraction and seed
    give the same list on every machine. ``ValueError`` if ``fraction`` is not in (0, 1].
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
    train: Features, test: Features, fraction: float, seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, float]:
    """Evaluate features with a share of the training labels: logistic regression.

    scikit-learn's ``LogisticRegression`` with its default L2 strength, on features scaled to zero
    mean and unit variance: a handful of images per class is too few to hold any out. Returns
    ``lowshot_1pct/top1`` (mean over the lists of images, one per seed), ``.../top1_std`` over the
    lists, and ``.../num_images``.
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
    metrics = dict(top1=fmean(scores), top1_std=pstdev(scores), num_images=float(len(rows)))
    return {f'lowshot_{100 * fraction:g}pct/{name}': value for name, value in metrics.items()}


def _check_labels(train: Features, test: Features) -> int:
    """Return the number of classes; raise if labels or classes of the training set are missing."""
    if train.labels is None or test.labels is None or len(train.labels.unique()) < 2:
        raise ValueError('A linear probe needs labels of all images, of two classes or more.')
    foreign = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
    if foreign:
        raise ValueError(f'Classes {foreign[:10]} of the test set are not in the training set.')
    return int(train.labels.max()) + 1


def _accuracy(probes: tuple[Tensor, Tensor], features: Tensor, labels: Tensor) -> Tensor:
    """Compute top-1 and top-5 of each classifier in percent, ``(L, 2)`` float64 on the CPU."""
    accuracies = []
    for weight, bias in zip(*probes, strict=True):
        logits = features.to(weight.device) @ weight + bias
        right = logits.topk(min(5, weight.shape[1])).indices.cpu() == labels[:, None]  # (N, 5)
        accuracies.append([right[:, 0].double().mean(), right.any(1).double().mean()])
    return 100 * torch.tensor(accuracies, dtype=torch.float64)
