"""The verbs as functions: pre-train, load the backbone of a checkpoint, embed images.

Each runs the code of the verb and raises the errors that the verb prints.
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmpatchmix.cli.verb import find_checkpoint, quiet_stack


class FeatureExtractor(nn.Module):
    """A ViT that normalises its images: the result of :func:`load_backbone`.

    Attributes:
        vit: mmpretrain's ``VisionTransformer``.
        preprocessing: The :class:`~mmpatchmix.checkpoints.vit_spec.Preprocessing` of the test
            view: size, mean and std.
        embed_dims: Width ``D`` of the features.
    """

    def __init__(self, vit: nn.Module, preprocessing: Any) -> None:
        super().__init__()
        self.vit, self.preprocessing, self.embed_dims = vit, preprocessing, vit.embed_dims
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(preprocessing, name))[:, None, None]  # (C, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return features ``(N, D)`` of images ``(N, C, H, W)``, values 0 to 255 of any dtype."""
        return self.vit((images - self.mean) / self.std)[-1]


def pretrain(
    images: str | Path | None = None,
    recipe: str | Path = 'patchmix_vit-s_folder',
    work_dir: str | Path | None = None,
    epochs: int | None = None,
    **options: Any,
) -> Path | None:
    """Pre-train as ``mmpatchmix train`` does, and return the last checkpoint.

    ::

        checkpoint = mmpatchmix.pretrain('path/to/images', epochs=100, auto_scale_lr=True)

    Args:
        images: A folder, a list of images, or tar shards; by default those of the recipe.
        recipe: Name of a shipped recipe, or a config file.
        work_dir: Folder of checkpoints, log and report; by default ``work_dirs/RECIPE``.
        epochs: Length of the run; schedules by epoch are scaled with it.
        **options: Further options of the verb, with underscores: ``resume=True``, ``amp=False``,
            ``init='vit.pth'``, ``cfg_options={'train_dataloader.batch_size': 64}``.

    Returns:
        Path | None: The checkpoint; None with ``dry_run=True``.

    Raises:
        ValueError: If an option is unknown, or the verb refuses the run.
        FileNotFoundError: If there is no such recipe, image or checkpoint.
    """
    quiet_stack()
    from mmpatchmix.cli import train

    return train.train(
        _parse(train, recipe, data_root=images, work_dir=work_dir, epochs=epochs, **options)
    )


def load_backbone(path: str | Path, encoder: str = 'momentum') -> FeatureExtractor:
    """Load the backbone of a checkpoint as a module from images to features, in evaluation mode.

    Args:
        path: A work dir, for its last checkpoint, or a file or folder of any layout of
            :func:`~mmpatchmix.checkpoints.read_backbone`.
        encoder: ``'momentum'`` or ``'query'``, if the file has both.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds no complete ViT.
    """
    quiet_stack()
    from mmpatchmix.checkpoints import read_backbone
    from mmpatchmix.convert.features import build_vit

    is_work_dir = Path(path).is_dir() and not Path(path, 'config.json').is_file()
    source = read_backbone(find_checkpoint(str(path)) if is_work_dir else str(path), encoder)
    state = source.state_dict
    num_channels = state['patch_embed.projection.weight'].shape[1]
    vit = build_vit(source.spec, in_channels=num_channels)
    vit.load_state_dict(state, strict=True)
    return FeatureExtractor(vit, source.preprocessing).eval()


def embed(
    path: str | Path,
    images: str | Path | None = None,
    out: str | Path | None = None,
    recipe: str | Path | None = None,
    **options: Any,
) -> tuple[np.ndarray, dict[str, list]]:
    """Compute the features of images as ``mmpatchmix embed`` does.

    Args:
        path: A checkpoint of a run, or its work dir for the last one.
        images: A folder, a list of images, or tar shards; by default those of the recipe.
        out: Folder to write, which must not exist; by default nothing is kept.
        recipe: Recipe or config file of the run; by default the config in the checkpoint.
        **options: Further options of the verb, with underscores: ``workers=0``.

    Returns:
        tuple[np.ndarray, dict[str, list]]: Features ``(M, D)``, float32, rows of unreadable images
        NaN; and the columns of a table of M rows for ``pandas.DataFrame``: ``file`` (names below
        the folder), ``readable``.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: As the verb does.
    """
    quiet_stack()
    from mmpatchmix.checkpoints.reading import read_checkpoint
    from mmpatchmix.cli import embed as verb
    from mmpatchmix.evaluation.embedding import read_embedding

    checkpoint = find_checkpoint(str(path))
    with tempfile.TemporaryDirectory(prefix='mmpatchmix-embed-') as scratch:
        if recipe is None:
            text = read_checkpoint(checkpoint).meta.get('cfg')
            if not text:
                raise ValueError(f'{checkpoint} does not hold its config: give recipe=NAME.')
            recipe = Path(scratch, 'config.py')
            recipe.write_text(text, encoding='utf-8')
        folder = Path(out or Path(scratch, 'features'))
        own = dict(out=folder, data_root=images, work_dir=scratch)
        args = _parse(verb, recipe, checkpoint, **own | options)
        with contextlib.redirect_stdout(io.StringIO()):  # the summary for a terminal
            verb.embed(args)
        found = read_embedding(folder)
        features = found.features if out else np.array(found.features)
    return features, dict(file=found.files, readable=found.readable.tolist())


def _parse(verb: ModuleType, *words: Any, **options: Any) -> argparse.Namespace:
    """Return the arguments of a verb; a ``ValueError`` says what its command line would print."""
    argv = list(map(str, words))
    for name, value in options.items():
        option = name.replace('_', '-')
        if isinstance(value, Mapping):
            value = [f'{key}={each}' for key, each in value.items()]
        if value is True or (value is False and name == 'amp'):
            argv.append(f'--{option}' if value else f'--no-{option}')
        elif value is not None and value is not False:
            values = value if isinstance(value, list | tuple) else [value]
            argv += [f'--{option}={each}' for each in values]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return verb.parse_args(argv)
    except SystemExit:
        raise ValueError(printed.getvalue().strip().rpartition('error: ')[2]) from None
