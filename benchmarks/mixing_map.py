"""Measure where mixing pays: one small ViT, M = 1 (MoCo v3) to 4 images per mix.

    python benchmarks/mixing_map.py --list
    python benchmarks/mixing_map.py --data PATH --plan A-digits --threads 1
    python benchmarks/mixing_map.py --data PATH          # all plans, the most important runs first

A: augmentation (none, crops, crops and flips, full) on digits, CIFAR-10, CIFAR-10 as five bands,
and chest X-rays; A-rates: some at the same learning rates. B: length, on few images. C: batch
size. D: terms of the loss, temperatures, other mixings. E: networks without training. PATH holds
cifar10.tar.gz (train/CLASS/*.jpg, test/CLASS/*.jpg) and MedMNIST's pneumoniamnist.npz; the digits
need neither. Each run appends a line to benchmarks/results/map.jsonl; lines with the same setting
are not run again. The learning rate is tuned for M = 1 and M = 2 alike.
"""

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cache
from itertools import chain
from pathlib import Path

import torch
from evidence_tables import BATCHES, BOTH_RATES, FEW_IMAGES, LEVELS, best_rate
from harness import make_parser, set_up
from map_data import LOADERS, RATES, STEPS
from map_run import CHANGES, Setting, build_config, run
from runs import HERE, append_result, read_results

RESULTS = HERE / 'results/map.jsonl'
SEEDS = dict(digits=range(5), cifar10=range(3), bands=range(3), chest=range(3))
FIVE_SEEDS = dict(data='bands', level='full')
LARGEST = ('digits', 'none', 4)  # images, augmentation and M of part D


def tuning(data: str, level: str) -> list[Setting]:
    """Return the runs that choose the learning rate, a third as long."""
    common = dict(data=data, level=level, seed=0, steps=STEPS[data] // 3, is_tuning=True)
    return [Setting(**common, num_mix=m, lr=lr) for lr in RATES for m in (1, 2)]


def compare(data: str, level: str, num_mixes=(1, 2), **changes) -> list[Setting]:
    """Return the runs of an augmentation, all M of a seed before the next seed."""
    common = dict(data=data, level=level, steps=STEPS[data]) | changes
    finetunes = data != 'digits' and level == 'none' and num_mixes == (1, 2) and not changes
    return tuning(data, level) + [
        Setting(**common, num_mix=m, seed=seed, finetunes=finetunes)
        for seed in SEEDS[data]
        for m in num_mixes
    ]


def join(lists: Iterable[list[Setting]]) -> list[Setting]:
    """Return the runs of all lists, each once."""
    return list(dict.fromkeys(chain.from_iterable(lists)))


def more(data: str) -> list[Setting]:
    """Return the runs of larger M and of unequal shares."""
    larger = join(compare(data, level, (3, 4)) for level in LEVELS)
    return larger + join(compare(data, level, (2, 3), alpha=1.0) for level in LEVELS)


data, level, num_mix = LARGEST
PHOTOS = ('cifar10', 'bands', 'chest')
PLANS = {
    'A-digits': compare('digits', 'none', (1, 2, 3, 4))
    + join(compare('digits', level) for level in LEVELS[1:]),
    'A-none': join(compare(name, 'none') for name in PHOTOS),
    'E': [
        Setting(name, 'none', 1, seed, 0, lr=0.0, finetunes=True)
        for name in PHOTOS
        for seed in SEEDS[name]
    ],
    'D': join(compare(data, level, (num_mix,), change=name) for name in CHANGES),
    'A-rates': [
        Setting(
            **where,
            num_mix=m,
            seed=seed,
            steps=STEPS[where['data']],
            finetunes=where['level'] == 'none',
        )
        for where in BOTH_RATES.values()
        for seed in (range(5) if FIVE_SEEDS.items() <= where.items() else SEEDS[where['data']])
        for m in (1, 2)
    ],
    'C': join(compare('cifar10', 'full', batch=b, steps=192_000 // b) for b in BATCHES),
    'B': join(
        compare('cifar10', 'full', images=images, steps=steps)
        for images, steps in FEW_IMAGES.items()
    ),
    **{f'A-{name}': join(compare(name, level) for level in LEVELS) for name in PHOTOS},
    'A-more': join(more(name) for name in ('digits', *PHOTOS)),
}


def choose_rate(setting: Setting, lines: list[dict]) -> Setting:
    """Return the setting with the best rate of the runs that tune it, if they are done."""
    if setting.lr is not None:
        return setting
    return replace(setting, lr=best_rate(lines, setting.data, setting.level, setting.num_mix))


def digest(setting: Setting) -> str:
    """Hash a setting and the model that it makes."""
    text = json.dumps([asdict(setting), build_config(setting)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def work(args) -> None:
    """Do the runs of the plans that the results do not hold."""
    set_up()
    load = cache(lambda name: LOADERS[name](args.data))
    settings = join(PLANS[plan] for plan in args.plan)
    pace = None  # seconds of an encoded view
    for number, setting in enumerate(settings, 1):
        lines = read_results(args.results)
        setting = choose_rate(setting, lines)
        done = setting.lr is not None and digest(setting) in {line['config'] for line in lines}
        title = f'{number} of {len(settings)}: {setting}'
        if args.list or done:
            print('done ' if done else 'to do', title)
            continue
        left = sum(each.steps * each.batch for each in settings[number - 1 :])
        eta = f', {left * pace / 3600:.1f} h for all that is left' if pace else ''
        print(f'{time.strftime("%H:%M:%S")} {title}{eta}', flush=True)
        began = time.monotonic()
        found = run(setting, load(setting.data))
        append_result(args.results, asdict(setting) | dict(config=digest(setting)) | found)
        if setting.steps:
            pace = (time.monotonic() - began) / (setting.steps * setting.batch)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('--plan', nargs='+', choices=PLANS, metavar='PLAN', default=[*PLANS])
    parser.add_argument('--data', type=Path, help='folder of the two files')
    parser.add_argument('--list', action='store_true', help='list the runs and their state')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--results', type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work(args)


if __name__ == '__main__':
    main()
