"""The replaced ops against torchvision and slow, obvious implementations."""

import math

import pytest
import torch
import torchvision
from torch.nn import functional as F

from mmpatchmix.compat import mmcv_ext, prepare_openmmlab

prepare_openmmlab()

from mmcv import ops  # noqa: E402


def boxes_and_scores(count, seed=0, size=20):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size
    extent = torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corner, corner + extent], 1), torch.rand(count, generator=generator)


def naive_iou(a, b, offset):
    width = min(a[2], b[2]) - max(a[0], b[0]) + offset
    height = min(a[3], b[3]) - max(a[1], b[1]) + offset
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return both / (sum(areas) - both)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('count', [0, 1, 40])
def test_nms_equals_a_double_loop(count, offset):
    boxes, scores = boxes_and_scores(count)
    kept = []
    for index in scores.argsort(descending=True).tolist():
        box = boxes[index].tolist()
        if all(naive_iou(box, boxes[other].tolist(), offset) <= 0.3 for other in kept):
            kept.append(index)
    dets, indices = ops.nms(boxes, scores, 0.3, offset=offset)
    assert indices.tolist() == kept
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])
    rounded = scores.bfloat16()
    if not offset:
        expected = torchvision.ops.nms(boxes, rounded.float(), 0.3)
        assert torch.equal(mmcv_ext.nms(boxes, rounded, 0.3, 0), expected)


def slow_roi_align(images, rois, size, scale, samples, aligned):
    """RoIAlign of boxes inside the images, by bilinear sampling and averaging."""
    out = []
    for index, *corners in rois.tolist():
        x1, y1, x2, y2 = (corner * scale - 0.5 * aligned for corner in corners)
        points = []
        for start, end, side in zip((y1, x1), (y2, x2), images.shape[2:], strict=True):
            extent = end - start if aligned else max(end - start, 1)
            count = size * (samples or math.ceil(extent / size))
            centres = start + (torch.arange(count).double() + 0.5) * extent / count
            points.append(2 * centres / (side - 1) - 1)
        grid = torch.stack(torch.meshgrid(*points, indexing='ij')[::-1], -1)[None].to(images)
        options = dict(padding_mode='border', align_corners=True)
        sampled = F.grid_sample(images[int(index)][None], grid, **options)
        out.append(F.adaptive_avg_pool2d(sampled[0], size))
    return torch.stack(out)


def some_rois(images=2, count=5, seed=3):
    boxes, _ = boxes_and_scores(count, seed)
    generator = torch.Generator().manual_seed(seed)
    index = torch.randint(images, (count, 1), generator=generator).float()
    return torch.cat([index, boxes], 1)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('samples', [0, 2])
def test_roi_align_equals_a_slow_one_and_so_does_its_gradient(samples, aligned):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    rois = some_rois().double()
    rois[:, 1:] *= 0.55  # all inside
    ours = images.clone().requires_grad_()
    theirs = images.clone().requires_grad_()
    output = ops.roi_align(ours, rois, 3, 0.5, samples, 'avg', aligned)
    expected = slow_roi_align(theirs, rois, 3, 0.5, samples, aligned)
    torch.testing.assert_close(output, expected)
    weights = torch.randn_like(expected)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    assert ops.roi_align(images, rois[:0], (7, 5), 0.5, samples, 'avg', aligned).shape[0] == 0


ONE_PIXEL = dict(aligned_height=1, aligned_width=1, spatial_scale=1.0, sampling_ratio=0)
ONE_PIXEL |= dict(pool_mode=1, aligned=True)


def test_roi_align_of_bfloat16_keeps_the_boxes_exact():
    """1001 is no bfloat16: rounded to 1000, the box would move by a pixel."""
    ramp = torch.arange(1100.0).expand(1, 1, 4, 1100)
    rois = torch.tensor([[0.0, 1001.0, 0.0, 1003.0, 4.0]])
    output = torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)
    mmcv_ext.roi_align_forward((ramp - 1000).bfloat16(), rois, output, None, None, **ONE_PIXEL)
    assert output.item() == pytest.approx(1.5)


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('rows', [0, 6])
def test_sigmoid_focal_loss_equals_the_formula_of_mmdet(rows, weighted):
    torch.manual_seed(2)
    logits = torch.randn(rows, 3, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 3, 1])[:rows]
    if weighted:  # background has no weight of its own in mmcv
        target = target.clamp(max=2)
    weight = torch.tensor([0.5, 1.0, 3.0]) if weighted else None
    loss = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    again = logits.detach().clone().requires_grad_()
    one_hot = F.one_hot(target, 4)[:, :3].float()
    rows_weight = weight[target][:, None] if weighted else None
    expected = py_sigmoid_focal_loss(again, one_hot, rows_weight, 2.0, 0.25, 'none')
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(logits.grad, again.grad)


def test_other_ops_raise_with_name_and_remedy_when_called():
    with pytest.raises(NotImplementedError, match=r"'softnms' is not available.*build\s+mmcv"):
        mmcv_ext.softnms(torch.zeros(1, 5), torch.zeros(1))
    assert hasattr(mmcv_ext, 'nms_rotated')  # mmcv checks it at import
    with pytest.raises(NotImplementedError, match='pool_mode="max"'):
        mmcv_ext.roi_align_forward(*[None] * 5, **ONE_PIXEL | dict(pool_mode=0))
    with pytest.raises(AttributeError):
        mmcv_ext.__path__  # noqa: B018


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_ops_on_a_gpu_equal_those_on_a_cpu():
    boxes, scores = boxes_and_scores(40)
    assert torch.equal(
        ops.nms(boxes.cuda(), scores.cuda(), 0.3)[1].cpu(), ops.nms(boxes, scores, 0.3)[1]
    )
    images, rois = torch.randn(2, 3, 20, 20), some_rois(count=8)
    torch.testing.assert_close(
        ops.roi_align(images.cuda(), rois.cuda(), 7, 0.5, 0, 'avg', True).cpu(),
        ops.roi_align(images, rois, 7, 0.5, 0, 'avg', True),
    )
