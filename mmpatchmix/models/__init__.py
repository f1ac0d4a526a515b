"""The method: mixing, data preprocessor, algorithm, head, momentum encoder."""

from mmpatchmix import registry  # prepares the stack before it is imported
from mmpatchmix.models.classifier import ImageClassifier
from mmpatchmix.models.compiling import unwrap_model
from mmpatchmix.models.contrastive_head import Contrast, ContrastiveHead
from mmpatchmix.models.data_preprocessor import PatchMixDataPreprocessor
from mmpatchmix.models.load_backbone import load_backbone
from mmpatchmix.models.mixing import draw_groups, mix_patches, mix_to_mix, mix_to_source
from mmpatchmix.models.momentum_encoder import MomentumEncoder
from mmpatchmix.models.other_mixings import cut_mix, mix_up, resize_mix
from mmpatchmix.models.patchmix import PatchMix
from mmpatchmix.models.timm_vit import TimmViT
from mmpatchmix.models.vit import PatchMixViT
