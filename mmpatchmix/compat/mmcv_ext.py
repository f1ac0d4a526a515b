"""Replacement for ``mmcv._ext``: NMS, RoIAlign and focal loss by torchvision, on CPU and CUDA.

Functions are called as those of mmcv 2.x's compiled module, under whose name the file is executed:
they write results into tensors of the caller. Other ops raise ``NotImplementedError`` when called.
"""

from collections.abc import Callable
from functools import partial
from operator import itemgetter
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

_OPS = torch.ops.torchvision


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices ``(K,)`` of the boxes that are kept, by descending score ``(N,)``.

    Boxes ``(N, 4)`` hold x1, y1, x2, y2 in pixels. With ``offset`` 1 the pixel (x2, y2) belongs to
    the box.
    """
    boxes, scores = _to_float32(boxes, scores)
    if offset:  # a width of x2 - x1 + 1 is that of a box whose second corner is moved by one
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return _OPS.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **options: Any
) -> None:
    """Write RoIAlign of ``input`` ``(N, C, H, W)`` into ``output`` ``(R, C, h, w)``.

    ``rois`` ``(R, 5)`` hold the index of an image and x1, y1, x2, y2 in its pixels; for the options
    see ``mmcv.ops.RoIAlign``. Average pooling only (``pool_mode`` 1), which is what mmdet uses.
    """
    geometry, sampling = _read_options(**options)
    output.copy_(_OPS.roi_align(*_to_float32(input, rois), *geometry, *sampling))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    **options: Any,
) -> None:
    """Write the gradient of :func:`roi_align_forward` into ``grad_input`` ``(N, C, H, W)``."""
    geometry, sampling = _read_options(**options)
    tensors = _to_float32(grad_output, rois)
    grad_input.copy_(_OPS._roi_align_backward(*tensors, *geometry, *grad_input.shape, *sampling))


def _read_options(pool_mode: int, **options: Any) -> tuple[tuple, tuple]:
    """Return the options of RoIAlign in torchvision's order."""
    if pool_mode != 1:
        _refuse('roi_align with pool_mode="max"')
    geometry = itemgetter('spatial_scale', 'aligned_height', 'aligned_width')(options)
    return geometry, itemgetter('sampling_ratio', 'aligned')(options)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the focal loss (arXiv 1708.02002) of each element into ``output`` ``(N, C)``.

    ``input`` holds logits ``(N, C)``, ``target`` classes ``(N,)`` of which C is background, and
    ``weight`` one factor per class ``(C,)`` or nothing. Positive terms have the factor ``alpha``,
    negative ones 1 - alpha. mmdet calls it for CUDA tensors only.
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
    return partial(_refuse, name)


def _refuse(op: str, *args: Any, **kwargs: Any) -> None:
    raise NotImplementedError(
        f"mmcv's compiled op '{op}' is not available; mmpatchmix replaces only NMS, RoIAlign "
        '(average) and the sigmoid focal loss. Configure the model without it, or build mmcv '
        'against the installed torch, perhaps an older one: pip install --no-cache-dir '
        '--no-build-isolation --force-reinstall --no-deps onedl-mmcv'
    )


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
