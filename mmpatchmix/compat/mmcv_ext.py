"""Stands in for ``mmcv._ext``: the ops that torchvision or a short formula provides.

Signatures are those of mmcv 2.x's compiled module, which writes results into
tensors that the caller allocated. Two kinds of ops exist here: those that
torchvision has compiled kernels for (CPU and CUDA), and those whose formula is a
few lines of torch. Any other op can be imported and raises when it is *called*.

This file is executed under the name ``mmcv._ext`` (see :mod:`.mmcv_ops`), so it
imports nothing relatively.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

_OPS = torch.ops.torchvision


def _full(*tensors: Tensor) -> list[Tensor]:
    """Half-precision tensors as float32; a box coordinate does not fit in 8 bits."""
    if all(tensor.dtype == torch.float64 for tensor in tensors):
        return list(tensors)
    return [tensor.float() for tensor in tensors]


# -- suppression ---------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that survive, by falling score.

    Args:
        boxes: ``(N, 4)``, x1, y1, x2, y2 in pixels.
        scores: ``(N,)``.
        iou_threshold: Boxes that overlap a better one by more are dropped.
        offset: 0, or 1 where x2 and y2 count as inside the box.

    Returns:
        ``(K,)`` int64.
    """
    boxes, scores = _full(boxes, scores)
    if offset:  # width = x2 - x1 + 1 is the width of a box whose far corner moved by one
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return _OPS.nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (arXiv 1704.04503): overlapping boxes lose score in place of being dropped.

    Args:
        boxes: ``(N, 4)`` on the CPU.
        scores: ``(N,)``.
        dets: ``(N, 5)``; its first K rows receive boxes and decayed scores.
        iou_threshold: Overlap from which methods 0 and 1 act.
        sigma: Width of method 2.
        min_score: A box that falls below is dropped.
        method: 0 hard, 1 linear (times 1 - IoU), 2 gaussian (times exp(-IoU² / sigma)).
        offset: As in :func:`nms`.

    Returns:
        ``(K,)`` int64, the order in which boxes were taken.
    """
    scores = scores.clone()
    left = torch.arange(len(boxes))
    taken: list[int] = []
    while len(left):
        best = int(left[scores[left].argmax()])
        taken.append(best)
        dets[len(taken) - 1, :4] = boxes[best]
        dets[len(taken) - 1, 4] = scores[best]
        left = left[left != best]
        iou = _iou_with(boxes[best], boxes[left], offset)
        if method == 2:
            decay = torch.exp(-(iou**2) / sigma)
        else:
            decay = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else 0.0, 1.0)
        scores[left] *= decay
        left = left[scores[left] >= min_score]
    return torch.tensor(taken, dtype=torch.long)


def _iou_with(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU of one box ``(4,)`` with each of ``(N, 4)`` -> ``(N,)``."""
    corner = boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.box_iou((box + corner)[None], boxes + corner)[0].nan_to_num()


# -- pooling of regions --------------------------------------------------------------------


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of ``input`` ``(N, C, H, W)`` into ``output`` ``(R, C, h, w)``.

    ``rois`` ``(R, 5)`` hold the image's index and x1, y1, x2, y2 in pixels of the image.
    Average pooling only (``pool_mode`` 1), as every detector of mmdet uses it.
    """
    if pool_mode != 1:
        raise NotImplementedError(_explain('roi_align with pool_mode="max"'))
    full, rois = _full(input, rois)
    output.copy_(
        _OPS.roi_align(
            full, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` into ``grad_input`` ``(N, C, H, W)``."""
    if pool_mode != 1:
        raise NotImplementedError(_explain('roi_align with pool_mode="max"'))
    grad_output, rois = _full(grad_output, rois)
    grad_input.copy_(
        _OPS._roi_align_backward(
            grad_output,
            rois,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoIPool of ``(N, C, H, W)`` into ``output``, ``argmax`` ``(R, C, h, w)`` (int32)."""
    full, rois = _full(input, rois)
    pooled, where = _OPS.roi_pool(full, rois, spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(where)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of :func:`roi_pool_forward` into ``grad_input`` ``(N, C, H, W)``."""
    grad_output, rois = _full(grad_output, rois)
    grad_input.copy_(
        _OPS._roi_pool_backward(
            grad_output,
            rois,
            argmax,
            spatial_scale,
            pooled_height,
            pooled_width,
            *grad_input.shape,
        )
    )


# -- focal loss ----------------------------------------------------------------------------


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss (arXiv 1708.02002) per element.

    Args:
        input: Logits ``(N, C)``.
        target: Class ``(N,)`` int64; C is background.
        weight: Per class ``(C,)``, or empty.
        output: ``(N, C)``, receives the loss.
        gamma: Focusing exponent.
        alpha: Share of the positive term.
    """
    (logits,) = _full(input)
    output.copy_(_focal(logits, target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element of the focal loss by its own logit."""
    with torch.enable_grad():
        (logits,) = _full(input.detach())
        logits = logits.requires_grad_()
        loss = _focal(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def _focal(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    loss = torchvision.ops.sigmoid_focal_loss(logits, positive.to(logits), alpha, gamma)
    if weight.numel():  # by the class of the row; background rows keep weight 1
        loss = loss * F.pad(weight.to(loss), (0, 1), value=1.0)[target][:, None]
    return loss


# -- deformable convolution ----------------------------------------------------------------


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, *buffers: Tensor, **geometry: int
) -> None:
    """Deformable convolution (arXiv 1703.06211) into ``output``; ``offset`` is y, x by tap."""
    full, weight, offset = _full(input, weight, offset)
    output.copy_(
        _OPS.deform_conv2d(full, weight, offset, *_no_mask(full, weight), *_v1(geometry), False)
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    buffer: Tensor,
    **geometry: int,
) -> None:
    """Gradients of :func:`deform_conv_forward` by input and offsets."""
    grads = _deform_backward_v1(input, offset, weight, grad_output, geometry)
    grad_input.copy_(grads[0])
    grad_offset.copy_(grads[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    *buffers: Tensor,
    scale: float,
    **geometry: int,
) -> None:
    """Gradient of :func:`deform_conv_forward` by the weight, times ``scale``."""
    # The gradient by the weight does not depend on the weight's values.
    grads = _deform_backward_v1(input, offset, grad_weight, grad_output, geometry)
    grad_weight.copy_(grads[1] * scale)


def _deform_backward_v1(
    input: Tensor, offset: Tensor, weight: Tensor, grad_output: Tensor, geometry: dict
) -> tuple[Tensor, ...]:
    grad_output, full, weight, offset = _full(grad_output, input, weight, offset)
    return _OPS._deform_conv2d_backward(
        grad_output, full, weight, offset, *_no_mask(full, weight), *_v1(geometry), False
    )


def _no_mask(images: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mask and bias that torchvision's kernel takes where there is neither."""
    return weight.new_zeros(len(images), 1), weight.new_zeros(len(weight))


def _v1(geometry: dict[str, int]) -> list[int]:
    """mmcv's names of :func:`deform_conv_forward` in the order of torchvision's arguments."""
    names = ('dH', 'dW', 'padH', 'padW', 'dilationH', 'dilationW', 'group', 'deformable_group')
    return [geometry[name] for name in names]


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    """Deformable convolution with a mask per tap (arXiv 1811.11168) into ``output``.

    ``offset`` and ``mask`` may be larger than ``output``: see :func:`_cut`.
    """
    bias = bias if geometry['with_bias'] else weight.new_zeros(len(weight))
    size = output.shape[2:]
    tensors = _full(input, weight, _cut(offset, size), _cut(mask, size), bias)
    output.copy_(_OPS.deform_conv2d(*tensors, *_v2(geometry), True))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    **geometry: int,
) -> None:
    """Gradients of :func:`modulated_deform_conv_forward` into the five ``grad_*``."""
    full_bias = bias if geometry['with_bias'] else weight.new_zeros(len(weight))
    size = grad_output.shape[2:]
    tensors = _full(grad_output, input, weight, _cut(offset, size), _cut(mask, size), full_bias)
    grads = _OPS._deform_conv2d_backward(*tensors, *_v2(geometry), True)
    for target, grad in zip((grad_input, grad_weight, grad_offset, grad_mask), grads, strict=False):
        num_unread = target[0].numel() - grad[0].numel()  # their gradient is 0
        target.copy_(F.pad(grad.flatten(1), (0, num_unread)).view(target.shape))
    if geometry['with_bias']:
        grad_bias.copy_(grads[4])


def _cut(values: Tensor, size: torch.Size) -> Tensor:
    """Read ``(N, C, H, W)`` as ``(N, C, h, w)`` the way mmcv's kernel does.

    The kernel checks no sizes: it takes the numbers of an image in the order of memory and
    counts rows and columns of the *output*. mmdet's DyHead relies on it: its offsets belong
    to a level of twice the side.
    """
    if values.shape[2:] == size:
        return values
    num_read = values.shape[1] * size.numel()
    flat = values.flatten(1)
    if flat.shape[1] < num_read:
        raise ValueError(
            f'modulated_deform_conv2d: offsets or masks of {tuple(values.shape[2:])} positions '
            f'are fewer than the output has, {tuple(size)}.'
        )
    return flat[:, :num_read].view(len(values), values.shape[1], *size)


def _v2(geometry: dict[str, int]) -> list[int]:
    """mmcv's names of :func:`modulated_deform_conv_forward` in torchvision's order."""
    names = ('stride', 'pad', 'dilation')
    pairs = [geometry[f'{name}_{axis}'] for name in names for axis in 'hw']
    return [*pairs, geometry['group'], geometry['deformable_group']]


# -- multi-scale deformable attention --------------------------------------------------------


def ms_deform_attn_forward(
    value: Tensor,
    shapes: Tensor,
    level_start: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (arXiv 2010.04159), by mmcv's own torch version."""
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes, locations, weights)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    level_start: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward` into the three ``grad_*``."""
    with torch.enable_grad():
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = ms_deform_attn_forward(
            leaves[0], shapes, level_start, leaves[1], leaves[2], im2col_step
        )
    grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip((grad_value, grad_locations, grad_weights), grads, strict=True):
        target.copy_(grad)


# -- the rest ------------------------------------------------------------------------------


def get_compiler_version() -> str:
    """For environment reports."""
    return "none (torchvision's ops stand in for mmcv's)"


def get_compiling_cuda_version() -> str:
    """For environment reports."""
    return "none (torchvision's ops stand in for mmcv's)"


def _explain(op: str) -> str:
    return (
        f"mmcv's compiled op '{op}' is not available: this installation of mmcv has no compiled "
        'ops for this torch, and torchvision has no counterpart of this one. To use it, build '
        'mmcv with its ops against the installed torch (pip install --no-cache-dir '
        '--no-build-isolation --force-reinstall --no-deps onedl-mmcv; where that fails, take '
        'an older torch that mmcv publishes wheels for), or configure the model without it.'
    )


def __getattr__(name: str) -> Callable:
    """Any other op: mmcv finds it when it is imported, and its caller learns the remedy."""
    if name.startswith('__'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute '{name}'")

    def unavailable(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(_explain(name))

    return unavailable
