"""Reading, matching and verification of checkpoints; no network is built here."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)
from mmpatchmix.checkpoints.backbone import Backbone, read_backbone
from mmpatchmix.checkpoints.matching import KeyReport, fit_state_dict, match_state_dict
from mmpatchmix.checkpoints.reading import Checkpoint, read_checkpoint
from mmpatchmix.checkpoints.vit_spec import ViTSpec

__all__ = ['Backbone', 'Checkpoint', 'KeyReport', 'ViTSpec', 'fit_state_dict']
__all__ += ['match_state_dict', 'read_backbone', 'read_checkpoint']
