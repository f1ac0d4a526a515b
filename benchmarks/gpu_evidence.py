"""Compare M = 1 and M = 2 over hundreds of epochs on a GPU, in at most nine minutes.

    make gpu-evidence DATA=PATH             # again for what is left

PATH is the one file that is needed, cifar10.tar.gz or cifar100.tar.gz: train/CLASS/*.jpg and
test/CLASS/*.jpg. ViT-T/4, 10,000 images on the device, batches of 256, bfloat16, compiled; full
augmentation, then crops only. The number of epochs is the largest that fits, the same for all runs.
Each run appends a line to benchmarks/results/gpu_evidence.jsonl.
"""

import sys
import time
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from harness import CONFIGS, make_parser, report, set_up, synchronize
from map_data import SIDE, Part, read_photographs, to_part
from map_run import Setting, build_model, classify_by_neighbours, encode, train
from mmengine.config import Config
from runs import HERE, append_result, read_results

RESULTS = HERE / 'results/gpu_evidence.jsonl'
CONFIG = CONFIGS / 'patchmix_vit-t_cifar10.py'
RUNS = [(level, num_mix) for level in ('full', 'crops') for num_mix in (1, 2)]
BATCH, EVERY = 256, 10  # images, epochs between evaluations
PROBE = 40  # steps that are timed, after as many that compile


def build_config(level: str, num_mix: int, args) -> dict:
    """Return the config of the model: that of the ViT-T recipe, with patches of 4 pixels."""
    model = Config.fromfile(CONFIG).model
    model.backbone.update(img_size=SIDE, patch_size=4)
    model.backbone.arch.update(embed_dims=args.width, feedforward_channels=4 * args.width)
    model.data_preprocessor.update(patch_size=4, num_mix=num_mix)
    if level == 'crops':
        model.data_preprocessor.augment = dict()
    model.compile = args.device == 'cuda'
    return model.to_dict()


def run(setting: Setting, bank: Part, queries: Part | None, args) -> list | float:
    """Train; return the curve of kNN, or of a probe without queries the seconds of a step."""
    torch.compiler.reset()  # the graphs of another model
    config = build_config(setting.level, setting.num_mix, args)
    model = build_model(config, bank.images, setting.seed).to(args.device).train()
    autocast = partial(torch.autocast, args.device, torch.bfloat16, enabled=args.device == 'cuda')
    per_epoch, curve, began = len(bank.labels) // BATCH, [], 0.0
    for step in train(model, bank.images, setting, autocast):
        if step == setting.steps - PROBE:
            synchronize()
            began = time.monotonic()
        if queries and (step % (EVERY * per_epoch) == 0 or step == setting.steps):
            with autocast():
                knn = classify_by_neighbours(encode(model, bank), encode(model, queries))
            curve.append((step // per_epoch, knn))
            print(f'    epoch {curve[-1][0]}: kNN {knn:.1f}', flush=True)
    synchronize()
    return curve if queries else (time.monotonic() - began) / PROBE


def compare(args) -> None:
    """Do the runs that the results do not hold."""
    began = time.monotonic()
    set_up()
    data = args.data.name.split('.')[0]
    arrays = read_photographs(args.data)
    train_part, test_part = (
        to_part(arrays[f'{split}_images'][:num], arrays[f'{split}_labels'][:num])
        for split, num in (('train', args.images), ('test', args.images))
    )
    bank, queries = (p._replace(images=p.images.to(args.device)) for p in (train_part, test_part))
    same = dict(data=data, images=args.images, width=args.width, device=args.device)
    lines = [line for line in read_results(args.results) if same.items() <= line.items()]
    done = {(line['level'], line['num_mix']) for line in lines}
    todo = [which for which in RUNS if which not in done]
    setting = partial(Setting, data, seed=0, batch=BATCH, lr=5e-4)  # 2e-3 per 256 images
    seconds = run(setting(*RUNS[0], steps=2 * PROBE), bank, None, args)
    per_epoch = len(bank.labels) // BATCH
    end = began + 60 * args.minutes
    # A fifth is left for evaluations, and for graphs that are compiled again.
    fit = (end - time.monotonic()) / (1.25 * max(1, len(todo)) * per_epoch * seconds)
    epochs = lines[0]['epochs'] if lines else max(EVERY, int(fit) // EVERY * EVERY)
    print(f'{1000 * seconds:.1f} ms a step: {epochs} epochs, {len(todo)} runs to do', flush=True)
    for level, num_mix in todo:
        print(f'{data}, {level}, M = {num_mix}', flush=True)
        one = setting(level, num_mix, steps=epochs * per_epoch)
        if lines and end - time.monotonic() < one.steps * seconds:
            sys.exit('No time is left for the run: repeat the command.')
        curve = run(one, bank, queries, args)
        line = same | dict(level=level, num_mix=num_mix, epochs=epochs, step_seconds=seconds)
        append_result(args.results, line | dict(curve=curve))
        with args.results.with_suffix('.txt').open('w') as file, redirect_stdout(file):
            report('M = 1 and M = 2', tabulate(read_results(args.results)), batch=BATCH)


def tabulate(lines: list[dict]) -> list[dict]:
    """Return a row of the table for each run: kNN at the start, at each quarter, and at the end."""
    names = ('data', 'level', 'num_mix', 'images', 'epochs')
    return [
        {name: line[name] for name in names}
        | {f'{25 * n} %': line['curve'][(len(line['curve']) - 1) * n // 4][1] for n in range(5)}
        for line in lines
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--data', type=Path, required=True, help='cifar10.tar.gz, cifar100.tar.gz')
    parser.add_argument('--minutes', type=float, default=8.5, help='time limit of all runs')
    parser.add_argument('--images', type=int, default=10_000)
    parser.add_argument('--width', type=int, default=192, help='of the ViT, in 3 heads')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        print(f'There is no GPU that torch {torch.__version__} can use: nothing to measure here.')
    else:
        compare(args)


if __name__ == '__main__':
    main()
