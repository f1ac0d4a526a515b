"""Replacement for ``mmcv._ext``: NMS, RoIAlign and focal loss by torchvision, on CPU and CUDA.

Signatures are those of mmcv 2.x's compiled module, which writes results into tensors that the
caller allocated. Every other op can be imported and raises ``NotImplementedError`` when called.

The file is executed under the name ``mmcv._ext`` (see :mod:`mmpatchmix.compat.mmcv_ops`), so it
has no relative imports.
"""

from collections.abc import Callable

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

_OPS = torch.ops.torchvision


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes that are kept, by descending score.

    Args:
        boxes: ``(N, 4)``, x1, y1, x2, y2 in pixels.
        scores: ``(N,)``.
        iou_threshold: Boxes that overlap a box of higher score by more are dropped.
        offset: 0, or 1 where the pixel (x2, y2) belongs to the box.

    Returns:
        ``(K,)`` int64.
    """
    boxes, scores = _to_float32(boxes, scores)
    if offset:  # a width of x2 - x1 + 1 is that of a box whose second corner is moved by one
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return _OPS.nms(boxes, scores, iou_threshold)


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
    """Write RoIAlign of ``input`` ``(N, C, H, W)`` into ``output`` ``(R, C, h, w)``.

    ``rois`` ``(R, 5)`` hold the index of an image and x1, y1, x2, y2 in its pixels. Average
    pooling only (``pool_mode`` 1), which is what mmdet uses.
    """
    _check_pool_mode(pool_mode)
    geometry = (spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned)
    output.copy_(_OPS.roi_align(*_to_float32(input, rois), *geometry))


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
    """Write the gradient of :func:`roi_align_forward` into ``grad_input`` ``(N, C, H, W)``."""
    _check_pool_mode(pool_mode)
    geometry = (spatial_scale, aligned_height, aligned_width, *grad_input.shape)
    grad_output, rois = _to_float32(grad_output, rois)
    grad_input.copy_(
        _OPS._roi_align_backward(grad_output, rois, *geometry, sampling_ratio, aligned)
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of each element into ``output`` ``(N, C)``.

    mmdet calls it for CUDA tensors; on a CPU its ``FocalLoss`` has a formula of its own.

    Args:
        input: Logits ``(N, C)``.
        target: Class ``(N,)`` int64; C is background.
        weight: Per class ``(C,)``, or empty.
        output: Receives the loss.
        gamma: Focusing exponent.
        alpha: Weight of the positive term; the negative term has 1 - alpha.
    """
    output.copy_(_focal_loss(*_to_float32(input), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each element's loss by its own logit into ``grad_input``."""
    with torch.enable_grad():
        (logits,) = _to_float32(input.detach())
        logits = logits.requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def get_compiler_version() -> str:
    """Return the entry of environment reports."""
    return "none (torchvision's ops replace mmcv's)"


get_compiling_cuda_version = get_compiler_version


def __getattr__(name: str) -> Callable:
    """Return a function that raises, for every op that is not implemented here."""
    if name.startswith('__'):
        raise AttributeError(f"module 'mmcv._ext' has no attribute '{name}'")

    def unavailable(*args: object, **kwargs: object) -> None:
        raise NotImplementedError(_explain(name))

    return unavailable


def _explain(op: str) -> str:
    return (
        f"mmcv's compiled op '{op}' is not available: the installed mmcv has no compiled ops for "
        'this torch, and mmpatchmix replaces only NMS, RoIAlign (average) and the sigmoid focal '
        'loss. To use it, build mmcv against the installed torch (pip install --no-cache-dir '
        '--no-build-isolation --force-reinstall --no-deps onedl-mmcv; where that fails, install '
        'an older torch that mmcv publishes wheels for), or configure the model without it.'
    )


def _check_pool_mode(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(_explain('roi_align with pool_mode="max"'))


def _to_float32(*tensors: Tensor) -> list[Tensor]:
    """Convert half precision, whose 8 bits cannot represent box coordinates; keep float64."""
    if all(tensor.dtype == torch.float64 for tensor in tensors):
        return list(tensors)
    return [tensor.float() for tensor in tensors]


def _focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float
) -> Tensor:
    positive = target[:, None] == torch.arange(logits.shape[1], device=logits.device)
    loss = torchvision.ops.sigmoid_focal_loss(logits, positive.to(logits), alpha, gamma)
    if weight.numel():  # by the class of the row; background rows have weight 1
        loss = loss * F.pad(weight.to(loss), (0, 1), value=1.0)[target][:, None]
    return loss
