"""Write the table of configs and the examples into the documents.

    python docs/fill.py          # write
    python docs/fill.py --check  # exit 1 if a document is outdated

The text between `<!-- recipes -->` or `<!-- file PATH -->` and `<!-- end -->` is generated; changes
by hand are lost.
"""

import re
import sys
from pathlib import Path

from mmengine.config import Config

import mmpatchmix.registry  # noqa: F401  (custom_imports of the configs)
from mmpatchmix.files import list_recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / 'docs' / name for name in ('recipes.md', 'extend.md')]
PURPOSES = {'linear': 'linear probe', 'finetune': 'fine-tuning', 'coco': 'detection'}
PURPOSES['ade20k'] = 'segmentation'
# By the type of the data set or, first, by its data_root.
DATA = {
    'CIFAR10': 'CIFAR-10',
    'CIFAR100': 'CIFAR-100',
    'mmpatchmix.CocoDataset': 'COCO',
    'mmpatchmix.Digits': 'digits',
    'data/ade/ADEChallengeData2016': 'ADE20K',
    'data/imagenet': 'ImageNet-1K',
    'data/images': 'yours',
    'work_dirs/digit_scenes/data/': 'scenes of digits',
    'work_dirs/digit_scenes/crops': 'pieces of such scenes',
    'work_dirs/segmentation/data/': 'scenes of a digit',
}
# Measured with this code, in %.
MEASURED = {'patchmix_vit-digits': 'kNN 95.8', 'patchmix_vit-digits_plain': 'kNN 83.3'}
HEAD = ['config', 'for', 'network', 'data', 'input', 'epochs', 'batch', 'learning rate']
HEAD += ['paper', 'ours']


def describe(name: str, path: Path) -> list[str]:
    """Return the cells of a config."""
    cfg = Config.fromfile(path)
    dataset, epochs = cfg.train_dataloader.dataset, cfg.train_cfg.max_epochs
    if 'dataset' in dataset:  # repeated
        epochs *= dataset.times
        dataset = dataset.dataset
    arch, patch = cfg.model.backbone.arch, cfg.model.backbone.get('patch_size', 16)
    published = re.search(r'Paper: ([^%]*) % top-1', path.read_text())
    return [
        f'[`{name}`](../{path.relative_to(ROOT).as_posix()})',
        PURPOSES.get(name.split('/')[0], 'pre-training'),
        f'{arch.embed_dims} × {arch.num_layers}, {arch.num_heads} heads, patch {patch}',
        DATA.get(dataset.get('data_root')) or DATA[dataset.type],
        describe_input(cfg, dataset),
        str(epochs),
        str(cfg.auto_scale_lr.base_batch_size),
        f'{cfg.optim_wrapper.optimizer.lr:.3g}',
        published[1] if published else '',
        MEASURED.get(name, ''),
    ]


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
        if step.type == 'RandomChoice':
            sides = [scale[0] for scale in step.transforms[0][0].scales]
            return f'1333×{min(sides)}–{max(sides)}'
    sizes = [step.get(key) for key in ('crop_size', 'scale') for step in dataset.pipeline]
    sizes.append(cfg.model.data_preprocessor.get('size', (128, 128)))  # scenes: as they are
    return '×'.join(map(str, next(filter(None, sizes))))


def fill(document: str) -> str:
    """Return a document with its generated parts made anew."""

    def make(match: re.Match) -> str:
        if match[2] is None:
            # Pre-training first.
            recipes = sorted(list_recipes().items(), key=lambda item: ('/' in item[0], item[0]))
            rows = [HEAD, ['---'] * len(HEAD), *(describe(*item) for item in recipes)]
            made = '\n'.join(f'| {" | ".join(row)} |' for row in rows)
        else:
            code = (ROOT / match[2]).read_text().rstrip()
            made = f'[`{match[2]}`](../{match[2]}):\n\n```python\n{code}\n```'
        return f'{match[1]}\n\n{made}\n\n<!-- end -->'

    pattern = r'(<!-- (?:recipes|file ([\w./-]+)) -->).*?<!-- end -->'
    return re.sub(pattern, make, document, flags=re.DOTALL)


def main() -> None:
    """Write or check."""
    for path in DOCUMENTS:
        before = path.read_text()
        after = fill(before)
        if '--check' in sys.argv and after != before:
            sys.exit(f'{path} is outdated: run {Path(__file__).name}')
        path.write_text(after)


if __name__ == '__main__':
    main()
