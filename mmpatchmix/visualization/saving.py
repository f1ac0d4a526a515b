"""Bring figures to a file or to the visualizer of a run."""

from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def check_picture_name(path: str | Path) -> Path:
    """Return the path of a picture.

    Raises:
        ValueError: If it does not end in .png.
    """
    if Path(path).suffix.lower() != '.png':
        raise ValueError(f'{path} must end in .png: pictures are written as that.')
    return Path(path)


def save_picture(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG file, and its folder if need be."""
    path = check_picture_name(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def to_array(figure: Figure) -> np.ndarray:
    """Draw a figure into ``(H, W, 3)`` uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
