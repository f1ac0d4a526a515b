"""Pack a folder of images into tar shards, which network disks read faster than single files.

mmpatchmix pack-shards /data/imagenet/train /data/shards/train --size 384
mmpatchmix train patchmix_vit-s_folder --data-root /data/shards/train

Run it again where it was cut: whole shards are kept. Images that cannot be read are left out, and
so are those of other than 8 bits or 1 or 3 channels where they would become JPEGs; all are named.
"""

import argparse
import os
from collections.abc import Sequence
from functools import partial

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

NUM_SHOWN = 20


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('pack-shards', __doc__)
    parser.add_argument('images', help='folder of images, flat or one folder per class')
    parser.add_argument('out', help='folder of the shards')
    parser.add_argument(
        '--size', type=int, metavar='N', help='resize larger images to N pixels (shorter side)'
    )
    parser.add_argument(
        '--quality',
        type=int,
        metavar='Q',
        help='write all images as JPEGs of this quality, 1 to 100; by default resized ones at 90, '
        'and the others are copied as they are',
    )
    parser.add_argument(
        '--per-shard', type=int, default=5000, metavar='N', help='images per shard (default: 5000)'
    )
    parser.add_argument(
        '--workers',
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar='N',
        help='processes that read and encode; by default as many as there are cores',
    )
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Pack, and say what was left out."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        # Here, not above: importing takes seconds, and --help is to answer at once.
        from mmpatchmix.cli.verb import quiet_stack

        quiet_stack()
        from mmpatchmix.datasets.pack_shards import pack_shards

        skipped = pack_shards(
            args.images,
            args.out,
            size=args.size,
            quality=args.quality,
            per_shard=args.per_shard,
            num_workers=args.workers,
            say=partial(print, flush=True),
        )
        for name, reason in list(skipped.items())[:NUM_SHOWN]:
            print(f'  left out: {name} ({reason})')
        if skipped:
            print(f'{len(skipped)} left out by this run; each shard lists its own in __pack__')
