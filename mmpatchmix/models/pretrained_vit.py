"""The Vision Transformer of downstream classification: it starts from a checkpoint."""

import logging

from mmengine.logging import print_log
from mmpretrain.models.backbones import VisionTransformer

from mmpatchmix.checkpoints import load_backbone
from mmpatchmix.registry import MODELS


@MODELS.register_module()
class PretrainedViT(VisionTransformer):
    """mmpretrain's ViT that loads all of a pre-trained backbone, or stops.

    ``init_cfg=dict(type='Pretrained', ...)`` of mmengine only logs what did not
    load; here a key that is missing, unexpected or of another shape, and another
    number of heads, is an error that names it. Position embeddings are
    interpolated to ``img_size``.

    Args:
        checkpoint (str, optional): A checkpoint of ours as it is, a converted
            file, or any other that
            :func:`mmpatchmix.checkpoints.read_backbone` knows. None starts
            from random weights and warns.
        encoder (str): ``'momentum'`` or ``'query'``, where the file has both.
        **kwargs: Those of :class:`mmpretrain.models.VisionTransformer`. With
            ``frozen_stages`` equal to the number of layers the whole backbone
            stays in evaluation mode, as a linear probe wants it.
    """

    def __init__(self, checkpoint: str | None = None, encoder: str = 'momentum', **kwargs) -> None:
        super().__init__(**kwargs)
        self.checkpoint = checkpoint
        self.encoder = encoder

    def init_weights(self) -> None:
        """Initialise, then load the checkpoint.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file does not fit.
        """
        super().init_weights()
        if self.checkpoint:
            load_backbone(self, self.checkpoint, self.encoder)
        else:
            print_log(
                'The backbone starts from random weights: model.backbone.checkpoint is not set.',
                'current',
                logging.WARNING,
            )

    def train(self, mode: bool = True) -> None:
        """Set the mode; a wholly frozen backbone stays in evaluation mode."""
        super().train(mode and self.frozen_stages < self.num_layers)
