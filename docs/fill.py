"""Write into the documents what the code says: the table of all configs, the examples.

    python docs/fill.py          # write
    python docs/fill.py --check  # only say whether the documents are up to date

What stands between `<!-- recipes -->` or `<!-- file PATH -->` and `<!-- end -->` is made here; what
is written there by hand is lost.
"""

import argparse
import functools
import re
import sys
from pathlib import Path

from mmengine.config import Config
from mmengine.config import utils as config_utils

import mmpatchmix.registry  # noqa: F401  (custom_imports of the configs)
from mmpatchmix.files import list_recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'docs' / name for name in ('recipes.md', 'extend.md')]
PURPOSES = {'linear': 'linear probe', 'finetune': 'fine-tuning', 'coco': 'detection'}
DATA = {
    'CIFAR10': 'CIFAR-10',
    'CIFAR100': 'CIFAR-100',
    'CocoDataset': 'COCO',
    'ImageNet': 'ImageNet-1K',
    'mmpatchmix.Digits': 'digits',
}
# By data_root, where the kind of data set does not tell.
FOLDERS = {
    'data/imagenet': 'ImageNet-1K',
    'data/images': 'yours',
    'work_dirs/digit_scenes/data/': 'scenes of digits',
    'work_dirs/digit_scenes/crops': 'pieces of such scenes',
}
# What was measured with this code, in %; how and where is said in the README.
MEASURED = {'patchmix_vit-digits': 'kNN 95.8'}
HEAD = [
    'config',
    'for',
    'network',
    'data',
    'input',
    'epochs',
    'batch',
    'learning rate',
    'paper',
    'ours',
]


def recipe_table() -> str:
    """Return a row for every shipped config, pre-training first."""
    # mmengine reads a hundred files of mmdet for every base that is one of its; once will do.
    find = config_utils._get_cfg_metainfo
    if not hasattr(find, 'cache_info'):
        config_utils._get_cfg_metainfo = functools.cache(find)
    recipes = sorted(list_recipes().items(), key=lambda item: ('/' in item[0], item[0]))
    rows = [HEAD, ['---'] * len(HEAD), *(describe(name, path) for name, path in recipes)]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def describe(name: str, path: Path) -> list[str]:
    """Return the cells of a config."""
    cfg = Config.fromfile(path)
    relative = path.relative_to(ROOT).as_posix()
    dataset, epochs = cfg.train_dataloader.dataset, cfg.train_cfg.max_epochs
    if 'dataset' in dataset:  # repeated
        epochs *= dataset.times
        dataset = dataset.dataset
    return [
        f'[`{name}`](../{relative})',
        PURPOSES.get(name.split('/')[0], 'pre-training') if '/' in name else 'pre-training',
        describe_network(cfg.model.backbone),
        FOLDERS.get(dataset.get('data_root')) or DATA[dataset.type],
        describe_input(cfg, dataset),
        str(epochs),
        str(cfg.auto_scale_lr.base_batch_size),
        f'{cfg.optim_wrapper.optimizer.lr:.3g}',
        published(path),
        MEASURED.get(name, ''),
    ]


def describe_network(backbone: dict) -> str:
    """Return width, depth, heads and patch of a ViT."""
    arch, patch = backbone.arch, backbone.get('patch_size', 16)
    return f'{arch.embed_dims} × {arch.num_layers}, {arch.num_heads} heads, patch {patch}'


def describe_input(cfg: Config, dataset: dict) -> str:
    """Return crops or the size of images."""
    for step in dataset.pipeline:
        if 'global_size' in step:
            local = f' + {step.num_local}×{step.local_size}' if step.get('num_local') else ''
            return f'2×{step.global_size}{local}'
    size = cfg.model.backbone.get('img_size')
    if cfg.get('default_scope') == 'mmpretrain':
        return f'2×{size}' if 'momentum_encoder' in cfg.model else str(size)
    for step in dataset.pipeline:
        if scale := step.get('crop_size') or step.get('scale'):
            return '×'.join(map(str, scale))
    return '128×128'  # scenes of digits come as they are


def published(path: Path) -> str:
    """Return the figures that the head of a config promises."""
    found = re.search(r'Paper: ([^%]*) % top-1', path.read_text())
    return found[1] if found else ''


def fill(document: str) -> str:
    """Return a document with what is made here made anew."""

    def make(match: re.Match) -> str:
        if match[2] is None:
            made = recipe_table()
        else:
            code = (ROOT / match[2]).read_text().rstrip()
            made = f'[`{match[2]}`](../{match[2]}):\n\n```python\n{code}\n```'
        return f'{match[1]}\n\n{made}\n\n<!-- end -->'

    pattern = r'(<!-- (?:recipes|file ([\w./-]+)) -->).*?<!-- end -->'
    return re.sub(pattern, make, document, flags=re.DOTALL)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--check', action='store_true', help='change nothing; exit 1 if outdated')
    args = parser.parse_args()
    for path in DOCUMENTS:
        before = path.read_text()
        after = fill(before)
        if args.check and after != before:
            sys.exit(f'{path} is outdated: run {Path(__file__).name}')
        path.write_text(after)


if __name__ == '__main__':
    main()
