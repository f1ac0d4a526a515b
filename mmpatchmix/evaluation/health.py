"""Figures of every line of the log that show whether a run learns, and warnings about bad runs.

docs/health.md describes the runs that the thresholds were chosen on.
"""

import json
import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.hooks import LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from mmpatchmix.engine.exact_resume import StatefulHook
from mmpatchmix.engine.schedules import global_batch
from mmpatchmix.evaluation.features import TrainingFeatures
from mmpatchmix.evaluation.rank_me import lidar, rank_me
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS

COLLAPSED = 2.0  # dimensions; with fewer, images differ in one or two directions at most
GUESSING = 0.97  # share of the KL of chance, log(number of keys), above which nothing is learned
# Share of the fall of the KL that counts as lost, and the least fall as a share of its first value.
LOST, FALLEN = 0.5, 0.05
STARVING = 0.5  # share of an iteration waiting for data; perfect loading would halve its time
# A run has had time to learn after this share of it and the least number of iterations, or
# PATIENT_ITERATIONS after the peak of the learning rate.
PATIENCE, PATIENT_ITERATIONS, LEAST_ITERATIONS = 0.25, 2000, 200
MOST_LINES = 2000  # checked and saved; the number must not grow with the run
NUM_MEASUREMENTS = 100  # of features in a run: decompositions of 384 dimensions take 0.2 s
FEATURES = ('rank_me', 'lidar', 'feature_std')
# Message of each trouble; in a second line its usual causes, and remedies.
TEXTS = {
    'starving': '{:.0f} % of the time training waits for data.\n'
    'Usual causes: too few workers (--workers), a slow or remote disk (mmpatchmix '
    'pack-shards), large images to decode. mmpatchmix benchmark shows which, and remedies.',
    'collapse': 'the features of all images have become alike: they use {:.1f} dimensions (the '
    'lesser of RankMe and LiDAR; 1 is the least), and queries find their keys no better than by '
    'chance.\n'
    'Usual causes: a learning rate far too high for the batch (try a tenth; see '
    '--auto-scale-lr), too short a warm-up, images that are all alike. Start again: features '
    'hardly recover as the learning rate falls.',
    'divergence': 'kl fell from {:.2f} to {:.2f} and is back at {:.2f}.\n'
    'Usual causes: a learning rate too high (try a third), a resumed run with another batch '
    'or schedule, damaged images. Continue from an earlier checkpoint with a lower rate.',
    'plateau/guessing': 'the loss hardly falls: kl_source is {:.2f} nats, that of chance among {} '
    'keys is {:.2f}.\n'
    'Usual causes: a learning rate far too low or too high, a temperature far from 0.2, '
    'views that show too little of an image (--dry-run --contact-sheet draws them), images '
    'that are all alike.',
    'plateau/stall': 'kl has not fallen for a quarter of the run: it is {1:.3f}, before {0:.3f}, '
    'which may be chance.\n'
    'Usual causes: a learning rate too high to settle or too low to move, a network too small '
    'for the images, views too hard to match. Where knn/top1 still rises, continue.',
}


class Trouble(NamedTuple):
    """A warning about a run."""

    name: str  # collapse, divergence, plateau or starving
    message: str
    hint: str  # the usual causes, and remedies


class Line(NamedTuple):
    """Figures of a line of the log, means since the line before; NaN where there are none."""

    iteration: int
    lr: float
    data_share: float  # of an iteration, waiting for data
    kl: float = math.nan  # distance of the loss from its least value
    kl_source: float = math.nan  # that of the contrast of whole images
    dimensions: float = math.nan  # the lesser of RankMe and LiDAR


def find_troubles(
    lines: Sequence[Line], num_iters: int, num_keys: int, loads_beside: bool = True
) -> Iterator[Trouble]:
    """Yield the troubles of a run; of collapse, divergence and plateau one at most.

    ``lines`` are all so far, ``num_iters`` the iterations of the whole run, ``num_keys`` the keys
    of a query over all ranks; ``loads_beside``: data could be loaded while the step is computed.
    """
    shares = [line.data_share for line in lines[-3:]]
    if loads_beside and len(shares) == 3 and min(shares) > STARVING:
        yield _trouble('starving', 100 * shares[-1])
    if not lines or math.isnan(lines[-1].kl):
        return
    kls, chance = [line.kl for line in lines], math.log(num_keys)
    measured = [line.dimensions for line in lines if not math.isnan(line.dimensions)]
    peak = max(lines, key=lambda line: line.lr).iteration  # the first of them
    done, fall = lines[-1].iteration, kls[0] - min(kls)
    patience = min(max(PATIENCE * num_iters, LEAST_ITERATIONS), peak + PATIENT_ITERATIONS + 1)
    is_guessing = done >= patience and lines[-1].kl_source >= GUESSING * chance
    if is_guessing and measured and measured[-1] < COLLAPSED:
        yield _trouble('collapse', measured[-1])
    elif fall >= FALLEN * kls[0] and kls[-1] - min(kls) >= LOST * fall:
        yield _trouble('divergence', kls[0], min(kls), kls[-1])
    elif is_guessing:
        yield _trouble('plateau/guessing', lines[-1].kl_source, num_keys, chance)
    elif means := _find_stall(lines, num_iters):
        yield _trouble('plateau/stall', *means)


def thin_out(lines: list[Line]) -> None:
    """Remove every second line, except the first and the last three, once there are 2,000."""
    if len(lines) > MOST_LINES:
        del lines[1:-3:2]


def feature_std(features: Tensor) -> float:
    """Compute the spread of normalised features: 1 in all directions alike, 0 all the same.

    The standard deviation of each dimension of ``(N, D)`` over the images, their mean, times
    ``sqrt(D)`` (Chen & He, https://arxiv.org/abs/2011.10566, section 4.1).
    """
    unit = F.normalize(features.double(), dim=1)
    return math.sqrt(features.shape[1]) * unit.std(0, correction=0).mean().item()


def measure_features(pairs: Tensor) -> dict[str, float]:
    """Compute RankMe, LiDAR and spread of features ``(n, 2, D)``, two views of each of n images."""
    features = pairs.flatten(0, 1)
    values = rank_me(features), lidar(pairs), feature_std(features)
    return {f'health/{name}': value for name, value in zip(FEATURES, values, strict=True)}


@HOOKS.register_module()
class HealthHook(StatefulHook):
    """Add figures to every line of the log, and warn about troubles, once each.

    - ``health/data_share``: share of the time in which the process waits for data;
      ``health/images_per_second``: over all ranks.
    - Of a PatchMix, about a hundred times in a run, ``health/rank_me``, ``health/lidar`` and
      ``health/feature_std`` of the features of the last ``num_images`` images of the first rank.

    Troubles go to the log and to ``vis_data/health.jsonl``. Nothing is read from the device but
    when losses are logged. The state of the hook is part of checkpoints. ``num_images`` are at
    least 2; LiDAR needs more than features have dimensions.
    """

    key = 'health'

    def __init__(self, num_images: int = 1024) -> None:
        if num_images < 2:
            raise ValueError(f'health.num_images={num_images} must be at least 2.')
        self.num_images = num_images
        self._features: TrainingFeatures | None = None
        self._recent: deque[Tensor] = deque()  # (N, 2, D) of the last steps
        self._lines: list[Line] = []
        self._reported: set[str] = set()

    def before_train(self, runner: Runner) -> None:
        """Register on the model; restore the state of a resumed run."""
        loaded = self.pop_loaded_state()
        model = unwrap_model(runner.model)
        if isinstance(model, PatchMix) and dist.is_main_process():
            self._features = TrainingFeatures(model)
        if runner.iter and loaded is not None:
            self._lines = [Line(*line) for line in loaded['lines']]
            self._reported = set(loaded['told'])
            device = next(model.parameters()).device
            self._recent = deque(pairs.to(device) for pairs in loaded['recent'])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Keep the features of the step; measure and check where the log gets a line."""
        if self._features and (pairs := self._features.take()) is not None:
            self._recent.append(pairs)
            while sum(map(len, self._recent)) - len(self._recent[0]) >= self.num_images:
                self._recent.popleft()
        if not self._is_logged(runner, batch_idx):
            return
        figures = self._measure(runner)
        for name in FEATURES:  # the log would repeat old values
            runner.message_hub.log_scalars.pop(f'train/health/{name}', None)
        for name, value in figures.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        lr = max(rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates)
        kls = self._mean(runner, 'kl'), self._mean(runner, 'kl_source')
        dimensions = min(figures.get(f'health/{name}', math.nan) for name in FEATURES[:2])
        share = figures['health/data_share']
        self._lines.append(Line(runner.iter + 1, lr, share, *kls, dimensions))
        thin_out(self._lines)
        on_cpu = next(runner.model.parameters()).device.type == 'cpu'
        loads_beside = not on_cpu or runner.train_dataloader.num_workers > 0
        batch = global_batch(runner)
        for trouble in find_troubles(self._lines, runner.max_iters, batch, loads_beside):
            self._report(runner, trouble)

    def state_dict(self) -> dict[str, Any]:
        """Return the lines, the reported troubles and the features of the last steps."""
        return {
            'lines': [tuple(line) for line in self._lines],
            'told': sorted(self._reported),
            'recent': [pairs.cpu() for pairs in self._recent],
        }

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        if not intervals or not dist.is_main_process():
            return False
        loader = runner.train_dataloader
        is_short_epoch = self.end_of_epoch(loader, batch_idx) and len(loader) <= intervals[0]
        return is_short_epoch or self.every_n_inner_iters(batch_idx, intervals[0])

    def _measure(self, runner: Runner) -> dict[str, float]:
        seconds = self._mean(runner, 'time')
        figures = {
            'health/data_share': self._mean(runner, 'data_time') / seconds,
            'health/images_per_second': global_batch(runner) / seconds,
        }
        measured = [line.iteration for line in self._lines if not math.isnan(line.dimensions)]
        next_time = measured[-1] + runner.max_iters / NUM_MEASUREMENTS if measured else 0
        if runner.iter + 1 >= next_time and sum(map(len, self._recent)) >= self.num_images:
            pairs = torch.cat(list(self._recent))[-self.num_images :]
            # On the host: the log has synchronised with the device already.
            figures |= measure_features(pairs.cpu().float())
        return figures

    @staticmethod
    def _mean(runner: Runner, name: str) -> float:
        history = runner.message_hub.log_scalars.get(f'train/{name}')
        return float(history.mean(runner.log_processor.window_size)) if history else math.nan

    def _report(self, runner: Runner, trouble: Trouble) -> None:
        causes = {'collapse', 'divergence'} if trouble.name == 'plateau' else set()
        if self._reported & {trouble.name, *causes}:
            return
        self._reported.add(trouble.name)
        runner.logger.warning(f'{trouble.name}: {trouble.message}\n  {trouble.hint}')
        record = {'iter': runner.iter + 1, 'epoch': runner.epoch + 1} | trouble._asdict()
        path = Path(runner.log_dir) / 'vis_data' / 'health.jsonl'
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:  # such as a full disk
            runner.logger.error(f'{path} cannot be written ({error}); the run continues.')


def _trouble(key: str, *figures: float) -> Trouble:
    """Return a trouble with its figures in the message."""
    return Trouble(key.partition('/')[0], *TEXTS[key].format(*figures).split('\n'))


def _find_stall(lines: Sequence[Line], num_iters: int) -> tuple[float, float] | None:
    """Return both means of the KL in the last quarter, if it has not fallen at a high rate."""
    done = lines[-1].iteration
    last = [line.kl for line in lines if line.iteration > done - PATIENCE * num_iters]
    is_high = lines[-1].lr >= max(line.lr for line in lines) / 2
    if not is_high or len(last) < 8 or done < max(2 * PATIENCE * num_iters, LEAST_ITERATIONS):
        return None
    before, after = last[: len(last) // 2], last[len(last) // 2 :]
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    means = fmean(before), fmean(after)
    return None if abs(means[0] - means[1]) > 2 * error else means
