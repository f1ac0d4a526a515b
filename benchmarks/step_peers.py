"""Training steps of other codebases, for step.py: each is written as its users write it."""

import sys
import warnings
from collections.abc import Callable
from functools import partial

import timm
import torch
from harness import MOMENTUM
from mmengine.hub import get_config
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmpretrain.registry import MODELS as MMPRETRAIN_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

Step = Callable[[Callable], None]  # of a function that returns the autocast context
VIT_S = dict(patch_size=16, img_size=224, num_classes=256, embed_dim=384, depth=12, num_heads=12)


class NaivePatchMix:
    """PatchMix written directly, on the networks of a :class:`mmpatchmix.models.PatchMix`.

    One encoder call per view, targets as matrices, momentum encoder and AdamW parameter by
    parameter. It starts from the data preprocessor's outputs, so it does not mix.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        trained = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, foreach=False)

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
        model = self.model
        query = [*model.backbone.parameters(), *model.neck.parameters()]
        with torch.no_grad():
            for slow, fast in zip(model.momentum_encoder.parameters(), query, strict=True):
                slow.mul_(MOMENTUM).add_(fast, alpha=1 - MOMENTUM)
        with autocast():
            loss = self.loss(inputs)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def mocov3_step(views: list[Tensor]) -> Step:
    """Return a step of mmpretrain's MoCo v3 with ViT-S/16: two query and two key views."""
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


def lightly_step(views: list[Tensor], crops: Tensor | None = None) -> Step:
    """Return a step made of lightly's parts: MoCo of two views, or DINO where there are crops.

    In MoCo each view is query against the other as key; in DINO all views are queries and the two
    large ones are keys.
    """
    from lightly.loss import DINOLoss, NTXentLoss
    from lightly.models.modules import DINOProjectionHead, MoCoProjectionHead
    from lightly.models.utils import update_momentum

    def make() -> nn.Module:
        vit = timm.create_model(
            'vit_small_patch16_224', num_heads=12, num_classes=0, dynamic_img_size=True
        )
        if crops is None:
            return nn.Sequential(vit, MoCoProjectionHead(384, 4096, 256, 3, batch_norm=True))
        return nn.Sequential(vit, DINOProjectionHead(384, 2048, 256, 4096))

    query, key = make(), make()
    key.load_state_dict(query.state_dict())
    key.requires_grad_(False)
    optimizer = torch.optim.AdamW(query.parameters(), lr=1e-4)
    moco, dino = NTXentLoss(temperature=0.2), DINOLoss(output_dim=4096)
    all_views = [*views, *(() if crops is None else crops)]

    def step(autocast):
        update_momentum(query, key, m=MOMENTUM)
        with autocast():
            with torch.no_grad():
                keys = [key(view) for view in views]
            queries = [query(view) for view in all_views]
            if crops is None:
                loss = moco(queries[0], keys[1]) + moco(queries[1], keys[0])
            else:
                loss = dino(keys, queries, epoch=0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def import_published(folder: str) -> tuple:
    """Import the parts of a step from a clone; without a GPU ``.cuda()`` does nothing."""
    sys.path.insert(0, folder)
    warnings.filterwarnings('ignore', category=FutureWarning, module='timm')
    from module.frame.contrast_momentum import ContrastMomentum_ViT
    from module.loss import MultiTempContrastiveLoss
    from module.mix import PatchMixer
    from module.vits import ViT

    if not torch.cuda.is_available():
        Tensor.cuda = lambda self, *args, **kwargs: self
        PatchMixer._one_hot.__defaults__ = (*PatchMixer._one_hot.__defaults__[:2], 'cpu')
    return ViT, ContrastMomentum_ViT, PatchMixer, MultiTempContrastiveLoss()


def build_published(theirs: tuple, is_fused: bool, views: dict[str, Tensor]) -> Step:
    """Return a step of the published code, in the order of its ``main_pretrain.py``."""
    batch = len(views['view_1'])
    vit, frame, mixer, criterion = theirs
    query, key = vit(drop_path_rate=0.1, **VIT_S), vit(**VIT_S)
    model = frame(query, key, 3, 2, 256, 4096).train()
    for block in [*query.blocks, *key.blocks]:
        block.attn.fused_attn = is_fused
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = ([p for p in trained if (p.ndim > 1) is wide] for wide in (True, False))
    groups = [dict(params=matrices), dict(params=others, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, weight_decay=0.04)
    mix = mixer(num_classes=batch, mix_s=16, mix_p=1.0, mix_n=2, smoothing=0.0)
    keep = mixer(num_classes=batch, mix_s=16, mix_p=0.0, mix_n=1)
    contrast = partial(criterion, temperature=0.2)

    def step(autocast: Callable) -> None:
        model.update_momentum_encoder(MOMENTUM)
        numbers = torch.arange(batch).to(views['view_1'].device)
        (mixed_1, to_source, to_mix), (mixed_2, *_) = (
            mix(views[name], numbers) for name in ('view_1', 'view_2')
        )
        _, one, _ = keep(views['view_1'], numbers)
        with autocast():
            q_1, k_1 = model(views['view_1'])
            k_2 = model(views['view_2'], q=False)[1]
            k_mixed = model(mixed_1, q=False)[1]
            q_mixed = model(mixed_2, k=False)[0]
            loss = contrast(q_1, k_2, one) + contrast(q_mixed, k_1, to_source) / 2
            loss = loss + contrast(q_mixed, k_mixed, to_mix) / 2
            if 'local_views' in views:
                crops = views['local_views']
                mixed = torch.cat([mix(crop, numbers)[0] for crop in crops])
                for images, target in ((crops.flatten(0, 1), one), (mixed, to_source)):
                    for q in model(images, k=False)[0].split(batch):
                        terms = contrast(q, k_1, target) + contrast(q, k_2, target)
                        loss = loss + terms / len(crops)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
