"""Backbones as programs that run without this package: ONNX and ``torch.export``.

The image size is fixed and the positions are baked in, for interpolating them is what such
programs fail at; the number of images is free.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpatchmix.checkpoints.preprocessing import Preprocessing

INPUT, OUTPUT = 'images', 'features'


class _Features(nn.Module):
    """The class token of a ViT of mmpretrain's as the only output."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        """Return ``(N, D)`` of ``(N, C, H, W)`` normalised images."""
        return self.vit(images)[-1]


def write_program(vit: nn.Module, path: Path, img_size: int) -> None:
    """Write a backbone as ``.onnx`` or ``.pt2``.

    Args:
        vit: mmpretrain's, in evaluation mode.
        path: Its ending decides.
        img_size: Pixels per side of the images.

    Raises:
        ModuleNotFoundError: If ONNX is wanted and its packages are missing.
    """
    num_channels = vit.patch_embed.projection.in_channels
    model, images = _Features(vit).eval(), torch.zeros(2, num_channels, img_size, img_size)
    shapes = ({0: torch.export.Dim('num_images')},)
    if path.suffix == '.pt2':
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path)
        return
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise _lacks_onnx() from error
    torch.onnx.export(
        model,
        (images,),
        path,
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_shapes=shapes,
        external_data=False,  # one file
        verbose=False,
    )


def features_of_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Load what :func:`write_program` wrote, as its users do.

    Raises:
        ModuleNotFoundError: If onnxruntime is missing.
    """
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    try:
        import onnxruntime
    except ImportError as error:
        raise _lacks_onnx() from error
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def preprocessing_file(path: Path) -> Path:
    """Return the name of the file beside a program that says what its images are."""
    return path.with_suffix('.preprocessing.json')


def describe(preprocessing: Preprocessing) -> dict:
    """Return what that file says."""
    return preprocessing.as_dict() | {'input_name': INPUT, 'output_name': OUTPUT}


def _lacks_onnx() -> ModuleNotFoundError:
    return ModuleNotFoundError(
        'ONNX files are written by onnx and onnxscript and proved with onnxruntime. Install them: '
        "pip install 'mmpatchmix[export]', or pip install onnx onnxscript onnxruntime"
    )
