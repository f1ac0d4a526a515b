"""Under bfloat16 autocast, boxes keep their pixels."""

import torch
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmpatchmix.models.detection.full_precision import (
    FullPrecisionRoIExtractor,
    FullPrecisionRPNHead,
)
from mmpatchmix.registry import MODELS

SIZE = 1200


def test_proposals_far_from_the_origin_are_not_rounded():
    """At 1,100 pixels bfloat16 moves in steps of 8."""
    init_default_scope('mmdet')
    torch.manual_seed(0)
    cfg = dict(type='mmpatchmix.FullPrecisionRPNHead', in_channels=4, feat_channels=4)
    anchors = dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[12])
    cfg |= dict(anchor_generator=anchors, bbox_coder=dict(type='DeltaXYWHBBoxCoder'))
    nms = dict(nms=dict(type='nms', iou_threshold=0.9), min_bbox_size=0)
    head = MODELS.build(cfg | dict(test_cfg=ConfigDict(nms_pre=50, max_per_img=50, **nms)))
    assert isinstance(head, FullPrecisionRPNHead)
    for parameter in head.rpn_reg.parameters():  # each proposal is its anchor
        torch.nn.init.zeros_(parameter)
    features = (torch.randn(1, 4, SIZE // 12, SIZE // 12),)
    with torch.autocast('cpu', torch.bfloat16):
        scores, deltas = head(features)
        metas = [dict(img_shape=(SIZE, SIZE))]
        (found,) = head.predict_by_feat(scores, deltas, batch_img_metas=metas)
    assert isinstance(found, InstanceData)
    inside = found.bboxes[((found.bboxes > 0) & (found.bboxes < SIZE)).all(1)]
    assert (inside > 1024).any()
    # Anchors are 48 wide around multiples of 12, so their corners are multiples of 12 too.
    assert torch.equal(inside % 12, torch.zeros_like(inside))


def test_pooling_uses_the_boxes_as_given():
    extractor = FullPrecisionRoIExtractor(
        dict(type='RoIAlign', output_size=1, sampling_ratio=1), 1, [1]
    )
    ramp = torch.arange(float(SIZE)) - 1100  # exact in bfloat16 near 1,100
    features = (ramp.expand(1, 1, 4, SIZE).bfloat16(),)
    rois = torch.tensor([[0, 1101.0, 0, 1104.0, 4]])
    pooled = extractor(features, rois)
    assert pooled.dtype == torch.float32
    assert pooled.item() == 2.0  # the centre, 1102.5 in coordinates where cells centre at .5
