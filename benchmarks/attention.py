"""Torch's fused attention beside two plain products, by type, length and number of queries.

    python benchmarks/attention.py

The rule of `mmpatchmix.models.vit_blocks.attend` comes from here. Per image and block of a ViT:
width 384 with 12 heads at 37 (96 pixels), 197 (224) and 257 (CIFAR) tokens, and larger ones;
one query is the last block, which encodes the class token alone.
"""

import torch
from harness import keep_memory_as_training_does, measure, parse_args, report
from torch import Tensor
from torch.nn import functional as F

NUM_IMAGES = 8
SIZES = [(12, 37, 32), (12, 197, 32), (3, 257, 64), (12, 257, 32), (12, 577, 32), (12, 1025, 64)]


def plain(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return weights.softmax(-1) @ value


def compare(dtype: torch.dtype, size: tuple, num_queries: int, repeats: int) -> dict:
    heads, tokens, dims = size
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    options = dict(dtype=dtype, device=device, requires_grad=True)
    query = torch.randn(NUM_IMAGES, heads, num_queries, dims, **options)
    key, value = (torch.randn(NUM_IMAGES, heads, tokens, dims, **options) for _ in range(2))

    def forward(attention):
        with torch.no_grad():
            attention(query, key, value)

    def both(attention):
        attention(query, key, value).sum().backward()

    seconds = measure(
        {
            'fused forward': lambda: forward(F.scaled_dot_product_attention),
            'plain forward': lambda: forward(plain),
            'fused both': lambda: both(F.scaled_dot_product_attention),
            'plain both': lambda: both(plain),
        },
        repeats,
    )
    row = {'type': str(dtype)[6:], 'heads': heads, 'keys': tokens, 'queries': num_queries}
    row |= {f'{name} (ms)': 1e3 * value for name, value in seconds.items()}
    row['plain / fused, forward'] = seconds['plain forward'] / seconds['fused forward']
    row['plain / fused, both'] = seconds['plain both'] / seconds['fused both']
    return row


def main() -> None:
    args = parse_args(__doc__, repeats=9)
    keep_memory_as_training_does()
    rows = [
        compare(dtype, size, num_queries, args.repeats)
        for dtype in (torch.bfloat16, torch.float32)
        for size in SIZES
        for num_queries in (size[1], 1)
    ]
    report('attention', rows, repeats=args.repeats, images=NUM_IMAGES)


if __name__ == '__main__':
    main()
