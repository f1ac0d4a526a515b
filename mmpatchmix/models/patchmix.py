"""PatchMix, the algorithm of https://arxiv.org/abs/2306.12243."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmpatchmix.models.contrastive_head import Contrast
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class PatchMix(BaseSelfSupervisor):
    """Contrastive learning among images and mixtures of their patches.

    Args:
        backbone: Config of the ViT; its last output is the class token, ``(N, D)``.
        neck: Config of the projector.
        head: Config of the :class:`~mmpatchmix.models.ContrastiveHead`.
        momentum_encoder: Config of the :class:`~mmpatchmix.models.MomentumEncoder`,
            which copies backbone and neck. Without one (the ViT-T recipes) keys come
            from the query encoder, without gradient.
        data_preprocessor: Config of the
            :class:`~mmpatchmix.models.PatchMixDataPreprocessor`.
        init_cfg: As in mmengine.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        momentum_encoder: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(
            backbone=backbone,
            neck=neck,
            head=head,
            data_preprocessor=data_preprocessor or dict(type='mmpatchmix.PatchMixDataPreprocessor'),
            init_cfg=init_cfg,
        )
        self.momentum_encoder = momentum_encoder and MODELS.build(
            momentum_encoder, default_args=dict(backbone=self.backbone, neck=self.neck)
        )

    def init_weights(self) -> None:
        """Initialise the query encoder; the momentum encoder starts as its copy."""
        super().init_weights()
        if self.momentum_encoder is not None:
            self.momentum_encoder.copy_from(self.backbone, self.neck)

    def update_momentum_encoder(self, momentum: float) -> None:
        """Move the momentum encoder; due once per optimizer step, before the forward.

        :class:`~mmpatchmix.engine.MomentumUpdateHook` does so under the Runner.

        Args:
            momentum: The share kept, in [0, 1].
        """
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.backbone, self.neck, momentum)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Features for evaluation and transfer: the class token after the last norm.

        Args:
            inputs: ``(N, 3, H, W)`` normalised images.

        Returns:
            Tensor: ``(N, D)``, of the momentum backbone where there is one.
        """
        encoder = self.momentum_encoder if self.momentum_encoder is not None else self
        return encoder.backbone(inputs)[-1]

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """The sum of all ``loss_*`` is what PatchMix minimises.

        Args:
            inputs: The views, mixtures and targets that the data preprocessor
                made, see :class:`~mmpatchmix.models.PatchMixDataPreprocessor`.
            data_samples: Not used: no labels are needed.

        Returns:
            dict: ``loss_source``, ``loss_mix_source``, ``loss_mix_mix`` and, with
            local crops, ``loss_local`` and ``loss_mix_local``; beside them ``acc_*``
            and ``gap``, see :func:`summarise`.
        """
        z1, z2_mixed = self.project([inputs['view_1'], inputs['mixed_view_2']])
        q1, q2_mixed = self.head.predict(z1), self.head.predict(z2_mixed)
        k1, k2, k1_mixed = self.head.gather(self.keys(inputs, z1))

        contrast = self.head.contrast
        terms = [
            Term('source', 1.0, [contrast(q1, k2)]),
            Term('mix_source', 0.5, [contrast(q2_mixed, k1, inputs['mix_to_source'])]),
            Term('mix_mix', 0.5, [contrast(q2_mixed, k1_mixed, inputs['mix_to_mix'])]),
        ]
        if 'local_views' in inputs:
            # (L, N, C, h, w) -> (L * N, C, h, w): one view group, averaged over the crops.
            crops = [inputs[name].flatten(0, 1) for name in ('local_views', 'mixed_local_views')]
            q_local, q_local_mixed = (self.head.predict(z) for z in self.project(crops))
            target = inputs['local_mix_to_source']
            terms += [
                Term('local', 1.0, [contrast(q_local, k) for k in (k1, k2)]),
                Term('mix_local', 1.0, [contrast(q_local_mixed, k, target) for k in (k1, k2)]),
            ]
        return summarise(terms)

    def project(self, views: Sequence[Tensor]) -> list[Tensor]:
        """Projector outputs of view groups of one resolution.

        The backbone has no statistics over the batch, so it takes all groups in
        one call. The projector has: its BatchNorm sees each group by itself.

        Args:
            views: View groups, each ``(B_i, C, H, W)``.

        Returns:
            list[Tensor]: One ``(B_i, D)`` per group.
        """
        return encode(self.backbone, self.neck, views)

    @torch.no_grad()
    def keys(self, inputs: dict, z1: Tensor) -> list[Tensor]:
        """Projector outputs of view 1, view 2 and mixed view 1, without gradient.

        Args:
            inputs: As in :meth:`loss`.
            z1: ``(N, D)``, the query encoder's projection of view 1, which serves
                as its key where there is no momentum encoder.

        Returns:
            list[Tensor]: Three ``(N, D)`` tensors.
        """
        view_2, mixed_view_1 = inputs['view_2'], inputs['mixed_view_1']
        encoder = self.momentum_encoder
        if encoder is None:
            return [z1.detach(), *self.project([view_2, mixed_view_1])]
        if self.training and not encoder.num_updates:
            warnings.warn(
                'The momentum encoder has never been updated: under the Runner, keep '
                "default_hooks=dict(momentum=dict(type='mmpatchmix.MomentumUpdateHook')); in a "
                'loop of your own, call model.update_momentum_encoder(momentum) before each step.'
            )
            encoder.num_updates = 1  # say so once
        return encode(encoder.backbone, encoder.neck, [inputs['view_1'], view_2, mixed_view_1])


def encode(backbone: nn.Module, neck: nn.Module, views: Sequence[Tensor]) -> list[Tensor]:
    """One backbone call for all ``views``, one projector call for each; see ``project``."""
    features = backbone(torch.cat(list(views)))[-1]  # (sum B_i, width)
    return [neck((part,))[0] for part in features.split([len(view) for view in views])]


class Term(NamedTuple):
    """One term of the loss: a weighted sum of contrasts."""

    name: str
    weight: float
    contrasts: list[Contrast]


def summarise(terms: Sequence[Term]) -> dict[str, Tensor]:
    """Losses by term, and what tells a reader whether they are any good.

    Args:
        terms: The terms of the loss.

    Returns:
        dict: ``loss_<term>``, which mmengine adds up; ``acc_<term>``, the share of
        queries whose nearest key belongs to them; ``gap``, how far the whole loss
        is above the entropy of its targets, the least it could be, in nats.
    """
    losses, accuracies, gap = {}, {}, 0.0
    for name, weight, contrasts in terms:
        losses[f'loss_{name}'] = weight * sum(contrast.loss for contrast in contrasts)
        hits = sum(contrast.accuracy for contrast in contrasts)
        accuracies[f'acc_{name}'] = hits / len(contrasts)
        gap = gap + weight * sum(contrast.gap for contrast in contrasts)
    return {**losses, **accuracies, 'gap': gap}
