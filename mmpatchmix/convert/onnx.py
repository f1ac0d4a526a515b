"""Export backbones as programs that run without this package: ONNX and ``torch.export``.

The image size is fixed, as such programs cannot interpolate positions; the batch size is free.
"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from mmpatchmix.checkpoints.vit_spec import Preprocessing

_INPUT, _OUTPUT = 'images', 'features'


class _LastOutput(nn.Module):
    """The class token, the last output of mmpretrain's ViT."""

    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[-1]  # (N, D)


def write_program(vit: nn.Module, path: Path, img_size: int, num_channels: int) -> None:
    """Write a ViT in evaluation mode as ``.onnx`` or ``.pt2``, for images of ``img_size`` pixels.

    ``ModuleNotFoundError`` if the packages for ONNX are not installed.
    """
    model = nn.Sequential(vit, _LastOutput()).eval()
    images = torch.zeros(2, num_channels, img_size, img_size)
    shapes = ({0: torch.export.Dim('num_images')},)
    if path.suffix == '.pt2':
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=shapes), path)
        return
    try:
        import onnxruntime  # noqa: F401  (for the verification)
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModuleNotFoundError(
            'ONNX files are written by onnx and onnxscript and verified with onnxruntime. Install '
            "them: pip install 'mmpatchmix[export]', or pip install onnx onnxscript onnxruntime"
        ) from error
    names = dict(input_names=[_INPUT], output_names=[_OUTPUT])
    options = dict(external_data=False, verbose=False)  # one file
    torch.onnx.export(model, (images,), path, dynamic_shapes=shapes, **names, **options)


def features_of_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Load a program that :func:`write_program` wrote, as its users do."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return lambda images: torch.from_numpy(session.run([_OUTPUT], {_INPUT: images.numpy()})[0])


def preprocessing_file(path: Path) -> Path:
    """Return the JSON file that describes the preprocessing for a program."""
    return path.with_suffix('.preprocessing.json')


def describe(preprocessing: Preprocessing) -> dict:
    """Return the content of the JSON file with the preprocessing of a program."""
    content, size = asdict(preprocessing), preprocessing.crop
    values = content.pop('values')
    return content | {
        'interpolation': 'bicubic, antialiased',
        'channels': f'{values}; (value - mean) / std',
        'input': f'float32 (N, {len(preprocessing.mean)}, {size}, {size})',
        'input_name': _INPUT,
        'output_name': _OUTPUT,
    }
