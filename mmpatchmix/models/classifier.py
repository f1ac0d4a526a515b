"""Widths and numbers of classes that one part of a model takes from another."""

from typing import Any

from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.models.backbones import VisionTransformer
from mmpretrain.models.classifiers import ImageClassifier as BaseImageClassifier
from torch import nn

from mmpatchmix.checkpoints.reading import read_checkpoint
from mmpatchmix.models.timm_vit import TimmViT
from mmpatchmix.registry import MODELS, read_signature


def complete(node: dict, key: str, **values: Any) -> dict:
    """Return the config of a part with values that follow from other parts, if its type takes them.

    ``ValueError`` if the config has another value.
    """
    accepted = read_signature(MODELS, node['type'])
    values = {name: value for name, value in values.items() if value and name in accepted}
    for name, value in values.items():
        if node.get(name) not in (None, value):
            raise ValueError(
                f'{key}.{name}={node[name]}, but the other parts of the model need {value}: remove '
                'this key, which is then derived.'
            )
    return {**node, **values}


def find_width(backbone: nn.Module) -> int | None:
    """Return the width of a ViT's features; None for others, whose last stage may be wider."""
    return backbone.embed_dims if isinstance(backbone, VisionTransformer | TimmViT) else None


def derive_num_classes(cfg: dict, checkpoint: str | None = None) -> None:
    """Set ``num_classes`` of a config's :class:`ImageClassifier`, where none is given.

    It is that of the head of a checkpoint to evaluate, or of the training images.
    """
    model, loader = cfg.get('model') or {}, cfg.get('train_dataloader')
    if model.get('type') != 'mmpatchmix.ImageClassifier' or 'num_classes' in model:
        return
    classes = ()
    if checkpoint:
        classes = read_checkpoint(checkpoint).state_dict.get('head.fc.weight', ())
    elif loader:
        while 'dataset' in loader:  # a data loader or a wrapper
            loader = loader['dataset']
        init_default_scope(cfg.get('default_scope') or 'mmengine')
        metainfo = DATASETS.build({**loader, 'pipeline': []}).metainfo
        classes = metainfo.get('classes') or ()
        if metainfo.get('labelled') and not classes:
            raise ValueError('labels of these shards have no names: set model.num_classes.')
    if len(classes):
        model['num_classes'] = len(classes)


@MODELS.register_module()
class ImageClassifier(BaseImageClassifier):
    """mmpretrain's classifier; the width and the numbers of classes of its parts are derived.

    Args:
        backbone: Config of the backbone.
        head: Config of the head; refused if it has another width or number of classes.
        num_classes: Number of classes, of the head and of the data preprocessor. Our tools derive
            it where the config has none.
        **kwargs: Those of :class:`mmpretrain.models.ImageClassifier`.
    """

    def __init__(self, backbone: dict, head: dict, num_classes: int = 1000, **kwargs) -> None:
        backbone = MODELS.build(backbone)
        sizes = dict(in_channels=find_width(backbone), num_classes=num_classes)
        preprocessor = {**(kwargs.pop('data_preprocessor', None) or {}), 'num_classes': num_classes}
        head = complete(head, 'model.head', **sizes)
        super().__init__(backbone=backbone, head=head, data_preprocessor=preprocessor, **kwargs)
