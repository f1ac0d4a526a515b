"""Peak memory of a training step, by batch, crops, images per mix and what saves memory.

    python benchmarks/memory.py

Every row is one warm-up step and the peak of a second one. On a CPU it is a process of its own, and
its growth over what it held before its first step (model, optimizer and libraries are in that). On
a GPU it is what tensors took at most beyond the model, with 16 times the images (`--batch`) and in
bfloat16 where the CPU's rows are float32. Growth must be linear in the batch and must not depend on
the number of images per mix.
"""

import gc
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from harness import keep_memory_as_training_does, parse_args, report
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from mmpatchmix.registry import MODELS

CONFIG = Path(__file__).parents[1] / 'configs/patchmix_vit-s_in1k.py'
MIB = 2**20
# batch, crops, images per mix, activation checkpointing, micro-batch, precision
ROWS = [
    (4, 2, 2, False, None, 'fp32'),
    (8, 2, 2, False, None, 'fp32'),
    (16, 2, 2, False, None, 'fp32'),
    (8, 2, 3, False, None, 'fp32'),
    (8, 2, 4, False, None, 'fp32'),
    (8, 2, 8, False, None, 'fp32'),
    (8, 2, 2, False, None, 'bf16'),
    (8, 2, 2, True, None, 'fp32'),
    (16, 2, 2, True, None, 'fp32'),
    (16, 2, 2, False, 4, 'fp32'),
    (32, 2, 2, False, 4, 'fp32'),
    (8, 10, 2, False, None, 'fp32'),
    (8, 10, 2, True, None, 'fp32'),
    (16, 10, 2, False, 4, 'fp32'),
]


def peak() -> int:
    """Return the peak memory so far, in bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_here(batch, crops, num_mix, with_cp, micro_batch, precision) -> int:
    """Return the bytes that two training steps need beyond what was held before them."""
    keep_memory_as_training_does()
    torch.manual_seed(0)
    cfg = Config.fromfile(CONFIG)
    cfg.model.data_preprocessor.num_mix = num_mix
    cfg.model.backbone.with_cp = with_cp
    cfg.model.micro_batch_size = micro_batch
    cfg.optim_wrapper.enabled = precision == 'bf16'
    model = MODELS.build(cfg.model).train()
    if torch.cuda.is_available():
        model.cuda()
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    before = torch.cuda.memory_allocated() if torch.cuda.is_available() else peak()
    for _ in range(2):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        inputs = {
            name: torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8)
            for name in ('view_1', 'view_2')
        }
        if crops > 2:
            shape = (batch, crops - 2, 3, 96, 96)
            inputs['local_views'] = torch.randint(0, 256, shape, dtype=torch.uint8)
        model.update_momentum_encoder(0.996)
        model.train_step({'inputs': inputs, 'data_samples': None}, optimizer)
    return peak() - before


def measure_apart(row: tuple) -> int:
    """Measure in a fresh process, whose peak nothing has raised before."""
    command = [sys.executable, __file__, '--row', json.dumps(row)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'row {row} failed:\n{done.stderr}')
    return int(done.stdout.splitlines()[-1])


def make_rows(batch: int) -> list[tuple]:
    """Return the rows for a GPU: as many times the images, in the precision of the recipes."""
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
    names = ('batch', 'crops', 'images per mix', 'checkpointing', 'micro-batch', 'precision')
    rows = []
    on_terminal, on_gpu = sys.stderr.isatty(), torch.cuda.is_available()
    todo = make_rows(args.batch) if on_gpu else ROWS
    for number, row in enumerate(todo, 1):
        if on_terminal:
            print(f'\r{number} of {len(todo)} ...', end='', file=sys.stderr, flush=True)
        used = measure_here(*row) if on_gpu else measure_apart(row)
        gc.collect()  # models are cycles
        cells = ['yes' if cell is True else '' if cell is False else cell for cell in row]
        rows.append(
            dict(zip(names, cells, strict=True))
            | {'peak (MiB)': round(used / MIB), 'MiB per image': round(used / MIB / row[0])}
        )
    if on_terminal:
        print(file=sys.stderr)
    report('memory of a step, ViT-S/16', rows)


if __name__ == '__main__':
    main()
