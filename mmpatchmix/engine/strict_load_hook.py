"""The hook that refuses a checkpoint that does not fit the model."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.checkpoints import fit_state_dict
from mmpatchmix.checkpoints.vit_spec import read_stated_spec
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Raise an error if a checkpoint does not fit the model.

    mmengine loads with ``strict=False`` and only logs mismatches. This hook lists every missing,
    unexpected or wrongly shaped key, and compares the number of heads, which no shape shows, where
    the file records it.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise ``ValueError`` with all mismatches; called before anything is loaded."""
        model = unwrap_model(runner.model)
        advice = 'Use the config it was trained with.'
        if isinstance(model, PatchMix):
            advice += (
                ' To initialise only the backbone, from any layout: --init FILE '
                "(model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE))."
            )
        fit_state_dict(checkpoint.get('state_dict', checkpoint), model, 'The checkpoint', advice)
        saved = read_stated_spec(checkpoint.get('meta') or {}).get('num_heads')
        arch = getattr(getattr(model, 'backbone', None), 'arch_settings', None) or {}
        if saved and saved != arch.get('num_heads', saved):
            raise ValueError(
                f'The checkpoint was trained with {saved} attention heads and the config has '
                f'{arch["num_heads"]}, which makes the same weights another network. Use the '
                'config of its work dir, or the --init it was started with.'
            )
