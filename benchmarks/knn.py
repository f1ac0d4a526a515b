"""kNN on features of ImageNet's size, beside the bare matrix product: time and memory.

    python benchmarks/knn.py                                            # about 2 minutes
    python benchmarks/knn.py --queries 50000 --bank 32768 --memory      # a query's share of memory
    python benchmarks/knn.py --queries 2048 --memory                    # the bank's share

Candidates, all on random normal features in float32; on a GPU, where there is one, with the bank on
the host, as evaluation keeps it:

- product: `queries @ bank.T` in the largest blocks that kNN uses, into one buffer: the floor;
- ours: `knn_predict` for k = 10, 20, 100, 200, that is normalising, the product, the 200 nearest
  and the votes.

`--plain` adds the product with a new tensor for each block, and in one piece, which takes
queries * bank * 4 bytes. `--memory` runs ours once and prints the peak of host memory beyond the
features in place of the times.
Goal: ours takes at most 1.3 x the product.
"""

import resource
import time

import torch
import torch.nn.functional as F
from harness import measure, parse_args, report
from torch import Tensor

from mmpatchmix.evaluation.knn import choose_chunks, knn_predict


def make_features(num_bank: int, num_queries: int, num_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit queries (Q, D), unit bank (M, D) and the bank's labels (M,) of 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.empty(num_bank, num_dims)
    for part in bank.split(16384):
        part.normal_(generator=generator)
        F.normalize(part, out=part)
    queries = F.normalize(torch.randn(num_queries, num_dims, generator=generator))
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    return queries.to(device), bank, torch.randint(1000, (num_bank,), generator=generator)


def product(queries: Tensor, bank: Tensor, reuse: bool) -> None:
    """All similarities, block by block, each thrown away."""
    query_chunk, bank_chunk = choose_chunks(queries)
    sizes = min(len(queries), query_chunk), min(len(bank), bank_chunk)
    buffer = queries.new_empty(sizes[0] * sizes[1])
    for block in bank.split(bank_chunk):
        block = block.to(queries.device)
        for part in queries.split(query_chunk):
            out = buffer[: len(part) * len(block)].view(len(part), len(block)) if reuse else None
            torch.mm(part, block.T, out=out)


def compare_times(args, queries: Tensor, bank: Tensor, labels: Tensor) -> list[dict]:
    candidates = {
        'product': lambda: product(queries, bank, reuse=True),
        'ours': lambda: knn_predict(queries, bank, labels),
    }
    if args.plain:
        candidates['product, new tensors'] = lambda: product(queries, bank, reuse=False)
        candidates['product in one piece'] = lambda: queries @ bank.to(queries.device).T
    seconds = measure(candidates, args.repeats)
    work = 2e-9 * len(queries) * bank.numel()
    return [
        {
            'candidate': name,
            'time (s)': value,
            'x product': value / seconds['product'],
            'product alone (GFLOP/s)': work / value,
        }
        for name, value in seconds.items()
    ]


def measure_memory(queries: Tensor, bank: Tensor, labels: Tensor) -> list[dict]:
    def peak_gb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    # Warm up on a little, so that libraries and thread pools count as before.
    knn_predict(queries[:64], bank[:512], labels[:512])
    before, began = peak_gb(), time.perf_counter()
    knn_predict(queries, bank, labels)
    return [
        {
            'features (GB)': (bank.numel() + queries.numel()) * 4 / 2**30,
            'beyond (GB)': peak_gb() - before,
            'time (s)': time.perf_counter() - began,
        }
    ]


def main() -> None:
    args = parse_args(
        __doc__, bank=1_281_167, queries=512, dims=384, plain=False, memory=False, repeats=7
    )
    features = make_features(args.bank, args.queries, args.dims)
    rows = measure_memory(*features) if args.memory else compare_times(args, *features)
    settings = dict(bank=args.bank, queries=args.queries, dims=args.dims)
    if not args.memory:
        settings |= dict(repeats=args.repeats, goal='ours <= 1.3 x product')
    report('kNN', rows, **settings)


if __name__ == '__main__':
    main()
