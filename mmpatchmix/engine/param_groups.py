"""Optimizer wrapper constructors: two parameter groups for weight decay, or groups per depth."""

from functools import partial

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIMIZERS
from mmpretrain.engine.optimizers import LearningRateDecayOptimWrapperConstructor
from torch import nn

from mmpatchmix.registry import OPTIM_WRAPPER_CONSTRUCTORS, read_signature


def complete_optimizer(optimizer: dict) -> dict:
    """Return an optimizer's config with the ``lr`` and ``weight_decay`` of its signature."""
    parameters = read_signature(OPTIMIZERS, optimizer['type'])
    defaults = {key: parameters[key].default for key in ('lr', 'weight_decay') if key in parameters}
    known = {key: value for key, value in defaults.items() if isinstance(value, int | float)}
    return known | dict(optimizer)


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DecayGroupsConstructor(DefaultOptimWrapperConstructor):
    """Make two groups of parameters: weights decay, biases and other 1-D parameters do not.

    mmengine's constructor makes one group per parameter: a multi-tensor optimizer is then called
    for one tensor at a time (ViT-S: 160 calls instead of 2). ``paramwise_cfg`` has one key,
    ``flat_decay_mult``, the factor of the weight decay of 1-D parameters, 0 by default.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = {'flat_decay_mult': 0.0} | (paramwise_cfg or {})
        if unknown := set(paramwise_cfg) - {'flat_decay_mult'}:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has {sorted(unknown)}, but DecayGroupsConstructor '
                "supports only 'flat_decay_mult': remove optim_wrapper.constructor for others."
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        self.base_wd = complete_optimizer(self.optimizer_cfg).get('weight_decay', 0.0)

    def add_params(self, params: list, module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the two groups; see mmengine's base class."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        flat_decay = self.base_wd * self.paramwise_cfg['flat_decay_mult']
        params += [
            {'params': [p for p in trained if p.ndim > 1], 'weight_decay': self.base_wd},
            {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': flat_decay},
        ]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(
    name=['LayerDecayConstructor', 'DetectorLayerDecayConstructor']
)
class LayerDecayConstructor(LearningRateDecayOptimWrapperConstructor):
    """mmpretrain's layer-wise learning rate decay, for any model with a ViT as ``backbone``.

    Arguments are those of mmpretrain's constructor. With L blocks and rate r, embeddings learn at
    r^(L+1) of the learning rate, block i (from 0) at r^(L-i), everything after the backbone at 1,
    as in BEiT (https://arxiv.org/abs/2106.08254) and ViTDet (https://arxiv.org/abs/2203.16527).
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        optimizer = complete_optimizer(optim_wrapper_cfg['optimizer'])
        super().__init__({**optim_wrapper_cfg, 'optimizer': optimizer}, paramwise_cfg)

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the groups of ``module``, whose backbone must have ``get_layer_depth``."""
        if prefix:  # a child of the model, in the recursion of the base class
            super().add_params(params, module, prefix, **kwargs)
            return
        depth = getattr(getattr(module, 'backbone', None), 'get_layer_depth', None)
        if depth is None:
            raise ValueError(
                f'the backbone of {type(module).__name__} has no get_layer_depth(), which layer-'
                'wise learning rates need: use a ViT, or remove optim_wrapper.constructor.'
            )
        single: list[dict] = []
        super().add_params(single, module, get_layer_depth=partial(depth, prefix='backbone.'))
        merged: dict[tuple, dict] = {}
        for group in single:
            parameters, name, _ = (group.pop(key) for key in ('params', 'param_name', 'layer_id'))
            key = tuple(sorted(group.items()))
            same = merged.setdefault(key, {'params': [], 'param_names': []} | group)
            same['params'] += parameters
            same['param_names'].append(name)
        params.extend(merged.values())
