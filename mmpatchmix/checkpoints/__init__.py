"""Reading, matching and verification of checkpoints; no network is built here."""

from mmpatchmix import registry  # prepares the stack before it is imported
from mmpatchmix.checkpoints.backbone import Backbone, read_backbone
from mmpatchmix.checkpoints.matching import KeyReport, fit_state_dict, match_state_dict
from mmpatchmix.checkpoints.reading import Checkpoint, read_checkpoint
from mmpatchmix.checkpoints.vit_spec import ViTSpec
