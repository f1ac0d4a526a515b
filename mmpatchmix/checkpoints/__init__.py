"""Checkpoints that travel: safe reading, strict loading, translation between libraries."""

from mmpatchmix import registry  # noqa: F401  (prepares the stack before it is imported)
from mmpatchmix.checkpoints.backbone import Backbone, build_vit, load_backbone, read_backbone
from mmpatchmix.checkpoints.convert import Conversion, convert_checkpoint
from mmpatchmix.checkpoints.matching import KeyReport, fit_state_dict, match_state_dict
from mmpatchmix.checkpoints.reading import Checkpoint, read_checkpoint
from mmpatchmix.checkpoints.vit_spec import ViTSpec

__all__ = [
    'Backbone',
    'Checkpoint',
    'Conversion',
    'KeyReport',
    'ViTSpec',
    'build_vit',
    'convert_checkpoint',
    'fit_state_dict',
    'load_backbone',
    'match_state_dict',
    'read_backbone',
    'read_checkpoint',
]
