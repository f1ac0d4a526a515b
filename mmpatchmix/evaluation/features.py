"""One path from images to features, for every judgement of a representation.

Online and offline figures disagree as soon as they come from two feature
paths; the kNN loop, the linear probe and the low-shot evaluation all call
:func:`extract_features`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine import dist
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mmpatchmix.models import unwrap_model

_PROGRESS_SECONDS = 20


class Features(NamedTuple):
    """Features of a data set in its own order.

    Attributes:
        features (Tensor): (M, D) float32 on the CPU.
        labels (Tensor, optional): (M,) int64 on the CPU, None without labels.
    """

    features: Tensor
    labels: Tensor | None


def extract_features(
    model: nn.Module,
    dataloader: DataLoader,
    data_preprocessor: nn.Module | None = None,
    title: str = 'features',
) -> Features:
    """Features of every image of a data set, each exactly once, in data set order.

    Ranks share the work as the data loader's sampler says; what the sampler
    repeats to even out the ranks is counted once, and every rank returns the
    whole result. The model is in evaluation mode meanwhile; afterwards each
    module has the mode it had before, and torch's random state is untouched.

    Args:
        model (nn.Module): :class:`mmpatchmix.models.PatchMix`, an mmpretrain
            classifier or self-supervised model (anything with
            ``extract_feat``), or a backbone; possibly wrapped for distributed
            training. Of several outputs the last is taken.
        dataloader (DataLoader): Yields ``dict(inputs=..., data_samples=...)``.
            Its sampler must give the same order each time.
        data_preprocessor (nn.Module, optional): Called as
            ``data_preprocessor(batch, False)``; the model's own by default.
        title (str): What the progress lines call this.

    Returns:
        Features: (M, D) float32 and (M,) int64, M the length of the data set.

    Raises:
        ValueError: If the loader does not visit every image, its order is not
            repeatable, or an output is not (N, D).
    """
    model = unwrap_model(model)
    preprocess = data_preprocessor or getattr(model, 'data_preprocessor', None)
    if preprocess is None:
        raise ValueError(
            f'{type(model).__name__} has no data_preprocessor of its own: pass the one that '
            'normalises its inputs, extract_features(model, dataloader, data_preprocessor).'
        )

    def forward(batch: dict) -> Tensor:
        inputs = preprocess(batch, False)['inputs']  # (N, C, H, W)
        outputs = model.extract_feat(inputs) if hasattr(model, 'extract_feat') else model(inputs)
        while isinstance(outputs, (tuple, list)):
            outputs = outputs[-1]
        if outputs.ndim != 2:
            raise ValueError(
                f'{type(model).__name__} gives {tuple(outputs.shape)} for a batch, not (N, D). '
                "Ask for one vector per image, for instance out_type='cls_token' in the backbone."
            )
        return outputs

    with _evaluating(model):
        return collect(dataloader, forward, title)


def extract_pixels(dataloader: DataLoader, title: str = 'pixels') -> Features:
    """Raw pixels of every image as its features, the baseline of doing nothing.

    Args:
        dataloader (DataLoader): As for :func:`extract_features`.
        title (str): What the progress lines call this.

    Returns:
        Features: (M, C * H * W) float32 and (M,) int64.
    """
    return collect(dataloader, lambda batch: _stack(batch['inputs']).flatten(1).float(), title)


def _stack(inputs: Tensor | Sequence[Tensor]) -> Tensor:
    return inputs if isinstance(inputs, Tensor) else torch.stack(list(inputs))  # (N, C, H, W)


def collect(dataloader: DataLoader, forward: Callable[[dict], Tensor], title: str) -> Features:
    """Run ``forward`` over a data set on all ranks and put the rows in data set order.

    Args:
        dataloader (DataLoader): See :func:`extract_features`.
        forward (Callable): Batch to (N, D) tensor.
        title (str): What the progress lines call this.

    Returns:
        Features: The same on every rank.
    """
    size = len(dataloader.dataset)
    if size == 0:
        raise ValueError(f'{title}: the data set is empty.')
    batches = _batch_indices(dataloader)
    # Ranks may have unequal numbers of batches; all take part in every exchange.
    num_steps, batch_size = _max_over_ranks(len(batches), max(map(len, batches), default=0))
    progress = _Progress(title, size)
    features, labels = None, torch.full((size,), -1)  # (M, D), (M,)
    seen = torch.zeros(size, dtype=torch.bool)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        stream = itertools.zip_longest(batches, dataloader)
        for _ in range(num_steps):
            indices, batch = next(stream, (None, None))
            rows = None if batch is None else forward(batch).float()
            indices, rows, targets = _exchange(
                indices or [], rows, None if batch is None else _labels_of(batch), batch_size
            )
            if features is None:
                features = torch.empty(size, rows.shape[1])
            features[indices], labels[indices], seen[indices] = rows, targets, True
            progress.update(int(seen.sum()))
    if not seen.all():
        missing = (~seen).nonzero().flatten().tolist()
        raise ValueError(
            f'{title}: {len(missing)} of {size} images were not visited (the first: number '
            f'{missing[0]}). Use sampler=dict(type="DefaultSampler", shuffle=False) and '
            'drop_last=False.'
        )
    labelled = bool((labels >= 0).all())
    return Features(features, labels if labelled else None)


def _batch_indices(dataloader: DataLoader) -> list[list[int]]:
    """Data set indices of this rank's batches, read off the sampler.

    The sampler and not ``sample_idx`` is the source: in concatenated or
    repeated data sets the latter is the index within a part.
    """
    sampler = dataloader.batch_sampler
    advice = 'Use sampler=dict(type="DefaultSampler", shuffle=False).'
    if sampler is None:
        raise ValueError(f'Features need a map-style data set with a batch sampler. {advice}')
    limit = len(dataloader)
    first, second = (
        [list(map(int, batch)) for batch in itertools.islice(sampler, limit + 1)] for _ in range(2)
    )
    if len(first) != limit or first != second:
        kind = type(getattr(sampler, 'sampler', sampler)).__name__
        raise ValueError(f'{kind} does not visit the images once in a repeatable order. {advice}')
    return first


def _labels_of(batch: dict) -> list[int]:
    """Class of each image, -1 where it has none."""
    samples = batch.get('data_samples')
    if samples is None:
        return [-1] * len(batch['inputs'])
    return [_label_of(sample) for sample in samples]


def _label_of(sample: Any) -> int:
    label = sample.get('gt_label') if hasattr(sample, 'get') else None
    if label is None:
        return -1
    if label.numel() != 1:
        raise ValueError(f'Expected one class per image, got gt_label {label.tolist()}.')
    return int(label)


def _exchange(
    indices: list[int], rows: Tensor | None, labels: list[int] | None, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, indices and labels of this step of all ranks, on the CPU."""
    if dist.get_world_size() == 1:
        return torch.tensor(indices), rows.cpu(), torch.tensor(labels)
    (width,) = _max_over_ranks(0 if rows is None else rows.shape[1])
    count = len(indices)
    # Index -1 marks filling.
    table = torch.full((batch_size, 2), -1)  # (batch_size, index and label)
    padded = torch.zeros(batch_size, width, device='cpu' if rows is None else rows.device)
    if count:
        table[:count] = torch.tensor([indices, labels]).T
        padded[:count] = rows
    table = torch.cat(dist.all_gather(table))  # (W * batch_size, 2)
    padded = torch.cat([part.cpu() for part in dist.all_gather(padded)])  # (W * batch_size, D)
    real = table[:, 0] >= 0
    return table[real, 0], padded[real], table[real, 1]


def _max_over_ranks(*values: int) -> list[int]:
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, op='max')
    return tensor.tolist()


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; parts may be in different modes before."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Progress:
    """Logs images, speed and time left every now and then."""

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total = title, total
        self.began = self.last = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if now - self.last < _PROGRESS_SECONDS or done == 0:
            return
        self.last = now
        rate = done / (now - self.began)
        left = int((self.total - done) / rate)
        MMLogger.get_current_instance().info(
            f'{self.title}: {done:,} of {self.total:,} images, {rate:,.0f} images/s, '
            f'ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}'
        )
