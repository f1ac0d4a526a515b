"""Translate a checkpoint's backbone for another library, or export it, and prove it is the same.

mmpatchmix convert work_dirs/RUN/epoch_300.pth vit-s.safetensors --to timm
mmpatchmix convert published.pth vit-s.pth --to mmpretrain
mmpatchmix convert work_dirs/RUN vit-s.onnx --to onnx --img-size 224

ONNX and torch-export take normalised images of one size, any number of them; what to do to an image
before is in vit-s.preprocessing.json, and for transformers in preprocessor_config.json, beside a
model card, README.md, to be completed before it is published.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmpatchmix.cli.arguments import add_trust_checkpoint, add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

TARGETS = ('mmpretrain', 'mmdet', 'timm', 'transformers', 'onnx', 'torch-export')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('convert', __doc__)
    parser.add_argument(
        'source',
        help='checkpoint of mmpatchmix, mmpretrain, published PatchMix, MoCo v3 or timm, a work '
        'dir for its last, or a folder of a transformers ViT',
    )
    parser.add_argument(
        'destination',
        help='.pth for mmpretrain and mmdet, .safetensors or .pth for timm, a new folder for '
        'transformers, .onnx, .pt2 for torch-export',
    )
    parser.add_argument('--to', required=True, choices=TARGETS, help='whom it is for')
    parser.add_argument(
        '--encoder',
        default='momentum',
        choices=('momentum', 'query'),
        help='which encoder of a pre-training checkpoint (default: momentum)',
    )
    parser.add_argument('--num-heads', type=int, help='where the file does not say it')
    parser.add_argument('--img-size', type=int, help='interpolate the positions to this size')
    add_trust_checkpoint(parser)
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert and print the report."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        # Here, not above: importing takes seconds, and --help is to answer at once.
        from mmpatchmix.cli.verb import quiet_stack

        quiet_stack()  # before what it silences is imported
        from mmpatchmix.cli.work_dir import find_checkpoint
        from mmpatchmix.compat.safe_loading import trust_checkpoints
        from mmpatchmix.convert.convert_checkpoint import convert_checkpoint

        if args.trust_checkpoint:
            trust_checkpoints()
        source = args.source
        if Path(source).is_dir() and not Path(source, 'config.json').is_file():
            source = find_checkpoint(source)
        print(
            convert_checkpoint(
                source, args.destination, args.to, args.encoder, args.num_heads, args.img_size
            )
        )
