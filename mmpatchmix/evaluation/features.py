"""One path from images to features, for every judgement of a representation.

Figures disagree as soon as they come from two feature paths: the kNN loop, the linear probe and
the low-shot evaluation all call :func:`extract_features`.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from mmengine import dist
from mmengine.logging import MMLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.models import PatchMix, unwrap_model

_PROGRESS_SECONDS = 20

# Rows that ranks exchange at once: 100 MB of an accelerator's memory at a width of 384.
_EXCHANGED_ROWS = 65536

_ADVICE = "Use sampler=dict(type='DefaultSampler', shuffle=False) and drop_last=False."


class Features(NamedTuple):
    """Features of a data set, on the CPU and in the order of the data set.

    Attributes:
        features: ``(M, D)`` float32.
        labels: ``(M,)`` int64, None without labels.
    """

    features: Tensor
    labels: Tensor | None


def extract_features(
    model: nn.Module,
    dataloader: DataLoader,
    data_preprocessor: nn.Module | None = None,
    title: str = 'features',
) -> Features:
    """Compute the features of every image of a data set, in evaluation mode.

    Ranks share the images as the loader's sampler says, and every rank returns the whole result.
    Afterwards each module has the mode it had before, and torch's random state is untouched.

    Args:
        model: :class:`mmpatchmix.models.PatchMix`, any other model with ``extract_feat``, or a
            backbone; possibly wrapped for distributed training. Of several outputs the last is
            taken.
        dataloader: Gives ``dict(inputs=..., data_samples=...)``, in the same order each time.
        data_preprocessor: Called as ``data_preprocessor(batch, False)``; by default the model's.
        title: What the progress lines call this.

    Returns:
        Features: M rows, M the length of the data set.

    Raises:
        ValueError: If the loader does not visit every image, its order is not repeatable, some
            images have labels and others none, or an output is not ``(N, D)``.
    """
    forward = feature_function(model, data_preprocessor)
    with evaluation_mode(unwrap_model(model)):
        return collect(dataloader, forward, title)


def feature_function(
    model: nn.Module, data_preprocessor: nn.Module | None = None, num_axes: int = 2
) -> Callable[[dict], Tensor]:
    """Return what makes features of a batch; see :func:`extract_features`.

    Args:
        model: See :func:`extract_features`.
        data_preprocessor: See :func:`extract_features`.
        num_axes: Of the output: 2 for ``(N, D)``, 3 for tokens ``(N, T, D)``.
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
        if outputs.ndim != num_axes:
            raise ValueError(
                f'{type(model).__name__} gives {tuple(outputs.shape)} for a batch, not '
                f'{"(N, D)" if num_axes == 2 else "(N, T, D)"}. '
                "Ask for one vector per image, for instance out_type='cls_token' in the backbone."
            )
        return outputs

    return forward


def extract_pixels(dataloader: DataLoader, title: str = 'pixels') -> Features:
    """Take raw pixels ``(M, C * H * W)`` as features, the baseline of doing nothing."""
    return collect(
        dataloader, lambda batch: torch.stack([*batch['inputs']]).flatten(1).float(), title
    )


def is_labelled(dataset: Dataset) -> bool:
    """Tell whether images have classes, by the data set's ``metainfo`` or its first sample."""
    metainfo = getattr(dataset, 'metainfo', None) or {}
    if 'labelled' in metainfo or len(dataset) == 0:
        return metainfo.get('labelled', False)
    with torch.random.fork_rng(devices=[]):
        return get_label(dataset[0].get('data_samples')) >= 0


def get_label(sample) -> int:
    """Return the class of a data sample, -1 if there is none."""
    label = sample.get('gt_label') if hasattr(sample, 'get') else None
    if label is None:
        return -1
    if label.numel() != 1:
        raise ValueError(f'Expected one class per image, got gt_label {label.tolist()}.')
    return int(label)


def collect(dataloader: DataLoader, forward: Callable[[dict], Tensor], title: str) -> Features:
    """Run ``forward`` over a data set on all ranks and put the rows in data set order.

    Args:
        dataloader: See :func:`extract_features`.
        forward: Batch to ``(N, D)``.
        title: What the progress lines call this.

    Returns:
        Features: The same on every rank.
    """
    size = len(dataloader.dataset)
    if size == 0:
        raise ValueError(f'{title}: the data set is empty.')
    features = torch.full((size, 0), -math.inf)  # (M, D), D known after the first batch
    labels = torch.full((size,), -2)  # (M,), -1 is a visited image without a label
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        batches = log_progress(dataloader, title, size)
        for indices, batch in zip(read_indices(dataloader), batches, strict=True):
            rows = forward(batch).float().cpu()
            if not features.shape[1]:
                features = features.new_full((size, rows.shape[1]), -math.inf)
            features[indices] = rows
            samples = batch.get('data_samples') or [None] * len(rows)
            labels[indices] = torch.tensor([get_label(sample) for sample in samples])
    # Each rank knows its own rows, and of the others less than any value: the maximum has all.
    width = torch.tensor(features.shape[1])
    dist.all_reduce(width, 'max')  # a rank may have had no batch
    if features.shape[1] < width:
        features = features.new_full((size, int(width)), -math.inf)
    for part in (*features.split(_EXCHANGED_ROWS), labels):
        dist.all_reduce(part, 'max')
    for value, fault in ((-2, f'were not visited. {_ADVICE}'), (-1, 'have no label, others have.')):
        found = (labels == value).nonzero().flatten().tolist()
        if found and not (value == -1 and len(found) == size):
            raise ValueError(
                f'{title}: {len(found)} of {size} images (the first: number {found[0]}) {fault}'
            )
    return Features(features, labels if labels[0] >= 0 else None)


def read_indices(dataloader: DataLoader) -> list[list[int]]:
    """Read the data set indices of this rank's batches off the sampler.

    Not off ``sample_idx``: in concatenated or repeated data sets that counts within a part.
    """
    sampler = dataloader.batch_sampler
    if sampler is None:
        raise ValueError(f'Features need a map-style data set with a batch sampler. {_ADVICE}')
    limit = len(dataloader)
    first, second = (
        [list(map(int, batch)) for batch in itertools.islice(sampler, limit + 1)] for _ in range(2)
    )
    if len(first) != limit or first != second:
        kind = type(getattr(sampler, 'sampler', sampler)).__name__
        raise ValueError(f'{kind} does not visit the images once in a repeatable order. {_ADVICE}')
    return first


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode for a while; before, parts may be in different modes."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def log_progress(dataloader: DataLoader, title: str, size: int) -> Iterator[dict]:
    """Yield the batches; log images (of all ranks), speed and time left every now and then."""
    began = last = time.monotonic()
    for number, batch in enumerate(dataloader, 1):
        yield batch
        now = time.monotonic()
        if now - last < _PROGRESS_SECONDS:
            continue
        last, done = now, size * number // len(dataloader)
        rate = done / (now - began)
        left = int((size - done) / rate)
        MMLogger.get_current_instance().info(
            f'{title}: {done:,} of {size:,} images, {rate:,.0f} images/s, '
            f'ETA {left // 3600}:{left // 60 % 60:02}:{left % 60:02}'
        )


class TrainingFeatures:
    """Listen to what enters the projector of the keys: class tokens of whole views.

    They are those of :meth:`~mmpatchmix.models.PatchMix.extract_feat`: of the momentum encoder, of
    the query encoder where there is none. Nothing is computed and nothing copied.

    Args:
        model: The model, not wrapped.
    """

    def __init__(self, model: PatchMix) -> None:
        self.model = model
        encoder = model if model.momentum_encoder is None else model.momentum_encoder
        self._groups: list[Tensor] = []
        encoder.neck.register_forward_pre_hook(self._listen)

    def _listen(self, neck: torch.nn.Module, args: tuple) -> None:
        if neck.training:
            self._groups.append(args[0][-1].detach())

    def take(self) -> Tensor | None:
        """Return the features of the last step, and begin to listen to the next one.

        Returns:
            Tensor | None: ``(N, 2, D)`` of ``view_1`` and ``view_2``, in the precision of the step;
            None if there was no step.
        """
        groups, self._groups = self._groups, []
        # Keys are of view_1, view_2 and mixed view_1. Without a momentum encoder view_1 serves as
        # query and key, unless micro-batches want the keys first: view_1, mixed view_2, view_2, ...
        shares = self.model.momentum_encoder is None and self.model.micro_batch_size is None
        second = 2 if shares else 1
        if len(groups) <= second or groups[0].shape != groups[second].shape:
            return None
        return torch.stack([groups[0], groups[second]], dim=1)
