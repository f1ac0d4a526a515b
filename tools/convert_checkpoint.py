"""Translate a checkpoint's backbone for another library, and prove that it is the same.

python tools/convert_checkpoint.py work_dirs/RUN/epoch_300.pth vit-s.safetensors --to timm
python tools/convert_checkpoint.py published.pth vit-s.pth --to mmpretrain
"""

import argparse
import sys

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()

from mmpatchmix.checkpoints import convert_checkpoint  # noqa: E402
from mmpatchmix.checkpoints.convert import TARGETS  # noqa: E402


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'source',
        help='checkpoint of mmpatchmix, mmpretrain, published PatchMix, MoCo v3 or timm, or a '
        'folder of a transformers ViT',
    )
    parser.add_argument(
        'destination',
        help='.pth for mmpretrain and mmdet, .safetensors or .pth for timm, a new folder for '
        'transformers',
    )
    parser.add_argument('--to', required=True, choices=TARGETS, help='the library it is for')
    parser.add_argument(
        '--encoder',
        default='momentum',
        choices=('momentum', 'query'),
        help='which encoder of a pre-training checkpoint (default: momentum)',
    )
    parser.add_argument('--num-heads', type=int, help='where the file does not say it')
    parser.add_argument('--img-size', type=int, help='interpolate the positions to this size')
    return parser.parse_args()


def main() -> int:
    """Convert and print the report."""
    args = parse_args()
    try:
        conversion = convert_checkpoint(
            args.source, args.destination, args.to, args.encoder, args.num_heads, args.img_size
        )
    except (ValueError, FileNotFoundError, FileExistsError, ModuleNotFoundError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    print(conversion)
    return 0


if __name__ == '__main__':
    sys.exit(main())
