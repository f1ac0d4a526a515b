"""What tells a run that learns from one that does not: figures, and what they mean in words.

Where the thresholds are from, and which runs they were tried on: docs/health.md.
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
from mmengine.hooks import Hook, LoggerHook
from mmengine.runner import Runner
from torch import Tensor

from mmpatchmix.engine.run_plan import global_batch
from mmpatchmix.evaluation.features import TrainingFeatures
from mmpatchmix.evaluation.rank_me import lidar, rank_me
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS

# Dimensions below which images differ in no more than one or two directions.
COLLAPSED = 2.0

# Share of the KL of blind guessing, log(number of keys), above which nothing has been learned.
GUESSING = 0.97

# Share of the fall of the KL so far that a run may lose again, and how far it must have fallen.
LOST, FALLEN = 0.5, 0.05

# Share of an iteration waiting for data from which perfect loading would halve its time.
STARVING = 0.5

# A run has begun to learn after this part of it, or these iterations after the peak of the rate if
# fewer; in short ones it takes at least some.
PATIENCE, PATIENT_ITERATIONS, LEAST_ITERATIONS = 0.25, 2000, 200

# What is judged at each line, and saved, must not grow with the run.
MOST_LINES = 2000


class Trouble(NamedTuple):
    """Something a person should know about a run.

    Attributes:
        name: ``collapse``, ``divergence``, ``plateau`` or ``starving``.
        message: What is seen.
        hint: The usual causes, and what to try.
    """

    name: str
    message: str
    hint: str


class Line(NamedTuple):
    """What a line of the log says of a run; figures are means since the line before.

    Attributes:
        iteration: Iterations done.
        lr: Learning rate.
        data_share: Share of an iteration that waits for data.
        kl: Distance of the loss from the least it could be; NaN where the method has none.
        kl_source: That of the contrast of whole images.
        dimensions: The lesser of RankMe and LiDAR; NaN where nobody looked.
    """

    iteration: int
    lr: float
    data_share: float
    kl: float = math.nan
    kl_source: float = math.nan
    dimensions: float = math.nan


def find_troubles(
    lines: Sequence[Line], num_iters: int, num_keys: int, loads_beside: bool = True
) -> Iterator[Trouble]:
    """Yield what is wrong with a run; of collapse, divergence and plateau one at most.

    Args:
        lines: All lines so far.
        num_iters: Iterations of the whole run.
        num_keys: Keys of a query, over all ranks.
        loads_beside: Whether data could be loaded while the step is computed: not where the
            process itself loads them, on the cores that train.
    """
    if loads_beside and (trouble := find_starving(lines)):
        yield trouble
    if not lines or math.isnan(lines[-1].kl):
        return
    is_guessing = find_guessing(lines, num_iters, num_keys)
    trouble = (
        (find_collapse(lines) if is_guessing else None)
        or find_divergence(lines)
        or (describe_guessing(lines, num_keys) if is_guessing else None)
        or find_stall(lines, num_iters)
    )
    if trouble:
        yield trouble


def forget_some(lines: list[Line]) -> None:
    """Forget every second line, but not the first and the last three, once there are 2,000."""
    if len(lines) > MOST_LINES:
        del lines[1:-3:2]


def find_starving(lines: Sequence[Line]) -> Trouble | None:
    """Find that the last three lines waited for data for longer than they computed."""
    shares = [line.data_share for line in lines[-3:]]
    if len(shares) < 3 or min(shares) <= STARVING:
        return None
    return Trouble(
        'starving',
        f'{100 * shares[-1]:.0f} % of the time training waits for data.',
        'Usual causes: too few workers (--workers), a slow or remote disk (mmpatchmix '
        'pack-shards), large images to decode. mmpatchmix benchmark says which, and what helps.',
    )


def find_guessing(lines: Sequence[Line], num_iters: int, num_keys: int) -> bool:
    """Tell whether the contrast is no better than chance though it has had time to learn."""
    if not lines[-1].kl_source >= GUESSING * math.log(num_keys):
        return False
    peak = max(lines, key=lambda line: line.lr).iteration  # the first of them
    done = lines[-1].iteration
    waited = done >= max(PATIENCE * num_iters, LEAST_ITERATIONS)
    return waited or done - peak > PATIENT_ITERATIONS


def find_collapse(lines: Sequence[Line]) -> Trouble | None:
    """Find that features tell images apart in no more than one or two directions."""
    looks = [line.dimensions for line in lines if not math.isnan(line.dimensions)]
    if not looks or looks[-1] >= COLLAPSED:
        return None
    return Trouble(
        'collapse',
        f'images have become alike to the network: their features use {looks[-1]:.1f} '
        'dimensions (the lesser of RankMe and LiDAR; 1 is the least), and queries find their keys '
        'no better than by chance.',
        'Usual causes: a learning rate far too high for the batch (a tenth of it; see '
        '--auto-scale-lr), too short a warm-up, images that are all alike. Start again: what is '
        'lost hardly comes back as the rate falls.',
    )


def find_divergence(lines: Sequence[Line]) -> Trouble | None:
    """Find that a run has lost half of what it had learned, by its KL."""
    start, best, now = lines[0].kl, min(line.kl for line in lines), lines[-1].kl
    fall = start - best
    if fall < FALLEN * start or now - best < LOST * fall:
        return None
    return Trouble(
        'divergence',
        f'kl had fallen from {start:.2f} to {best:.2f} and is at {now:.2f} again: the run loses '
        'what it had learned.',
        'Usual causes: a learning rate too high (try a third), a resumed run with another batch '
        'or schedule, damaged images. Go on from an earlier checkpoint with a lower rate.',
    )


def describe_guessing(lines: Sequence[Line], num_keys: int) -> Trouble:
    """Describe a run that has not begun to learn."""
    return Trouble(
        'plateau',
        f'the loss hardly falls: kl_source is {lines[-1].kl_source:.2f} nats, and blind guessing '
        f'among {num_keys} keys is {math.log(num_keys):.2f}.',
        'Usual causes: a learning rate far too low or too high, a temperature far from 0.2, views '
        'that show too little of an image (--dry-run --contact-sheet draws them), images that are '
        'all alike.',
    )


def find_stall(lines: Sequence[Line], num_iters: int) -> Trouble | None:
    """Find that the KL has stopped to fall, for a quarter of the run, while the rate is high."""
    done = lines[-1].iteration
    last = [line.kl for line in lines if line.iteration > done - PATIENCE * num_iters]
    is_high = lines[-1].lr >= max(line.lr for line in lines) / 2
    if not is_high or len(last) < 8 or done < max(2 * PATIENCE * num_iters, LEAST_ITERATIONS):
        return None
    before, after = last[: len(last) // 2], last[len(last) // 2 :]
    error = math.sqrt(variance(before) / len(before) + variance(after) / len(after))
    if abs(fmean(before) - fmean(after)) > 2 * error:
        return None
    return Trouble(
        'plateau',
        f'kl has not fallen for a quarter of the run: it is {fmean(after):.3f}, before that '
        f'{fmean(before):.3f}, which may be chance.',
        'Usual causes: a learning rate too high to settle or too low to move, a network too small '
        'for the images, views too hard to match. Where knn/top1 still rises, go on.',
    )


def feature_std(features: Tensor) -> float:
    """Compute how far normalised features spread: 1 in all directions alike, 0 all the same.

    The standard deviation of each dimension over the images, their mean, times ``sqrt(D)``
    (Chen & He, https://arxiv.org/abs/2011.10566, section 4.1).

    Args:
        features: ``(N, D)``.
    """
    unit = F.normalize(features.double(), dim=1)
    return math.sqrt(features.shape[1]) * unit.std(0, correction=0).mean().item()


def measure_features(pairs: Tensor) -> dict[str, float]:
    """Compute RankMe, LiDAR and the spread of features of training views.

    Args:
        pairs: ``(n, 2, D)``, two views of each of n images.
    """
    features = pairs.flatten(0, 1)
    return {
        'health/rankme': rank_me(features),
        'health/lidar': lidar(pairs),
        'health/feature_std': feature_std(features),
    }


KEY = 'health'

# Decompositions of features of 384 dimensions take 0.2 s: done about so often in a run, they are no
# matter in long runs, and short ones have small networks.
NUM_LOOKS = 100

FEATURES = ('rankme', 'lidar', 'feature_std')


@HOOKS.register_module()
class HealthHook(Hook):
    """Add figures to every line of the log, and point out troubles, once each.

    - ``health/data_share``: share of the time in which the process waits for data;
      ``health/images_per_second``: over all ranks.
    - Of a PatchMix, RankMe, LiDAR and the spread of the features that the last steps have computed
      anyway: ``health/rankme``, ``health/lidar``, ``health/feature_std``. Those of the first rank,
      of the last ``num_images`` images, about a hundred times in a run.

    Troubles go to the log and to ``vis_data/health.jsonl``: collapse, divergence, a plateau, data
    that training waits for; see :mod:`mmpatchmix.evaluation.health`. Nothing is read off the
    device but when losses are logged. What the hook knows is part of checkpoints.

    Args:
        num_images: Images whose features are looked at; LiDAR wants more than features have
            dimensions.

    Raises:
        ValueError: If they are fewer than 2.
    """

    def __init__(self, num_images: int = 1024) -> None:
        if num_images < 2:
            raise ValueError(f'health.num_images={num_images} must be at least 2.')
        self.num_images = num_images
        self._features: TrainingFeatures | None = None
        self._recent: deque[Tensor] = deque()  # (N, 2, D) of the last steps
        self._lines: list[Line] = []
        self._told: set[str] = set()
        self._loaded: dict[str, Any] | None = None

    def before_train(self, runner: Runner) -> None:
        """Begin to listen; take over what a resumed run has seen."""
        loaded, self._loaded = self._loaded, None
        model = unwrap_model(runner.model)
        if isinstance(model, PatchMix) and dist.is_main_process():
            self._features = TrainingFeatures(model)
        if runner.iter and loaded is not None:
            self._lines = [Line(*line) for line in loaded['lines']]
            self._told = set(loaded['told'])
            device = next(model.parameters()).device
            self._recent = deque(pairs.to(device) for pairs in loaded['recent'])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Remember the features of the step; measure and judge where the log gets a line."""
        self._remember()
        if not self._is_logged(runner, batch_idx):
            return
        figures = self._measure(runner)
        for name in FEATURES:  # or the log would repeat them
            runner.message_hub.log_scalars.pop(f'train/health/{name}', None)
        for name, value in figures.items():
            runner.message_hub.update_scalar(f'train/{name}', value)
        self._lines.append(self._read_line(runner, figures))
        forget_some(self._lines)
        for trouble in find_troubles(
            self._lines, runner.max_iters, global_batch(runner), self._loads_beside(runner)
        ):
            self._tell(runner, trouble)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let what was seen travel along."""
        checkpoint[KEY] = {
            'lines': [tuple(line) for line in self._lines],
            'told': sorted(self._told),
            'recent': [pairs.cpu() for pairs in self._recent],
        }

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the state for :meth:`before_train`, which knows whether the run is resumed."""
        self._loaded = checkpoint.get(KEY)

    def _remember(self) -> None:
        if self._features is None or (pairs := self._features.take()) is None:
            return
        self._recent.append(pairs)
        while sum(map(len, self._recent)) - len(self._recent[0]) >= self.num_images:
            self._recent.popleft()

    def _is_logged(self, runner: Runner, batch_idx: int) -> bool:
        intervals = [hook.interval for hook in runner.hooks if isinstance(hook, LoggerHook)]
        if not intervals or not dist.is_main_process():
            return False
        if self.every_n_inner_iters(batch_idx, intervals[0]):
            return True
        loader = runner.train_dataloader
        return self.end_of_epoch(loader, batch_idx) and len(loader) <= intervals[0]

    def _measure(self, runner: Runner) -> dict[str, float]:
        seconds = self._mean(runner, 'time')
        figures = {
            'health/data_share': self._mean(runner, 'data_time') / seconds,
            'health/images_per_second': global_batch(runner) / seconds,
        }
        looks = [line.iteration for line in self._lines if not math.isnan(line.dimensions)]
        is_due = not looks or runner.iter + 1 - looks[-1] >= runner.max_iters / NUM_LOOKS
        if is_due and sum(map(len, self._recent)) >= self.num_images:
            pairs = torch.cat(list(self._recent))[-self.num_images :]
            # On the host: the device has been waited for, for the log.
            figures |= measure_features(pairs.cpu().float())
        return figures

    def _read_line(self, runner: Runner, figures: dict[str, float]) -> Line:
        return Line(
            runner.iter + 1,
            max(rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates),
            figures['health/data_share'],
            self._mean(runner, 'kl'),
            self._mean(runner, 'kl_source'),
            min(figures.get(f'health/{name}', math.nan) for name in FEATURES[:2]),
        )

    @staticmethod
    def _mean(runner: Runner, name: str) -> float:
        history = runner.message_hub.log_scalars.get(f'train/{name}')
        return float(history.mean(runner.log_processor.window_size)) if history else math.nan

    @staticmethod
    def _loads_beside(runner: Runner) -> bool:
        on_cpu = next(runner.model.parameters()).device.type == 'cpu'
        return not on_cpu or runner.train_dataloader.num_workers > 0

    def _tell(self, runner: Runner, trouble: Trouble) -> None:
        if trouble.name in self._told:
            return
        if trouble.name == 'plateau' and self._told & {'collapse', 'divergence'}:
            return  # which has been explained
        self._told.add(trouble.name)
        runner.logger.warning(f'{trouble.name}: {trouble.message}\n  {trouble.hint}')
        record = {'iter': runner.iter + 1, 'epoch': runner.epoch + 1} | trouble._asdict()
        path = Path(runner.log_dir) / 'vis_data' / 'health.jsonl'
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open('a', encoding='utf-8') as file:
                file.write(json.dumps(record) + '\n')
        except OSError as error:  # a full disk: training goes on
            runner.logger.error(f'{path} is not written ({error}); the run goes on.')
