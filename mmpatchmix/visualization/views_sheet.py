"""Augmented and mixed views of a few training images, as the model sees them."""

from matplotlib.figure import Figure
from mmengine.dataset import default_collate
from torch import Tensor

from mmpatchmix.engine.random_states import random_states_kept
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.visualization.mixed_figure import to_picture

NUM_LOCAL = 2  # local crops of an image that are shown


def draw_views(runner, num_images: int = 8) -> Figure:
    """Draw the views of a few training images, an image a column. Random states are kept.

    Args:
        runner: With a train loader.
        num_images: Images to show, spread evenly over the training set.

    Raises:
        ValueError: If the model is no PatchMix.
    """
    model = unwrap_model(runner.model)
    if not isinstance(model, PatchMix):
        raise ValueError(f'only PatchMix has views; the model is a {type(model).__name__}.')
    dataset, preprocessor = runner.train_dataloader.dataset, model.data_preprocessor
    with random_states_kept():
        num = min(num_images, len(dataset))
        samples = [dataset[index * len(dataset) // num] for index in range(num)]
        inputs = preprocessor(default_collate(samples), training=True)['inputs']
    rows = _choose_rows(inputs)
    mean, std = preprocessor.mean.cpu(), preprocessor.std.cpu()
    height, width = inputs['view_1'].shape[-2:]
    cell = 1.5, 1.5 * height / width
    figure = Figure(
        figsize=(cell[0] * num + 1, cell[1] * len(rows) + 0.5), layout='constrained', dpi=110
    )
    axes = figure.subplots(len(rows), num, squeeze=False)
    for axis_row, (name, views) in zip(axes, rows.items(), strict=True):
        pictures = to_picture(views.float().cpu(), mean, std).clamp(0, 1).movedim(1, -1)
        for axis, picture in zip(axis_row, pictures, strict=True):
            axis.imshow(picture, interpolation='nearest')
            axis.set(xticks=[], yticks=[])
        axis_row[0].set_ylabel(name)
    channels = preprocessor.num_channels
    note = '' if channels == 3 else f'; {channels} channels, shown: {"3" if channels > 3 else "1"}'
    figure.suptitle(f'views as the model sees them{note}', fontsize=10)
    return figure


def _choose_rows(inputs: dict) -> dict[str, Tensor]:
    """Return ``(N, C, H, W)`` views by what is written beside them."""
    names = ('view_1', 'view_2', 'mixed_view_1', 'mixed_view_2')
    rows = {name.replace('_', ' '): inputs[name] for name in names}
    for name in ('local_views', 'mixed_local_views'):
        for number, views in enumerate(inputs.get(name, ())[:NUM_LOCAL], 1):
            rows[f'{name[:-1].replace("_", " ")} {number}'] = views
    return rows
