"""Mixing a batch and its soft targets, beside the authors' package and a plain copy.

    python benchmarks/mixing.py
    python benchmarks/mixing.py --sizes 128x224/16 --num-mix 2

Candidates:

- ours: `draw_groups`, `mix_patches` and the sparse targets `mix_to_source`, `mix_to_mix`;
- patchmix: the authors' package `patchmix` 0.1 (among the test requirements), which mixes and
  builds dense targets over the batch;
- clone: a copy of the batch, which is what any mixing must at least read and write.

A size is IMAGES x PIXELS / PATCH: 64x224/16 is 64 x 3 x 224 x 224 float32 in patches of 16.
Goals: ours takes at most 0.35 x the package, and M = 8 at most 1.3 x M = 2.
"""

from functools import partial

import patchmix
import torch
from harness import measure, parse_args, report

from mmpatchmix.models import draw_groups, mix_patches, mix_to_mix, mix_to_source


def compare(size: str, num_mixes: list[int], repeats: int) -> list[dict]:
    """Return a row of the table for each M; all M take turns with each other."""
    batch, patch_size = size.split('/')
    num_images, pixels = (int(number) for number in batch.split('x'))
    patch = int(patch_size)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    images = torch.randn(num_images, 3, pixels, pixels, device=device)
    own_index = torch.arange(num_images, device=device)

    def ours(num_mix: int) -> None:
        groups = draw_groups((pixels // patch) ** 2, num_mix)
        mix_patches(images, groups, patch)
        mix_to_source(groups, num_mix)
        mix_to_mix(groups, groups, num_mix)

    # Ours next to each other: what runs before decides which memory is at hand, and the package
    # leaves tens of megabytes behind or not, depending on M.
    candidates = {'clone': images.clone}
    candidates |= {f'ours {m}': partial(ours, m) for m in num_mixes}
    for m in num_mixes:
        package = patchmix.PatchMix(num_images, prob=1.0, mix_num=m, patch_size=patch)
        candidates[f'package {m}'] = partial(package, images, own_index)
    seconds = measure(candidates, repeats)
    return [
        {
            'batch': size,
            'M': m,
            'clone (ms)': 1000 * seconds['clone'],
            'ours (ms)': 1000 * seconds[f'ours {m}'],
            'patchmix (ms)': 1000 * seconds[f'package {m}'],
            'ours / patchmix': seconds[f'ours {m}'] / seconds[f'package {m}'],
            'ours / clone': seconds[f'ours {m}'] / seconds['clone'],
            f'ours / ours at M = {num_mixes[0]}': seconds[f'ours {m}']
            / seconds[f'ours {num_mixes[0]}'],
        }
        for m in num_mixes
    ]


def main() -> None:
    args = parse_args(__doc__, sizes='64x224/16,256x32/2', num_mix='2,3,4,8')
    num_mixes = [int(m) for m in args.num_mix.split(',')]
    rows = [row for size in args.sizes.split(',') for row in compare(size, num_mixes, args.repeats)]
    goals = 'ours / patchmix <= 0.35, M = 8 / M = 2 <= 1.3'
    report('mixing', rows, repeats=args.repeats, goals=goals)


if __name__ == '__main__':
    main()
