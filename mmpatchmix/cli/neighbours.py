"""Find the nearest images of given ones, or all near-duplicates, in what "embed" wrote.

mmpatchmix neighbours embedded --of cats/1.jpg dogs/7.jpg
mmpatchmix neighbours embedded --queries other_embedded -k 5   # for each image of another folder
mmpatchmix neighbours embedded --near-duplicates 0.97
mmpatchmix neighbours embedded --embed CONFIG CKPT --data-root PATH --of cats/1.jpg

Writes a table (CSV) and a contact sheet (PNG). The search is exact. What cosine near-duplicates
have depends on network and images: look at the sheet, and choose the threshold again.
"""

import argparse
import csv
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmpatchmix.cli.arguments import add_verbose, new_parser
from mmpatchmix.cli.verb import exit_on_user_error

if TYPE_CHECKING:
    from mmpatchmix.evaluation.embedding import Embedding

# On the console and on the sheet; the table has all.
SHOWN = 20


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('neighbours', __doc__)
    parser.add_argument('embedding', help='the folder that "mmpatchmix embed" wrote')
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--of', nargs='+', metavar='FILE', help='images of the embedding, as named')
    what.add_argument('--queries', metavar='EMBEDDING', help='another embedding: all of its images')
    what.add_argument(
        '--near-duplicates', type=float, metavar='COSINE', help='all pairs from this similarity on'
    )
    parser.add_argument('-k', type=int, default=10, help='neighbours of each image (default: 10)')
    parser.add_argument(
        '--embed',
        nargs=2,
        metavar=('CONFIG', 'CKPT'),
        help='write the embedding if it is not there',
    )
    parser.add_argument('--data-root', help='for --embed: the folder of images')
    parser.add_argument('--out', help='folder for table and sheet; the embedding by default')
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Search, write, and print."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        neighbours(args)


def neighbours(args: argparse.Namespace) -> None:
    """Do what the arguments say.

    Raises:
        ValueError: If ``-k`` is below 1.
    """
    if args.k < 1:
        raise ValueError(f'-k {args.k}: look for at least 1 neighbour.')
    if args.embed and not Path(args.embedding).exists():
        from mmpatchmix.cli import embed

        data_root = ['--data-root', args.data_root] if args.data_root else []
        embed.main([*args.embed, *data_root, '--out', args.embedding])

    # Here, not above: importing takes seconds, and --help is to answer at once.
    from mmpatchmix.cli.verb import quiet_stack

    quiet_stack()  # before what it silences is imported
    from mmpatchmix.evaluation.embedding import read_embedding
    from mmpatchmix.report.sheets import draw_contact_sheet

    found = read_embedding(args.embedding)
    if args.near_duplicates is None:
        name, other = 'neighbours', read_embedding(args.queries) if args.queries else None
        pairs = find_nearest(found, args.of, other, args.k)
    else:
        name, other = 'near_duplicates', None
        pairs = find_pairs(found, args.near_duplicates)
    folder = Path(args.out or args.embedding)
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / f'{name}.csv', pairs)
    rows = group(pairs)
    print(f'{len(pairs):,} {name.replace("_", "-")}' + ('' if pairs else ': none'))
    for first, near in rows[:SHOWN]:
        print(first + ''.join(f'\n  {cosine:.4f}  {second}' for second, cosine in near[: args.k]))
    if len(rows) > SHOWN:
        print(f'... and {len(rows) - SHOWN:,} more images')
    written = f'\nwritten to {folder / name}.csv'
    if rows and all(found.files):
        roots = Path((other or found).about['root']), Path(found.about['root'])
        sheet = [
            [(roots[0] / first, first)]
            + [(roots[1] / second, f'{cosine:.3f}') for second, cosine in near[: args.k]]
            for first, near in rows[:SHOWN]
        ]
        draw_contact_sheet(sheet, folder / f'{name}.png')
        written += f' and {name}.png'
    print(written)


Pair = tuple[str, str, float]


def find_nearest(
    found: 'Embedding', files: Sequence[str] | None, other: 'Embedding | None', k: int
) -> list[Pair]:
    """Find the k nearest images of given ones, which are not neighbours of themselves.

    Args:
        found: Where to search.
        files: Images of it; None for all of ``other``.
        other: Another embedding.
        k: At most so many for each image.

    Raises:
        ValueError: If an image is not there or was unreadable, or the two are not comparable.
    """
    import numpy as np
    import torch

    from mmpatchmix.evaluation.knn import find_neighbors

    source = other or found
    if other is None:
        chosen = [_find_row(found, name) for name in files or ()]
    else:
        chosen = np.flatnonzero(other.readable).tolist()
        _refuse_other_networks(found.about, other.about)
    rows, bank = _readable(found)
    queries = torch.from_numpy(source.features[chosen])
    cosines, columns = find_neighbors(queries.to(_device()), bank, k + (other is None))
    pairs = []
    for index, near, cosine in zip(chosen, rows[columns.cpu().numpy()], cosines, strict=True):
        kept = [
            (source.files[index] or str(index), found.files[row] or str(row), float(value))
            for row, value in zip(near, cosine, strict=True)
            if other is not None or row != index
        ]
        pairs += kept[:k]
    return pairs


def find_pairs(found: 'Embedding', threshold: float) -> list[Pair]:
    """Find all pairs of images from a cosine on, the nearest first."""
    from mmpatchmix.evaluation.knn import find_near_duplicates

    rows, bank = _readable(found)
    names = [found.files[row] or str(row) for row in rows]
    pairs = find_near_duplicates(bank, threshold, _device()).tolist()
    return [(names[int(first)], names[int(second)], cosine) for first, second, cosine in pairs]


def group(pairs: Sequence[Pair]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Put the pairs of each first image together, in the order in which it first appears."""
    groups: dict[str, list[tuple[str, float]]] = {}
    for first, second, cosine in pairs:
        groups.setdefault(first, []).append((second, cosine))
    return list(groups.items())


def write_table(path: Path, pairs: Sequence[Pair]) -> None:
    """Write ``file, neighbour, cosine``; names that are no UTF-8 as they are."""
    with open(path, 'w', encoding='utf-8', errors='surrogateescape', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['file', 'neighbour', 'cosine'])
        writer.writerows((first, second, f'{cosine:.6f}') for first, second, cosine in pairs)


def _device() -> str:
    from mmengine.device import get_device

    return get_device()


def _readable(found: 'Embedding') -> tuple:
    """Return the rows of readable images and their features, in memory only if some are not."""
    import numpy as np
    import torch

    rows = np.flatnonzero(found.readable)
    features = found.features if found.readable.all() else found.features[rows]
    return rows, torch.from_numpy(features)


def _find_row(found: 'Embedding', name: str) -> int:
    """Return the row of an image by its name in the embedding, or by its path."""
    wanted = (name, os.path.relpath(os.path.abspath(name), found.about['root']))
    row = next((found.files.index(each) for each in wanted if each in found.files), None)
    if row is None:
        near = difflib.get_close_matches(name, found.files, n=3)
        raise ValueError(
            f'{name} is not in the embedding, whose names begin at {found.about["root"]}'
            + (f'; did you mean {" or ".join(near)}?' if near else '.')
            + ' For images from elsewhere, embed their folder and give it as --queries.'
        )
    if not found.readable[row]:
        raise ValueError(f'{name} could not be read when the embedding was made.')
    return row


def _refuse_other_networks(about: dict, other: dict) -> None:
    digests = about.get('digests', {}), other.get('digests', {})
    names = ('checkpoint', 'model', 'transform')
    if changed := [name for name in names if digests[0].get(name) != digests[1].get(name)]:
        raise ValueError(
            f'the two embeddings are of another {", ".join(changed)}: their features cannot be '
            'compared. Embed both with one checkpoint and config.'
        )
