"""Two parameter groups, with and without weight decay, instead of one per parameter."""

from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmpatchmix.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class DecayGroupsConstructor(DefaultOptimWrapperConstructor):
    """Let weights decay, but neither biases nor other 1-D parameters.

    mmengine's constructor makes a group of every parameter, so a multi-tensor
    optimizer is called with one tensor at a time (ViT-S: 160 calls instead of
    2) and each parameter that needs no gradient is warned about (the whole
    momentum encoder).

    Args:
        optim_wrapper_cfg: Config of the wrapper, with ``optimizer``.
        paramwise_cfg: Only ``flat_decay_mult``, the multiple of the weight decay
            for 1-D parameters; 0 by default.

    Raises:
        ValueError: On any other key of ``paramwise_cfg``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise_cfg = {'flat_decay_mult': 0.0} | (paramwise_cfg or {})
        if unknown := set(paramwise_cfg) - {'flat_decay_mult'}:
            raise ValueError(
                f'optim_wrapper.paramwise_cfg has {sorted(unknown)}, but DecayGroupsConstructor '
                "knows only 'flat_decay_mult'. For layer-wise settings remove "
                'optim_wrapper.constructor, which brings back the one of mmengine.'
            )
        super().__init__(optim_wrapper_cfg, paramwise_cfg)

    def add_params(self, params: list, module: nn.Module, prefix: str = '', **kwargs) -> None:
        """Add the two groups; see mmengine's base class."""
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        flat_decay = self.base_wd * self.paramwise_cfg['flat_decay_mult']
        params += [
            {'params': [p for p in trained if p.ndim > 1], 'weight_decay': self.base_wd},
            {'params': [p for p in trained if p.ndim <= 1], 'weight_decay': flat_decay},
        ]
