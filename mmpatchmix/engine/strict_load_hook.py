"""Refuses a checkpoint that does not fit the model, instead of loading half of it."""

from mmengine.hooks import Hook

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
        model = unwrap_model(runner.model)
        expected = model.state_dict()
        found = checkpoint.get('state_dict', checkpoint)
        found = {key.removeprefix('module.'): value for key, value in found.items()}
        problems = [f'missing: {key}' for key in expected if key not in found]
        problems += [f'unexpected: {key}' for key in found if key not in expected]
        problems += [
            f'shape of {key}: {tuple(value.shape)} in the file, '
            f'{tuple(expected[key].shape)} in the model'
            for key, value in found.items()
            if key in expected and value.shape != expected[key].shape
        ]
        if problems:
            listed = '\n  '.join(problems[:20])
            more = f'\n  ... and {len(problems) - 20} more' if len(problems) > 20 else ''
            raise ValueError(
                f'the checkpoint does not fit the model, {len(problems)} keys differ; nothing was '
                f'loaded. Use the config it was trained with:\n  {listed}{more}'
            )
