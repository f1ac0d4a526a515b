"""Features of the training views, which a step computes anyway."""

import torch
from torch import Tensor

from mmpatchmix.models import PatchMix


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
