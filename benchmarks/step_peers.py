"""Training steps that `step.py` compares ours with; each is written as its users write it."""

import copy
from collections.abc import Callable

import timm
import torch
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM = 0.996


class NaivePatchMix:
    """PatchMix as one would first write it down, on the networks of a model of ours.

    One encoder call per view, targets as matrices, the momentum encoder parameter by
    parameter, AdamW parameter by parameter. It starts where the workers' and the data
    preprocessor's outputs are, so mixing is not in it.

    Args:
        model: A :class:`mmpatchmix.models.PatchMix`; its networks are trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad], lr=1e-4, foreach=False
        )

    def query(self, view: Tensor) -> Tensor:
        model = self.model
        z = model.head.predictor(model.neck(model.backbone(view)))[0]
        return F.normalize(z.float(), dim=1)

    @torch.no_grad()
    def key(self, view: Tensor) -> Tensor:
        encoder = self.model.momentum_encoder
        return F.normalize(encoder.neck(encoder.backbone(view))[0].float(), dim=1)

    def contrast(self, q: Tensor, k: Tensor, target: Tensor) -> Tensor:
        return -(target * F.log_softmax(q @ k.T / self.model.head.temperature, dim=1)).sum(1).mean()

    def update_momentum_encoder(self) -> None:
        model = self.model
        query = [*model.backbone.parameters(), *model.neck.parameters()]
        with torch.no_grad():
            for slow, fast in zip(model.momentum_encoder.parameters(), query, strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)

    def loss(self, inputs: dict) -> Tensor:
        num_images, device = len(inputs['view_1']), inputs['view_1'].device

        def dense(target):
            rows = torch.zeros(num_images, num_images)
            for offset, weight in zip(*target, strict=True):
                for n in range(num_images):
                    rows[n, (n + offset) % num_images] += weight
            return rows.to(device)

        one, mixed = torch.eye(num_images, device=device), dense(inputs['mix_to_source'])
        k1, k2, k1_mixed = (self.key(inputs[n]) for n in ('view_1', 'view_2', 'mixed_view_1'))
        q1, q2_mixed = self.query(inputs['view_1']), self.query(inputs['mixed_view_2'])
        loss = self.contrast(q1, k2, one)
        loss = loss + 0.5 * self.contrast(q2_mixed, k1, mixed)
        loss = loss + 0.5 * self.contrast(q2_mixed, k1_mixed, dense(inputs['mix_to_mix']))
        if 'local_views' in inputs:
            local_target = dense(inputs['local_mix_to_source'])
            num_local = len(inputs['local_views'])
            for view, mix in zip(inputs['local_views'], inputs['mixed_local_views'], strict=True):
                q, q_mixed = self.query(view), self.query(mix)
                for k in (k1, k2):
                    terms = self.contrast(q, k, one) + self.contrast(q_mixed, k, local_target)
                    loss = loss + terms / num_local
        return loss

    def step(self, inputs: dict, autocast: Callable) -> None:
        self.update_momentum_encoder()
        with autocast():
            loss = self.loss(inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def mocov3_step(views: list[Tensor]) -> Callable[[Callable], None]:
    """mmpretrain's MoCo v3 with ViT-S/16: two query and two key views per image."""
    MessageHub.get_current_instance().update_info('max_iters', 375_000)
    config = get_config('mmpretrain::mocov3/mocov3_vit-small-p16_16xb256-amp-coslr-300e_in1k.py')
    model = MMPRETRAIN_MODELS.build(config.model)
    model.init_weights()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    wrapper = OptimWrapper(torch.optim.AdamW(trained, lr=1e-4))

    def step(autocast):
        with autocast():
            losses = model.loss(views, None)
        wrapper.update_params(losses['loss'])

    return step


def timm_vit() -> nn.Module:
    """ViT-S/16 with 12 heads, for images of any size that 16 divides."""
    return timm.create_model(
        'vit_small_patch16_224', num_heads=12, num_classes=0, dynamic_img_size=True
    )


def lightly_moco_step(views: list[Tensor]) -> Callable[[Callable], None]:
    """MoCo of lightly's parts: each view is query against the other as key."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import update_momentum

    query = nn.Sequential(timm_vit(), MoCoProjectionHead(384, 4096, 256, 3, batch_norm=True))
    key = copy.deepcopy(query).requires_grad_(False)
    loss_function = NTXentLoss(temperature=0.2)
    optimizer = torch.optim.AdamW(query.parameters(), lr=1e-4)

    def step(autocast):
        update_momentum(query, key, m=MOMENTUM)
        with autocast():
            queries = [query(view) for view in views]
            with torch.no_grad():
                keys = [key(view) for view in views]
            loss = loss_function(queries[0], keys[1]) + loss_function(queries[1], keys[0])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def lightly_dino_step(views: list[Tensor], crops: Tensor) -> Callable[[Callable], None]:
    """DINO of lightly's parts: all views are queries, the two large ones are keys."""
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    # Weight norm forbids copies.
    student, teacher = (
        nn.Sequential(timm_vit(), DINOProjectionHead(384, 2048, 256, 4096)) for _ in range(2)
    )
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    loss_function = DINOLoss(output_dim=4096)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-4)
    all_views = [*views, *crops]

    def step(autocast):
        update_momentum(student, teacher, m=MOMENTUM)
        with autocast():
            with torch.no_grad():
                keys = [teacher(view) for view in views]
            queries = [student(view) for view in all_views]
            loss = loss_function(keys, queries, epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
