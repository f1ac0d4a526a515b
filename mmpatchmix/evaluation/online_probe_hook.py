"""A linear classifier trained beside a run, which shows how its features improve."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.runner import Runner
from torch import nn
from torch.nn.utils import skip_init

from mmpatchmix.engine.exact_resume import StatefulHook
from mmpatchmix.engine.ranks import call_on_first_rank
from mmpatchmix.evaluation.features import Features, TrainingFeatures, get_label
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class OnlineProbeHook(StatefulHook):
    """Train a linear classifier on features of the training views; evaluate it with every kNN.

    Its inputs are the class tokens of ``view_1`` of :class:`TrainingFeatures`, normalised by a
    BatchNorm without parameters; its AdamW has no schedule and no weight decay. No gradient reaches
    the model and no random number is drawn: the weights of the run do not change. With several
    ranks the first one trains it on its own images. Its state is part of checkpoints. Without
    labels, or without class names in the data set, it does nothing.
    """

    key = 'online_probe'

    def __init__(self, lr: float = 1e-3) -> None:
        self.lr = lr
        self._features: TrainingFeatures | None = None
        self._num_classes = 0
        self._classifier: nn.Sequential | None = None
        self._optimizer: torch.optim.Optimizer | None = None

    def before_train(self, runner: Runner) -> None:
        """Register on the model; restore the classifier of a resumed run."""
        loaded = self.pop_loaded_state()
        model = unwrap_model(runner.model)
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None) or {}
        self._num_classes = len(metainfo.get('classes') or ())
        if not isinstance(model, PatchMix) or not self._num_classes or not dist.is_main_process():
            return
        self._features = TrainingFeatures(model)
        if runner.iter and loaded is not None:
            width = loaded['classifier']['1.weight'].shape[1]
            self._build(width, next(model.parameters()).device)
            self._classifier.load_state_dict(loaded['classifier'])
            self._optimizer.load_state_dict(loaded['optimizer'])

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch=None, outputs: dict | None = None
    ) -> None:
        """Train one step on the features of the iteration."""
        pairs = self._features and self._features.take()
        labels = [] if pairs is None else [get_label(x) for x in data_batch['data_samples']]
        if len(labels) < 2 or min(labels) < 0:
            return
        features = pairs[:, 0].float()  # (N, D)
        if self._classifier is None:
            self._build(features.shape[1], features.device)
        target = torch.tensor(labels).to(features.device, non_blocking=True)
        loss = F.cross_entropy(self._classifier(features), target)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def judge(self, queries: Features) -> dict[str, float]:
        """Return ``probe/top1`` of held-out images in percent on all ranks; empty at first."""

        def measure() -> dict[str, float]:
            if self._classifier is None:
                return {}
            self._classifier.eval()
            device = self._classifier[1].weight.device
            predictions = self._classifier(queries.features.to(device)).argmax(1).cpu()
            self._classifier.train()
            return {'probe/top1': 100 * (predictions == queries.labels).double().mean().item()}

        return call_on_first_rank(measure)

    def state_dict(self) -> dict[str, Any] | None:
        """Return the states of classifier and optimizer; None before the first step."""
        if self._classifier is None:
            return None
        parts = dict(classifier=self._classifier, optimizer=self._optimizer)
        return {name: part.state_dict() for name, part in parts.items()}

    def _build(self, width: int, device: torch.device) -> None:
        # Default initialisation would draw random numbers and change the run.
        linear = skip_init(nn.Linear, width, self._num_classes, device=device)
        nn.init.zeros_(linear.weight), nn.init.zeros_(linear.bias)
        norm = nn.BatchNorm1d(width, affine=False, device=device)
        self._classifier = nn.Sequential(norm, linear)
        self._optimizer = torch.optim.AdamW(linear.parameters(), lr=self.lr, weight_decay=0.0)
