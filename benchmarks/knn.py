"""kNN on features of ImageNet's size, beside the bare matrix product: time and memory.

    python benchmarks/knn.py                                            # about 2 minutes
    python benchmarks/knn.py --queries 50000 --bank 32768 --memory      # memory of the queries
    python benchmarks/knn.py --queries 2048 --memory                    # memory of the bank

Random normal features in float32; the bank stays on the host, as in evaluation. *product* is
`queries @ bank.T` in the largest blocks that kNN uses, into one buffer; *ours* is `knn_predict` for
k = 10, 20, 100, 200: normalising, the product, the 200 nearest and the votes. `--memory` runs ours
once and prints the peak of host memory beyond the features. Goal: at most 1.3 x the product.
"""

import resource
import time
from functools import partial

import torch
import torch.nn.functional as F
from harness import DEVICE, make_rows, measure, parse_args, report
from torch import Tensor

from mmpatchmix.evaluation.knn import CHUNKS, CHUNKS_OF_GPUS, knn_predict


def make_features(num_bank: int, num_queries: int, num_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit queries (Q, D), unit bank (M, D) and the bank's labels (M,) of 1000 classes."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.empty(num_bank, num_dims)
    for part in bank.split(16384):
        part.normal_(generator=generator)
        F.normalize(part, out=part)
    queries = F.normalize(torch.randn(num_queries, num_dims, generator=generator))
    return queries.to(DEVICE), bank, torch.randint(1000, (num_bank,), generator=generator)


def product(queries: Tensor, bank: Tensor) -> None:
    """Compute all similarities block by block, each into the same buffer."""
    query_chunk, bank_chunk = CHUNKS if queries.device.type == 'cpu' else CHUNKS_OF_GPUS
    buffer = queries.new_empty(min(len(queries), query_chunk) * min(len(bank), bank_chunk))
    for block in bank.split(bank_chunk):
        block = block.to(queries.device)
        for part in queries.split(query_chunk):
            out = buffer[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=out)


def compare_times(queries: Tensor, bank: Tensor, labels: Tensor, repeats: int) -> list[dict]:
    ours = partial(knn_predict, queries, bank, labels)
    seconds = measure({'product': partial(product, queries, bank), 'ours': ours}, repeats)
    work = 2e-9 * len(queries) * bank.numel()
    columns = ('candidate', 'time (s)', 'x product', 'product alone (GFLOP/s)')
    rows = [(name, s, s / seconds['product'], work / s) for name, s in seconds.items()]
    return make_rows(columns, rows)


def measure_memory(queries: Tensor, bank: Tensor, labels: Tensor, repeats: int) -> list[dict]:
    def peak_gb() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    # Libraries and thread pools are loaded before the measurement.
    knn_predict(queries[:64], bank[:512], labels[:512])
    size = (bank.numel() + queries.numel()) * 4 / 2**30
    before, began = peak_gb(), time.perf_counter()
    knn_predict(queries, bank, labels)
    row = (size, peak_gb() - before, time.perf_counter() - began)
    return make_rows(('features (GB)', 'beyond (GB)', 'time (s)'), [row])


def main() -> None:
    args = parse_args(__doc__, bank=1_281_167, queries=512, dims=384, memory=False, repeats=7)
    features = make_features(args.bank, args.queries, args.dims)
    rows = (measure_memory if args.memory else compare_times)(*features, args.repeats)
    settings = {} if args.memory else dict(repeats=args.repeats, goal='ours <= 1.3 x product')
    report('kNN', rows, bank=args.bank, queries=args.queries, dims=args.dims, **settings)


if __name__ == '__main__':
    main()
