"""Write the features of all images of a folder, for numpy and pandas; labels are not needed.

mmpatchmix embed patchmix_vit-s_folder work_dirs/RUN --data-root PATH --out embedded
bash tools/torchrun.sh 8 -m mmpatchmix embed CONFIG CKPT --launcher pytorch --out OUT

OUT is a folder: features.npy (a row per image), files.csv (their names), about.json. Called again
after it was cut short, it continues. Features are those of all other verbs: the class token of the
momentum backbone, of the test view of the config.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import add_common_arguments, load_config, new_parser
from mmpatchmix.cli.verb import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('embed', __doc__)
    add_common_arguments(parser)
    parser.add_argument(
        'checkpoint', help='checkpoint of the same config, or a work dir for its last'
    )
    parser.add_argument('--out', required=True, help='the folder to write')
    parser.add_argument(
        '--patch-tokens', action='store_true', help='also write the tokens of all patches, float16'
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Embed, and say what was written."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        embed(args)


def set_images(cfg: Any, data_root: str | None) -> None:
    """Let ``cfg.test_dataloader`` read the images to embed; changed in place.

    Args:
        cfg: A config with a ``test_dataloader`` or ``val_dataloader``: its test view is taken.
        data_root: Any folder of images; None for the test images of the config.

    Raises:
        ValueError: If the config has neither loader.
    """
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not loader:
        raise ValueError(f'{cfg.filename} describes no test view (test_dataloader).')
    if data_root:
        pipeline = list(loader.dataset.get('pipeline') or [])
        if not any(str(step['type']).rpartition('.')[2].startswith('Load') for step in pipeline):
            pipeline.insert(0, dict(type='LoadImageFromFile'))  # of data sets kept in memory
        extensions = loader.dataset.get('extensions')
        loader['dataset'] = dict(
            type='mmpatchmix.ImageFolder',
            data_root=data_root,
            labels=False,
            max_unreadable=1.0,  # their rows are marked
            pipeline=pipeline,
            test_mode=True,
            **(dict(extensions=extensions) if extensions else {}),
        )
    cfg.test_dataloader = loader


def embed(args: argparse.Namespace) -> None:
    """Do what the arguments say."""
    # Here, not above: importing takes seconds, and --help is to answer at once.
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()  # before what it silences is imported
    from mmengine.dist import is_main_process

    from mmpatchmix import __version__
    from mmpatchmix.cli.verb import build_runner
    from mmpatchmix.cli.work_dir import find_checkpoint
    from mmpatchmix.engine.ranks import compare_data
    from mmpatchmix.evaluation import embedding
    from mmpatchmix.evaluation.feature_cache import feature_key
    from mmpatchmix.evaluation.features import load_model

    began, out = time.monotonic(), Path(args.out)
    if out.exists():
        raise FileExistsError(f'{out} exists already; remove it or choose another --out.')
    data_root, args.data_root = args.data_root, None  # for one data set, of whatever config
    cfg = load_config(args)
    checkpoint = find_checkpoint(args.checkpoint)
    if args.work_dir is None:
        cfg.work_dir = str(Path(cfg.work_dir) / 'embed')  # the log
    set_images(cfg, data_root)
    runner = build_runner(cfg, args.verbose)
    load_model(runner, checkpoint)
    loader = runner.build_dataloader(cfg.test_dataloader)
    compare_data(loader.dataset)
    about: dict[str, Any] = {}
    if is_main_process():
        about = feature_key(checkpoint, cfg.model, cfg.test_dataloader.dataset, loader.dataset)
        about = dict(mmpatchmix=__version__, digests=about)
    num_unreadable = embedding.embed(runner.model, loader, out, about, args.patch_tokens)
    if is_main_process():
        about = embedding.read_embedding(out).about
        lost = f'{num_unreadable:,} of them unreadable (rows of NaN), ' if num_unreadable else ''
        print(
            f'{about["num_images"]:,} images, {lost}width {about["width"]}, '
            f'{time.monotonic() - began:.0f} s\nwritten to {out}'
        )
