"""PatchMix, the algorithm of https://arxiv.org/abs/2306.12243."""

import warnings
from collections.abc import Sequence
from functools import partial

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.models.selfsup import BaseSelfSupervisor
from torch import Tensor, nn

from mmpatchmix.models.classifier import complete, find_width
from mmpatchmix.models.compiling import choose_compile_options, records_graphs
from mmpatchmix.models.contrastive_head import Contrast
from mmpatchmix.models.micro_batches import train_in_micro_batches
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.registry import MODELS

# Of the paper. Local terms are means over the crops.
LOSS_WEIGHTS = dict(source=1.0, mix_source=0.5, mix_mix=0.5, local=1.0, mix_local=1.0)


@MODELS.register_module()
class PatchMix(BaseSelfSupervisor):
    """Contrastive learning among images and mixtures of their patches.

    Args:
        backbone: Config of the ViT, whose last output is the class token, ``(N, D)``.
        neck: Config of the projector; its width is the ``embed_dims`` of the backbone, the
            predictor's its ``out_channels``.
        head: Config of the :class:`~mmpatchmix.models.ContrastiveHead`.
        momentum_encoder: Config of the :class:`~mmpatchmix.models.MomentumEncoder`. None (the ViT-T
            recipes) computes keys with the query encoder, without gradient.
        data_preprocessor: Config of the :class:`~mmpatchmix.models.PatchMixDataPreprocessor`.
        loss_weights: Weights of terms by name that differ from ``LOSS_WEIGHTS``. 0 removes a term.
        micro_batch_size: Images per rank whose queries are in memory at once, see
            :func:`~mmpatchmix.models.micro_batches.train_in_micro_batches`; by default all.
        compile: Whether to compile the backbones for training with ``torch.compile``, or its
            options: ``dict(mode='reduce-overhead')`` for CUDA graphs.
        init_cfg: As in mmengine, but without a checkpoint.

    Raises:
        ValueError: If an argument is out of range, or ``init_cfg`` names a checkpoint.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        momentum_encoder: dict | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        loss_weights: dict[str, float] | None = None,
        micro_batch_size: int | None = None,
        compile: bool | dict = False,
        init_cfg: dict | None = None,
    ) -> None:
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(
                f'model.micro_batch_size={micro_batch_size} must be at least 1 image, or None.'
            )
        if find_pretrained(init_cfg):
            raise ValueError(
                'model.init_cfg names a checkpoint; mmengine would load only the keys that fit. '
                'load_from=FILE loads all of a model, --init FILE '
                "(model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE)) all of its "
                'backbone, from any layout.'
            )
        backbone = MODELS.build(backbone)
        neck = complete(neck, 'model.neck', in_channels=find_width(backbone))
        if predictor := head.get('predictor'):
            ends = dict.fromkeys(('in_channels', 'out_channels'), neck.get('out_channels'))
            head = {**head, 'predictor': complete(predictor, 'model.head.predictor', **ends)}
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
        self.loss_weights = LOSS_WEIGHTS | (loss_weights or {})
        if self.loss_weights.keys() != LOSS_WEIGHTS.keys() or not (
            min(self.loss_weights.values()) >= 0 < max(self.loss_weights.values())
        ):
            raise ValueError(
                f'model.loss_weights={loss_weights}: weights of {", ".join(LOSS_WEIGHTS)}, none '
                'below 0 and not all of them 0.'
            )
        self.micro_batch_size = micro_batch_size
        self.compile_options = choose_compile_options(compile, micro_batch_size)
        if self.compile_options is not None:
            self.backbone.compile(**self.compile_options)
            if self.momentum_encoder is not None:
                self.momentum_encoder.backbone.compile(**self.compile_options)

    def init_weights(self) -> None:
        """Initialise the query encoder; the momentum encoder starts as its copy."""
        super().init_weights()
        if self.momentum_encoder is not None:
            self.momentum_encoder.copy_from(self.backbone, self.neck)

    def update_momentum_encoder(self, momentum: float) -> None:
        """Move the momentum encoder, before the forward of each optimizer step.

        Under the Runner :class:`~mmpatchmix.engine.MomentumScheduleHook` calls it.
        """
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.backbone, self.neck, momentum)

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Compute class tokens ``(N, D)`` of normalised images ``(N, C, H, W)``.

        They are of the momentum backbone if there is one.
        """
        encoder = self.momentum_encoder if self.momentum_encoder is not None else self
        if self.compile_options is None:
            return encoder.backbone(inputs)[-1]
        # Each batch size of the evaluation would need a graph of its own.
        with torch.compiler.set_stance('force_eager'):
            return encoder.backbone(inputs)[-1]

    def train_step(self, data: dict, optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """Train as in mmengine, or in micro-batches if ``micro_batch_size`` is set."""
        if self.micro_batch_size is None:
            return super().train_step(data, optim_wrapper)
        return train_in_micro_batches(self, self, data, optim_wrapper)

    def loss(self, inputs: dict, data_samples: list | None = None) -> dict[str, Tensor]:
        """Compute the terms of the loss; PatchMix minimises the sum of all ``loss_*``.

        Args:
            inputs: See :class:`~mmpatchmix.models.PatchMixDataPreprocessor`. A micro-batch also has
                ``keys`` of the whole batch and ``images``, the range of its images in it.
            data_samples: Not used.

        Returns:
            dict: ``loss_source``, ``loss_mix_source``, ``loss_mix_mix`` and, with
            local crops, ``loss_local`` and ``loss_mix_local``; ``acc_*``, ``kl`` and ``kl_*``, see
            :func:`summarise`; and ``health/*_similarity``, see
            :meth:`~mmpatchmix.models.ContrastiveHead.measure_similarity`.
        """
        self._check_micro_batches(inputs)
        if self.training and records_graphs(self.compile_options):
            torch.compiler.cudagraph_mark_step_begin()
        keys = inputs.get('keys')
        if keys is None and self.momentum_encoder is not None:
            # Before the queries, so that the memory of the keys' encoder is free again.
            keys = self.head.gather(self.keys(inputs))
        project = partial(encode, self.backbone, self.neck)
        z1, z2_mixed = project([inputs['view_1'], inputs['mixed_view_2']])
        q1, q2_mixed = self.head.predict(z1), self.head.predict(z2_mixed)
        k1, k2, k1_mixed = keys or self.head.gather(self.keys(inputs, z1))

        ce = partial(self.head.contrast, images=inputs.get('images'))
        terms = dict(
            source=[ce(q1, k2)],
            mix_source=[ce(q2_mixed, k1, inputs['mix_to_source'])],
            mix_mix=[ce(q2_mixed, k1_mixed, inputs['mix_to_mix'])],
        )
        if 'local_views' in inputs:
            # (L, N, C, h, w) -> (L * N, C, h, w): one view group; ce is a mean over the crops.
            crops = [inputs[name].flatten(0, 1) for name in ('local_views', 'mixed_local_views')]
            q_local, q_local_mixed = (self.head.predict(z) for z in project(crops))
            target = inputs['local_mix_to_source']
            terms |= dict(
                local=[ce(q_local, k) for k in (k1, k2)],
                mix_local=[ce(q_local_mixed, k, target) for k in (k1, k2)],
            )
        similarity = self.head.measure_similarity(q1, k2, inputs.get('images'))
        return summarise(terms, self.loss_weights) | similarity

    def _check_micro_batches(self, inputs: dict) -> None:
        num_images = len(inputs['view_1'])
        is_whole = self.training and 'keys' not in inputs
        if is_whole and num_images > (self.micro_batch_size or num_images):
            raise ValueError(
                f'model.micro_batch_size={self.micro_batch_size}, but {num_images} images came at '
                'once: train through PatchMix.train_step, or when distributed with '
                "model_wrapper_cfg=dict(type='mmpatchmix.PatchMixDDP', broadcast_buffers=False)."
            )

    @torch.no_grad()
    def keys(self, inputs: dict, z1: Tensor | None = None) -> list[Tensor]:
        """Project view 1, view 2 and mixed view 1 to ``(N, D)`` each, without gradient.

        Without momentum encoder the query encoder's projection ``z1`` of view 1, ``(N, D)``, is its
        key.
        """
        names = ['view_1', 'view_2', 'mixed_view_1']
        encoder, known = self.momentum_encoder, []
        if encoder is None:
            encoder = self
            if z1 is not None:
                known, names = [z1.detach()], names[1:]
        elif self.training and not encoder.num_updates:
            warnings.warn(
                'The momentum encoder has never been updated: under the Runner, keep '
                "default_hooks=dict(momentum=dict(type='mmpatchmix.MomentumScheduleHook')); in a "
                'loop of your own, call model.update_momentum_encoder(momentum) before each step.'
            )
            encoder.num_updates = 1  # warn once
        views = [inputs[name] for name in names]
        return known + encode(encoder.backbone, encoder.neck, views, self.micro_batch_size)


def encode(
    backbone: nn.Module, neck: nn.Module, views: Sequence[Tensor], size: int | None = None
) -> list[Tensor]:
    """Call the backbone once for all ``views`` and the projector once for each.

    BatchNorm of the projector uses the statistics of one view group. Views are ``(N, C, H, W)``, of
    one resolution; ``size`` is the number of images of each per call of the backbone, by default
    all. Returns one ``(N, D)`` per view.
    """
    chunks = zip(*(view.split(size or len(view)) for view in views), strict=True)
    features = [backbone(torch.cat(chunk))[-1].chunk(len(views)) for chunk in chunks]
    return [neck((torch.cat(parts),))[0] for parts in zip(*features, strict=True)]


def summarise(terms: dict[str, Sequence[Contrast]], weights: dict[str, float]) -> dict[str, Tensor]:
    """Name the losses and metrics of the contrasts of each term, without terms of weight 0.

    Returns:
        dict: ``loss_<term>``, which mmengine adds up; ``acc_<term>``, the share of
        queries whose nearest key has a weight in the target; ``kl``, the whole loss
        minus the entropy of its targets, its minimum, in nats; and ``kl_<term>``, the
        mean over the contrasts of the term, not weighted.

    Raises:
        ValueError: If all terms have the weight 0.
    """
    losses, accuracies, divergences, kl = {}, {}, {}, 0.0
    for name, contrasts in terms.items():
        if not weights[name]:
            continue
        loss, accuracy, divergence = map(sum, zip(*contrasts, strict=True))
        losses[f'loss_{name}'] = weights[name] * loss
        accuracies[f'acc_{name}'] = accuracy / len(contrasts)
        divergences[f'kl_{name}'] = divergence / len(contrasts)
        kl = kl + weights[name] * divergence
    if not losses:
        raise ValueError(
            'model.loss_weights leaves only terms of local crops, and the pipeline makes no local '
            'crops: set its num_local, or another weight.'
        )
    return {**losses, **accuracies, 'kl': kl, **divergences}
