"""Write the features of all images of a folder, for numpy and pandas; labels are not needed.

mmpatchmix embed patchmix_vit-s_folder work_dirs/RUN --data-root PATH --out embedded
bash tools/torchrun.sh 8 -m mmpatchmix embed CONFIG CKPT --launcher pytorch --out OUT

OUT is a folder: features.npy (a row per image), files.csv (their names), about.json. An interrupted
run continues when repeated. As in all verbs, features are the class token of the momentum backbone
on the test view of the config.
"""

import argparse
import time
from pathlib import Path
from typing import Any

from mmpatchmix.cli.arguments import FOLDER, SHARDS, add_common_arguments, holds_shards, load_config
from mmpatchmix.cli.verb import build_runner, find_checkpoint, make_verb


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_common_arguments(parser)
    add = parser.add_argument
    add('checkpoint', help='checkpoint of the same config, or a work dir for its last')
    add('--out', required=True, help='the folder to write')
    add('--patch-tokens', action='store_true', help='also write all patch tokens, as float16')


def set_images(cfg: Any, data_root: str | None) -> None:
    """Set ``cfg.test_dataloader`` to the images of a folder in the test view, or to its own."""
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader')
    if not loader:
        raise ValueError(f'{cfg.filename} describes no test view (test_dataloader).')
    if data_root:
        former = loader.dataset
        pipeline = list(former.get('pipeline') or [])
        if not any(str(step['type']).rpartition('.')[2].startswith('Load') for step in pipeline):
            pipeline.insert(0, dict(type='LoadImageFromFile'))  # absent for data sets in memory
        kind = SHARDS if holds_shards(data_root) else FOLDER
        loader.dataset = dict(type=kind, data_root=data_root, labels=False)
        # Rows of unreadable images are NaN.
        loader.dataset.update(pipeline=pipeline, test_mode=True, max_unreadable=1.0)
        if former.get('extensions'):
            loader.dataset.extensions = former.extensions
    cfg.test_dataloader = loader


def embed(args: argparse.Namespace) -> None:
    """Build the model, embed all images, and print a summary on the first rank."""
    from mmengine.dist import is_main_process

    from mmpatchmix import __version__
    from mmpatchmix.engine.ranks import compare_data
    from mmpatchmix.evaluation import embedding
    from mmpatchmix.evaluation.feature_cache import feature_key
    from mmpatchmix.evaluation.features import load_model

    start, out = time.monotonic(), Path(args.out)
    if out.exists():
        raise FileExistsError(f'{out} exists already; remove it or choose another --out.')
    data_root, args.data_root = args.data_root, None  # set_images applies it, to one data set
    cfg = load_config(args, below='embed')
    checkpoint = find_checkpoint(args.checkpoint)
    set_images(cfg, data_root)
    runner = build_runner(cfg, args.verbose, checkpoint)
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
            f'{time.monotonic() - start:.0f} s\nwritten to {out}'
        )


parse_args, main = make_verb('embed', __doc__, add_arguments, embed)
