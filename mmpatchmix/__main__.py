"""The command ``mmpatchmix VERB ...``, also ``python -m mmpatchmix``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from mmpatchmix import __version__

# Each verb is a module of mmpatchmix.cli with a main().
VERBS = {
    'train': 'train a config',
    'test': 'evaluate a checkpoint with the test loop of its config',
    'evaluate': 'evaluate a pre-trained checkpoint: kNN, linear, few labels, fine-tuning',
    'embed': 'write the features of a folder of images, for numpy and pandas',
    'neighbours': 'find the nearest images of given ones, and near-duplicates',
    'show': 'draw a mix, neighbours, a map, attention, detections ... into a PNG file',
    'report': 'write an HTML page about a run, or comparing several',
    'convert': "convert a checkpoint's backbone for another library, or export it",
    'pack-shards': 'pack a folder of images into tar shards',
    'benchmark': 'measure whether data or training step limits the speed',
    'stats': 'print sizes and kinds of your images, and mean and std for the config',
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Run one verb and return the exit status; None and 0 mean success."""
    verbs = '\n'.join(f'  {verb:<12}{text}' for verb, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog='mmpatchmix',
        usage='mmpatchmix VERB ...',
        description=f'PatchMix pre-training of Vision Transformers.\n\nverbs:\n{verbs}\n\n'
        '"mmpatchmix VERB --help" lists the arguments of a verb.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'mmpatchmix {__version__}')
    parser.add_argument('verb', nargs='?', choices=VERBS, help=argparse.SUPPRESS)
    argv = sys.argv[1:] if argv is None else argv
    verb = parser.parse_args(argv[:1]).verb
    if verb is None:
        parser.print_help()
        return 0
    return import_module(f'mmpatchmix.cli.{verb.replace("-", "_")}').main(argv[1:])


if __name__ == '__main__':
    sys.exit(main())
