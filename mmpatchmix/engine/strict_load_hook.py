"""Refuse a checkpoint that does not fit the model, instead of loading half of it."""

from mmengine.hooks import Hook
from torch import nn

from mmpatchmix.checkpoints import fit_state_dict
from mmpatchmix.checkpoints.vit_spec import spec_from_mmengine
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compare keys, shapes and heads before the Runner loads, which it does without insisting.

    mmengine loads with ``strict=False`` and only logs what did not match. Here
    every missing, unexpected or wrongly shaped key is listed and the run stops. The number of
    heads, which no shape tells, is compared where the file says it.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise ``ValueError`` with all mismatches; called before anything is loaded."""
        model = unwrap_model(runner.model)
        state = checkpoint.get('state_dict', checkpoint)
        advice = 'Use the config it was trained with.'
        if isinstance(model, PatchMix):
            advice += (
                ' To start the backbone alone, from any layout: --init FILE (model.backbone.'
                "init_cfg=dict(type='Pretrained', checkpoint=FILE))."
            )
        fit_state_dict(state, model, 'The checkpoint', advice)
        _compare_heads(model, checkpoint.get('meta') or {})


def _compare_heads(model: nn.Module, meta: dict) -> None:
    said = spec_from_mmengine(meta).get('num_heads')
    arch = getattr(getattr(model, 'backbone', None), 'arch_settings', None) or {}
    if said and said != arch.get('num_heads', said):
        raise ValueError(
            f'The checkpoint was trained with {said} attention heads and the config has '
            f'{arch["num_heads"]}: the same weights would be another network. Use the config of '
            'its work dir, or the --init it was started with.'
        )
