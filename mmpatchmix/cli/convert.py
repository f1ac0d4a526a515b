"""Convert a checkpoint's backbone for another library, or export it, and verify the features.

mmpatchmix convert work_dirs/RUN/epoch_300.pth vit-s.safetensors --to timm
mmpatchmix convert published.pth vit-s.pth --to mmpretrain
mmpatchmix convert work_dirs/RUN vit-s.onnx --to onnx --img-size 224
mmpatchmix convert work_dirs/RUN vit-s --to hf --push ORG/NAME

The source may be of mmpatchmix, mmpretrain, published PatchMix, MoCo v3, timm or transformers. A
.pth is for mmpretrain, mmdet and timm, .safetensors for timm, .onnx and .pt2 for onnx and
torch-export, which take batches
of normalised images of one size. The preprocessing is written to vit-s.preprocessing.json, for
transformers to preprocessor_config.json, beside a model card, README.md, to complete.
"""

import argparse
from pathlib import Path

from mmpatchmix.cli.arguments import add_trust_checkpoint
from mmpatchmix.cli.verb import find_checkpoint, make_verb

TARGETS = ('mmpretrain', 'mmdet', 'timm', 'transformers', 'hf', 'onnx', 'torch-export')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = parser.add_argument
    add('source', help='checkpoint file, work dir for its last, or folder of a transformers ViT')
    add('destination', help='.pth, .safetensors, .onnx or .pt2 file; for transformers a new folder')
    add('--to', required=True, choices=TARGETS, help='library or format; hf is transformers')
    encoders = ('momentum', 'query')
    add('--encoder', default='momentum', choices=encoders, help='of a pre-training checkpoint')
    add('--num-heads', type=int, help='needed if the file does not hold it')
    add('--img-size', type=int, help='interpolate the position embedding to this size')
    add('--push', metavar='ORG/NAME', help='with --to hf: upload it, as a private one if new')
    add_trust_checkpoint(parser)


def convert(args: argparse.Namespace) -> None:
    """Convert and print the report."""
    from mmpatchmix.compat.safe_loading import trust_checkpoints
    from mmpatchmix.convert.convert_checkpoint import convert_checkpoint

    if args.trust_checkpoint:
        trust_checkpoints()
    target = 'transformers' if args.to == 'hf' else args.to
    if args.push and target != 'transformers':
        raise ValueError('--push uploads the folder of --to hf.')
    source, options = args.source, (target, args.encoder, args.num_heads, args.img_size)
    if Path(source).is_dir() and not Path(source, 'config.json').is_file():
        source = find_checkpoint(source)
    print(convert_checkpoint(source, args.destination, *options))
    if args.push:
        print(f'pushed to {push(args.destination, args.push)}')


def push(folder: str | Path, repo: str) -> str:
    """Upload a folder to ``ORG/NAME``, private if it is new; return the address."""
    from huggingface_hub import HfApi

    from mmpatchmix.checkpoints.reading import explain_errors

    with explain_errors(repo):
        url = HfApi().create_repo(repo, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message='Upload a backbone')
    return str(url)


parse_args, main = make_verb('convert', __doc__, add_arguments, convert)
