"""Pack a folder of images into tar shards, which network disks read faster than single files.

mmpatchmix pack-shards /data/imagenet/train /data/shards/train --size 384
mmpatchmix train patchmix_vit-s_folder --data-root /data/shards/train

Files are copied; resized images become JPEGs of quality 90 if no --quality is given. An interrupted
run continues when repeated: finished shards are kept. Unreadable images are left out, and those
that are to become JPEGs but are not of 8 bits and 1 or 3 channels; all are named.
"""

import argparse
from functools import partial

from mmpatchmix.cli.verb import make_verb

NUM_SHOWN = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = parser.add_argument
    add('images', help='folder of images, flat or one folder per class')
    add('out', help='folder of the shards')
    add('--size', type=int, metavar='N', help='resize larger images to N pixels (shorter side)')
    add('--quality', type=int, metavar='Q', help='write all as JPEGs of this quality, 1 to 100')
    add('--per-shard', type=int, default=5000, metavar='N', help='images per shard (default: 5000)')
    add('--workers', type=int, metavar='N', help='processes that read and encode; default: cores')


def pack(args: argparse.Namespace) -> None:
    """Pack, and print the images that were left out."""
    import joblib

    from mmpatchmix.datasets.pack_shards import pack_shards

    settings = dict(size=args.size, quality=args.quality, per_shard=args.per_shard)
    settings['num_workers'] = joblib.cpu_count() if args.workers is None else args.workers
    skipped = pack_shards(args.images, args.out, **settings, say=partial(print, flush=True))
    for name, reason in list(skipped.items())[:NUM_SHOWN]:
        print(f'  left out: {name} ({reason})')
    if skipped:
        print(f'{len(skipped)} left out by this run; each shard lists its own in __pack__')


parse_args, main = make_verb('pack-shards', __doc__, add_arguments, pack)
