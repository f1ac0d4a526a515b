"""Peak memory of a training step, by batch, crops, images per mix and memory-saving options.

    python benchmarks/memory.py

On a CPU it is the growth of a new process beyond model, optimizer and libraries; on a GPU the peak
of allocated tensors beyond the model, with more images (`--batch`) and in bfloat16. Growth must be
linear in the batch and must not depend on the number of images per mix.
"""

import gc
import json
import resource
import sys

import torch
from harness import CONFIGS, DEVICE, MOMENTUM, make_rows, measure_apart, parse_args, report, set_up
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from step import make_batch

from mmpatchmix.registry import MODELS

COLUMNS = ('batch', 'crops', 'images per mix', 'checkpointing', 'micro-batch', 'precision')
ROWS = [
    *((batch, 2, 2, False, None, 'fp32') for batch in (4, 8, 16)),
    *((8, 2, num_mix, False, None, 'fp32') for num_mix in (3, 4, 8)),
    (8, 2, 2, False, None, 'bf16'),
    (8, 2, 2, True, None, 'fp32'),
    (16, 2, 2, True, None, 'fp32'),
    (16, 2, 2, False, 4, 'fp32'),
    (32, 2, 2, False, 4, 'fp32'),
    (8, 10, 2, False, None, 'fp32'),
    (8, 10, 2, True, None, 'fp32'),
    (16, 10, 2, False, 4, 'fp32'),
]


def measure_here(batch, crops, num_mix, with_cp, micro_batch, precision) -> int:
    """Return the bytes that two training steps need beyond the memory in use before them."""
    set_up()
    on_gpu = DEVICE == 'cuda'
    cfg = Config.fromfile(CONFIGS / 'patchmix_vit-s_in1k.py')
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.model.backbone.with_cp = with_cp
    cfg.model.micro_batch_size = micro_batch
    cfg.optim_wrapper.enabled = precision == 'bf16'
    model = MODELS.build(cfg.model).train().to(DEVICE)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    before = torch.cuda.memory_allocated() if on_gpu else read_peak()
    for _ in range(2):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        model.update_momentum_encoder(MOMENTUM)
        model.train_step(make_batch(batch, crops - 2), optimizer)
    peak = torch.cuda.max_memory_allocated() if on_gpu else read_peak()
    return peak - before


def read_peak() -> int:
    """Return the peak memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_gpu_rows(batch: int) -> list[tuple]:
    """Return the rows with more images, in the precision of the recipes."""
    times = batch // 8
    rows = [
        (times * row[0], *row[1:4], row[4] and times * row[4], 'bf16')
        for row in ROWS
        if row[5] == 'fp32'
    ]
    return [*rows, (times * 8, 2, 2, False, None, 'fp32')]


def main() -> None:
    args = parse_args(__doc__, row='', batch=128)
    if args.row:
        print(measure_here(*json.loads(args.row)))
        return
    on_gpu, rows = DEVICE == 'cuda', []
    for row in make_gpu_rows(args.batch) if on_gpu else ROWS:
        print(dict(zip(COLUMNS, row, strict=True)), file=sys.stderr, flush=True)
        used = measure_here(*row) if on_gpu else measure_apart('--row', json.dumps(row))
        gc.collect()  # models are reference cycles
        cells = ('yes' if cell is True else cell or '' for cell in row)
        mib = used / 2**20
        rows.append((*cells, round(mib), round(mib / row[0])))
    rows = make_rows((*COLUMNS, 'peak (MiB)', 'MiB per image'), rows)
    report('memory of a step, ViT-S/16', rows)


if __name__ == '__main__':
    main()
