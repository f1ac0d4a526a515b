"""The momentum copy of the encoder, which computes the keys."""

import copy

import torch
from mmengine.model import BaseModule
from torch import nn

from mmpatchmix.registry import MODELS


@MODELS.register_module()
class MomentumEncoder(BaseModule):
    """Momentum copy of a backbone and its projector.

    ``theta_k <- m * theta_k + (1 - m) * theta_q`` over *parameters* only (MoCo,
    https://arxiv.org/abs/1911.05722). The copy stays in train mode and has BatchNorm statistics of
    its own; stochastic depth is disabled, because the keys are targets. No parameter receives a
    gradient. ``m`` is the share *kept*; ``momentum`` of mmengine's moving averages is ``1 - m``.
    """

    def __init__(self, backbone: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.neck = copy.deepcopy(neck)
        self.num_updates = 0
        self.requires_grad_(False)
        for module in self.modules():
            if hasattr(module, 'drop_prob'):  # DropPath of mmcv or timm
                module.drop_prob = 0.0

    def init_weights(self) -> None:
        """Do nothing: :meth:`copy_from` copies the weights of the queries."""
        self._is_init = True

    @torch.no_grad()
    def copy_from(self, backbone: nn.Module, neck: nn.Module) -> None:
        """Copy parameters and buffers of the query encoder."""
        self.backbone.load_state_dict(backbone.state_dict())
        self.neck.load_state_dict(neck.state_dict())

    @torch.no_grad()
    def update(self, backbone: nn.Module, neck: nn.Module, momentum: float) -> None:
        """Move the parameters towards the query encoder's, in one multi-tensor call.

        ``ValueError`` if ``momentum``, the share kept, is outside [0, 1].
        """
        if not 0.0 <= momentum <= 1.0:
            raise ValueError(f'momentum={momentum} is the share kept and must be in [0, 1].')
        key = [*self.backbone.parameters(), *self.neck.parameters()]
        query = [*backbone.parameters(), *neck.parameters()]
        torch._foreach_lerp_(key, query, 1.0 - momentum)
        self.num_updates += 1
