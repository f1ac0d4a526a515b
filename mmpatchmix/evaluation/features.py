"""Extraction of features from images, features of a training step, loading of a checkpoint."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine import dist
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmpatchmix.checkpoints import fit_state_dict, read_checkpoint
from mmpatchmix.models import PatchMix, unwrap_model

_PROGRESS_SECONDS = 20
# Rows that ranks exchange at once: 100 MB of an accelerator's memory at a width of 384.
_EXCHANGED_ROWS = 65536
_ADVICE = "Use sampler=dict(type='DefaultSampler', shuffle=False) and drop_last=False."


class Features(NamedTuple):
    """Features of a data set, on the CPU and in the order of the data set."""

    features: Tensor  # (M, D) float32
    labels: Tensor | None  # (M,) int64


def load_model(runner: Runner, checkpoint: str | Path) -> nn.Module:
    """Load a checkpoint into the model of a Runner and return it; ``ValueError`` unless it fits."""
    model = unwrap_model(runner.model)
    state = read_checkpoint(checkpoint).state_dict
    model.load_state_dict(fit_state_dict(state, model, str(checkpoint))[0], strict=True)
    return model


def extract_features(
    model: nn.Module,
    dataloader: DataLoader,
    data_preprocessor: nn.Module | None = None,
    title: str = 'features',
) -> Features:
    """Compute the features of every image of a data set, in evaluation mode.

    Ranks share the images as the loader's sampler does, and every rank returns the whole result.
    Modes of modules and torch's random state are unchanged afterwards.

    Args:
        model: A model with ``extract_feat``, or a backbone, possibly wrapped for distributed
            training. Its last output is taken.
        dataloader: Gives ``dict(inputs=..., data_samples=...)``, in the same order each time.
        data_preprocessor: Called as ``data_preprocessor(batch, False)``; by default the model's.
        title: Name of the data set in progress lines.

    Raises:
        ValueError: If the loader does not visit every image, its order is not repeatable, only
            some images have labels, or an output is not ``(N, D)``.
    """
    forward = feature_function(model, data_preprocessor)
    with evaluation_mode(unwrap_model(model)):
        return collect(dataloader, forward, title)


def feature_function(
    model: nn.Module, data_preprocessor: nn.Module | None = None, num_axes: int = 2
) -> Callable[[dict], Tensor]:
    """Return a function from a batch to features ``(N, D)``, or ``(N, T, D)`` of 3 axes."""
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


def iterate_features(
    dataloader: DataLoader,
    batches: Iterable[list[int]],
    forward: Callable[[dict], Tensor],
    title: str,
    num_images: int,
) -> Iterator[tuple[list[int], Tensor, list]]:
    """Yield data set indices, features on the CPU in float32, and data samples of each batch.

    ``batches`` are the data set indices of the loader's batches. Torch's random state is unchanged
    afterwards. Progress in ``num_images`` of all ranks is logged every 20 seconds.
    """
    began = last = time.monotonic()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for number, (indices, batch) in enumerate(zip(batches, dataloader, strict=True), 1):
            rows = forward(batch).float().cpu()
            yield indices, rows, batch.get('data_samples') or [None] * len(rows)
            now = time.monotonic()
            if now - last >= _PROGRESS_SECONDS:
                last, done = now, num_images * number // len(dataloader)
                rate = done / (now - began)
                eta = timedelta(seconds=int((num_images - done) / rate))
                progress = f'{done:,} of {num_images:,} images, {rate:,.0f} images/s, ETA {eta}'
                MMLogger.get_current_instance().info(f'{title}: {progress}')


@contextlib.contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and restore the mode of each module on leaving."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def is_labelled(dataset: Dataset) -> bool:
    """Return whether images have classes, by the data set's ``metainfo`` or its first sample."""
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


class TrainingFeatures:
    """Keep the class tokens that enter the projector of the keys in a step, without a copy.

    They are those of :meth:`~mmpatchmix.models.PatchMix.extract_feat`.
    """

    def __init__(self, model: PatchMix) -> None:
        self.model = model
        encoder = model if model.momentum_encoder is None else model.momentum_encoder
        self._groups: list[Tensor] = []
        encoder.neck.register_forward_pre_hook(self._keep_inputs)

    def _keep_inputs(self, neck: nn.Module, args: tuple) -> None:
        if neck.training:
            self._groups.append(args[0][-1].detach())

    def take(self) -> Tensor | None:
        """Return and remove ``(N, 2, D)`` of ``view_1`` and ``view_2``; None without a step."""
        groups, self._groups = self._groups, []
        # Keys are of view_1, view_2 and mixed view_1. Without a momentum encoder view_1 serves as
        # query and key, unless micro-batches compute the keys first: view_1, mixed view_2, view_2.
        shares = self.model.momentum_encoder is None and self.model.micro_batch_size is None
        second = 2 if shares else 1
        if len(groups) <= second or groups[0].shape != groups[second].shape:
            return None
        return torch.stack([groups[0], groups[second]], dim=1)


def collect(dataloader: DataLoader, forward: Callable[[dict], Tensor], title: str) -> Features:
    """Compute features of a data set on all ranks; return the rows of all in data set order."""
    size = len(dataloader.dataset)
    if size == 0:
        raise ValueError(f'{title}: the data set is empty.')
    features = torch.full((size, 0), -math.inf)  # (M, D), D known after the first batch
    labels = torch.full((size,), -2)  # (M,), -1 is a visited image without a label
    batches = _read_indices(dataloader)
    for indices, rows, samples in iterate_features(dataloader, batches, forward, title, size):
        if not features.shape[1]:
            features = features.new_full((size, rows.shape[1]), -math.inf)
        features[indices] = rows
        labels[indices] = torch.tensor([get_label(sample) for sample in samples])
    # Rows of other ranks hold less than any value, so the maximum over ranks has all rows.
    width = torch.tensor(features.shape[1])
    dist.all_reduce(width, 'max')  # a rank may have had no batch
    if features.shape[1] < width:
        features = features.new_full((size, int(width)), -math.inf)
    for part in (*features.split(_EXCHANGED_ROWS), labels):
        dist.all_reduce(part, 'max')
    for value, fault in ((-2, f'were not visited. {_ADVICE}'), (-1, 'have no label, others have.')):
        found = (labels == value).nonzero().flatten().tolist()
        if found and not (value == -1 and len(found) == size):
            where = f'{title}: {len(found)} of {size} images (the first: number {found[0]})'
            raise ValueError(f'{where} {fault}')
    return Features(features, labels if labels[0] >= 0 else None)


def _read_indices(dataloader: DataLoader) -> list[list[int]]:
    """Return the data set indices of this rank's batches: those of ``sample_idx`` may repeat."""
    sampler, limit = dataloader.batch_sampler, len(dataloader)
    first, second = (list(map(list, itertools.islice(sampler, limit + 1))) for _ in range(2))
    if len(first) != limit or first != second:
        kind = type(getattr(sampler, 'sampler', sampler)).__name__
        raise ValueError(f'{kind} does not visit the images once in a repeatable order. {_ADVICE}')
    return first
