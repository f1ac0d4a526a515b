"""Refuse a checkpoint that does not fit the model, instead of loading half of it."""

from mmengine.hooks import Hook

from mmpatchmix.checkpoints import fit_state_dict
from mmpatchmix.models import unwrap_model
from mmpatchmix.registry import HOOKS


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Compare keys and shapes before the Runner loads, which it does without insisting.

    mmengine loads with ``strict=False`` and only logs what did not match. Here
    every missing, unexpected or wrongly shaped key is listed and the run stops.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Raise ``ValueError`` with all mismatches; called before anything is loaded."""
        state = checkpoint.get('state_dict', checkpoint)
        fit_state_dict(state, unwrap_model(runner.model), 'The checkpoint')
