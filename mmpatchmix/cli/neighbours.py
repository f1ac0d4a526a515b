"""Find the nearest images of given ones, or all near-duplicates, in an embedding.

mmpatchmix neighbours embedded --of cats/1.jpg dogs/7.jpg
mmpatchmix neighbours embedded --queries other_embedded -k 5   # for each image of another folder
mmpatchmix neighbours embedded --near-duplicates 0.97

Writes a table (CSV) and a contact sheet (PNG). The search is exact. The cosine of near-duplicates
depends on network and images: check the sheet and adjust the threshold.
"""

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpatchmix.cli.verb import make_verb
from mmpatchmix.files import printable

SHOWN = 20  # images on the console and on the sheet; the table has all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = parser.add_argument
    add('embedding', help='the folder that "mmpatchmix embed" wrote')
    add('-k', type=int, default=10, help='neighbours of each image (default: 10)')
    add('--out', help='folder of table and sheet; default: the embedding')
    add = parser.add_mutually_exclusive_group(required=True).add_argument
    add('--of', nargs='+', metavar='FILE', help='images of the embedding, by name or path')
    add('--queries', metavar='EMBEDDING', help='all images of another embedding')
    add('--near-duplicates', type=float, metavar='COSINE', help='all pairs from this cosine on')


def neighbours(args: argparse.Namespace) -> None:
    """Write the table and the sheet, and print the first rows."""
    if args.k < 1:
        raise ValueError(f'-k {args.k}: look for at least 1 neighbour.')
    from mmpatchmix.evaluation.embedding import read_embedding
    from mmpatchmix.report.report import format_table
    from mmpatchmix.report.sheets import draw_contact_sheet

    found = read_embedding(args.embedding)
    source = read_embedding(args.queries) if args.queries else found
    if args.near_duplicates is None:
        name, pairs = 'neighbours', find_nearest(found, args.of, source, args.k)
    else:
        name, pairs = 'near-duplicates', find_pairs(found, args.near_duplicates)
    folder = Path(args.out or args.embedding)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f'{name.replace("-", "_")}.csv'
    with open(table, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        csv.writer(file).writerow(('file', 'neighbour', 'cosine'))
        csv.writer(file).writerows((*pair[:2], f'{pair[2]:.6f}') for pair in pairs)
    groups: dict[str, list[tuple[str, str]]] = {}
    for first, second, cosine in pairs:
        groups.setdefault(first, []).append((second, f'{cosine:.4f}'))
    shown = {first: near[: args.k] for first, near in list(groups.items())[:SHOWN]}
    rows = [map(printable, (first, *each)) for first, near in shown.items() for each in near]
    print(f'{len(pairs):,} {name}, of {len(groups):,} of {len(source.files):,} images')
    print(format_table(('image', 'neighbour', 'cosine'), rows))
    print(f'written to {table}, all of them')
    if shown and all(found.files):
        roots = Path(source.about['root']), Path(found.about['root'])
        sheet = [
            [(roots[0] / first, first), *((roots[1] / file, text) for file, text in near)]
            for first, near in shown.items()
        ]
        draw_contact_sheet(sheet, table.with_suffix('.png'))
        print(f'written to {table.with_suffix(".png")}, the first {len(shown)}')


def find_nearest(
    found: Any, files: Sequence[str], source: Any, k: int
) -> list[tuple[str, str, float]]:
    """Return image, neighbour and cosine of the k nearest in an ``Embedding`` of given images.

    These are ``files``, names or paths, if ``source`` is ``found``, else all images of ``source``.
    """
    import torch
    from mmengine.device import get_device

    from mmpatchmix.evaluation.knn import find_neighbors

    names, bank = _read_readable(found)
    if source is found:
        chosen = [_find_row(found, name) for name in files]
        queries = torch.from_numpy(found.features[chosen])
        given = [found.files[row] for row in chosen]
    else:
        digests, others = (each.about.get('digests', {}) for each in (found, source))
        keys = ('checkpoint', 'model', 'transform')
        if changed := [key for key in keys if digests.get(key) != others.get(key)]:
            raise ValueError(
                f'the embeddings are of a different {", ".join(changed)}: their features cannot '
                'be compared. Embed both with one checkpoint and config.'
            )
        given, queries = _read_readable(source)
    cosines, columns = find_neighbors(queries.to(get_device()), bank, k + (source is found))
    pairs = []
    for name, near, values in zip(given, columns.tolist(), cosines.tolist(), strict=True):
        others = [(name, names[n], value) for n, value in zip(near, values, strict=True)]
        pairs += [pair for pair in others if source is not found or pair[1] != name][:k]
    return pairs


def find_pairs(found: Any, threshold: float) -> list[tuple[str, str, float]]:
    """Find all pairs of images of an ``Embedding`` from a cosine on, the nearest first."""
    from mmengine.device import get_device

    from mmpatchmix.evaluation.knn import find_near_duplicates

    names, bank = _read_readable(found)
    pairs = find_near_duplicates(bank, threshold, get_device()).tolist()
    return [(names[int(first)], names[int(second)], cosine) for first, second, cosine in pairs]


def _read_readable(found: Any) -> tuple[list[str], Any]:
    """Return names and features of readable images, mapped from the disk if all are readable."""
    import numpy as np
    import torch

    rows = np.flatnonzero(found.readable)
    features = found.features if found.readable.all() else found.features[rows]
    return [found.files[row] or str(row) for row in rows], torch.from_numpy(features)


def _find_row(found: Any, name: str) -> int:
    """Return the row of an image by its name in the embedding, or by its path."""
    root = found.about['root']
    relative = os.path.relpath(os.path.abspath(name), root)
    name = next((each for each in (name, relative) if each in found.files), name)
    if name not in found.files:
        raise ValueError(
            f'{name} is not in the embedding, whose names are relative to {root}. For images from '
            'elsewhere, embed their folder and give it as --queries.'
        )
    row = found.files.index(name)
    if not found.readable[row]:
        raise ValueError(f'{name} could not be read when the embedding was made.')
    return row


parse_args, main = make_verb('neighbours', __doc__, add_arguments, neighbours)
