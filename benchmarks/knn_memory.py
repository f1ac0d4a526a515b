"""Memory and time of kNN beyond the features themselves.

python benchmarks/knn_memory.py --bank 1281167 --queries 2048 --dims 384
python benchmarks/knn_memory.py --bank 32768 --queries 50000 --dims 384

The bank is visited in chunks and each query keeps its 200 best, so memory grows with the
queries alone; the two calls above measure both terms without the hour that the product takes
on a CPU.
"""

import argparse
import resource
import time

import torch

from mmpatchmix.evaluation.knn import knn_predict


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--bank', type=int, default=1_281_167)
    parser.add_argument('--queries', type=int, default=50_000)
    parser.add_argument('--dims', type=int, default=384)
    args = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    bank = torch.empty(args.bank, args.dims)
    for part in bank.split(16384):
        part.normal_(generator=generator)
    queries = torch.randn(args.queries, args.dims, generator=generator)
    labels = torch.randint(1000, (args.bank,), generator=generator)
    features = (bank.numel() + queries.numel()) * 4 / 2**30
    # Warm up on a little, so that libraries and thread pools count as before.
    knn_predict(queries[:64], bank[:512], labels[:512])
    before, began = peak_gb(), time.monotonic()
    knn_predict(queries, bank, labels)
    seconds = time.monotonic() - began
    print(
        f'{args.queries} queries, bank {args.bank} x {args.dims}: features {features:.2f} GB, '
        f'{peak_gb() - before:.2f} GB beyond, {seconds:.0f} s '
        f'({2e-9 * args.queries * args.bank * args.dims / seconds:.0f} GFLOP/s, '
        f'{torch.get_num_threads()} threads)'
    )


if __name__ == '__main__':
    main()
