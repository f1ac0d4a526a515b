"""A training step on CPU cores with and without keeping freed memory (`keep_freed_memory`).

    python benchmarks/freed_memory.py

Every figure is from a process of its own, since glibc's settings cannot be taken back: the two
take turns, and medians over their processes are reported. Page faults are the pages of 4 KiB that
the system cleared and handed out during a step.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
from harness import choose_precision, parse_args, report
from mmengine.logging import MMLogger
from step import OurStep, workers_batch

from mmpatchmix.cli.verb import USERS_OWN_SETTINGS, keep_freed_memory

WARMUP, STEPS = 2, 5
SETTINGS = {'as glibc has it': '', 'kept, as training does': 'keep'}


def measure_here(keep: bool, batch: int, crops: int) -> dict[str, float]:
    """Return the median seconds of a step, and its page faults, in this process."""
    if keep:
        keep_freed_memory()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    torch.manual_seed(0)
    ours = OurStep()
    inputs = ours.model.data_preprocessor(workers_batch(batch, crops - 2), training=True)['inputs']
    is_bf16 = choose_precision('auto') == 'bf16'

    def autocast():
        return torch.autocast('cpu', dtype=torch.bfloat16, enabled=is_bf16)

    seconds, faults = [], []
    for _ in range(WARMUP + STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        began = time.perf_counter()
        ours.step(inputs, autocast)
        seconds.append(time.perf_counter() - began)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return {
        's': statistics.median(seconds[WARMUP:]),
        'page faults': statistics.median(faults[WARMUP:]),
        'peak of the process (MiB)': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measure_apart(setting: str, args) -> dict[str, float]:
    """Measure in a fresh process, without settings of the user's."""
    command = [sys.executable, __file__, '--child', setting or 'default']
    command += ['--batch', str(args.batch), '--crops', str(args.crops)]
    env = {name: value for name, value in os.environ.items() if name not in USERS_OWN_SETTINGS}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    args = parse_args(__doc__, repeats=7, batch=8, crops=2, child='')
    if args.child:
        print(json.dumps(measure_here(args.child == 'keep', args.batch, args.crops)))
        return
    if platform.libc_ver()[0] != 'glibc':
        print('this system has no glibc, whose settings are compared here')
        return
    found = {name: [] for name in SETTINGS}
    for _ in range(args.repeats):
        for name, setting in SETTINGS.items():
            found[name].append(measure_apart(setting, args))
    rows = [
        {'freed memory': name}
        | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        for name, runs in found.items()
    ]
    for row in rows:
        row['of the first'] = row['s'] / rows[0]['s']
    settings = dict(batch=args.batch, crops=args.crops, precision=choose_precision('auto'))
    report('keeping freed memory', rows, repeats=args.repeats, **settings)


if __name__ == '__main__':
    main()
