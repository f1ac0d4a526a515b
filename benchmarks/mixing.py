"""Mixing a batch and its soft targets, beside the authors' package and a plain copy.

    python benchmarks/mixing.py
    python benchmarks/mixing.py --sizes 128x224/16 --num-mix 2

Each mixes and computes both targets; *clone* copies the batch, the least that any mixing reads and
writes. A size is IMAGES x PIXELS / PATCH, of float32.
Goals: ours takes at most 0.35 x the package, and M = 8 at most 1.3 x M = 2.
"""

from functools import partial

import patchmix
import torch
from harness import DEVICE, make_rows, measure, parse_args, report

from mmpatchmix.models import draw_groups, mix_patches, mix_to_mix, mix_to_source


def mix(images: torch.Tensor, num_mix: int, patch: int) -> None:
    """Mix a batch and compute both targets."""
    groups = draw_groups((images.shape[-1] // patch) ** 2, num_mix)
    mix_patches(images, groups, patch)
    mix_to_source(groups, num_mix)
    mix_to_mix(groups, groups, num_mix)


def compare(size: str, num_mixes: list[int], repeats: int) -> list[dict]:
    """Return a row of the table for each M; all M take turns with each other."""
    batch, patch = size.split('/')
    num_images, pixels = (int(number) for number in batch.split('x'))
    images = torch.randn(num_images, 3, pixels, pixels, device=DEVICE)
    own_index = torch.arange(num_images, device=DEVICE)
    # All of ours before the package, which leaves tens of megabytes behind or not, depending on M.
    candidates = {'clone': images.clone}
    candidates |= {f'ours {m}': partial(mix, images, m, int(patch)) for m in num_mixes}
    for m in num_mixes:
        package = patchmix.PatchMix(num_images, prob=1.0, mix_num=m, patch_size=int(patch))
        candidates[f'package {m}'] = partial(package, images, own_index)
    seconds = measure(candidates, repeats)
    clone, first = seconds['clone'], num_mixes[0]
    rows = []
    for m in num_mixes:
        ours, package = seconds[f'ours {m}'], seconds[f'package {m}']
        ratios = (ours / package, ours / clone, ours / seconds[f'ours {first}'])
        rows.append((size, m, 1000 * clone, 1000 * ours, 1000 * package, *ratios))
    columns = ('batch', 'M', 'clone (ms)', 'ours (ms)', 'patchmix (ms)', 'ours / patchmix')
    return make_rows((*columns, 'ours / clone', f'ours / ours at M = {first}'), rows)


def main() -> None:
    args = parse_args(__doc__, sizes='64x224/16,256x32/2', num_mix='2,3,4,8')
    num_mixes = [int(m) for m in args.num_mix.split(',')]
    rows = [row for size in args.sizes.split(',') for row in compare(size, num_mixes, args.repeats)]
    goals = 'ours / patchmix <= 0.35, M = 8 / M = 2 <= 1.3'
    report('mixing', rows, repeats=args.repeats, goals=goals)


if __name__ == '__main__':
    main()
