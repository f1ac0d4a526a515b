"""Which troubles of a run are pointed out, on runs that go well and runs that cannot.

    python benchmarks/health_runs.py --epochs 16

Each run is the digits recipe with a smaller network (benchmarks/configs/health_digits.py) and one
change. The table says what is known at the end and what was pointed out, when. The thresholds of
mmpatchmix/evaluation/health.py were chosen looking at these runs, and docs/health.md shows them.
"""

import json
import tempfile
from pathlib import Path

from harness import parse_args, report
from mmengine.config import Config
from mmengine.runner import Runner

from mmpatchmix.cli.arguments import set_epochs
from mmpatchmix.report.run_record import read_scalars

CONFIG = Path(__file__).parent / 'configs/health_digits.py'
LR, MOMENTUM = 'optim_wrapper.optimizer.lr', 'default_hooks.momentum'
RESIZE = {'type': 'mmpretrain.ResizeEdge'}
RUNS = {
    'as it is': {},
    'no momentum encoder': {'model.momentum_encoder': None},
    'momentum 0': {f'{MOMENTUM}.momentum': 0.0, f'{MOMENTUM}.end_momentum': 0.0},
    'lr x 10': {LR: 3e-2},
    'lr x 100': {LR: 3e-1},
    'lr x 1/1000': {LR: 3e-6},
    'temperature 50': {'model.head.temperature': 50.0},
    'images that are slow to read': {
        'train_dataloader.num_workers': 1,
        'train_dataloader.dataset.pipeline': [RESIZE | {'scale': 2400}, RESIZE | {'scale': 32}],
    },
}
COLUMNS = ('kl', 'kl_source', 'health/rankme', 'health/lidar', 'health/data_share')


def run(name: str, changes: dict, epochs: int, folder: str) -> dict:
    """Train, and read what was logged."""
    cfg = Config.fromfile(CONFIG)
    set_epochs(cfg, epochs)
    cfg.default_hooks.pop('report')
    changes = dict(changes)
    first = changes.pop('train_dataloader.dataset.pipeline', [])
    cfg.train_dataloader.dataset.pipeline = [*first, *cfg.train_dataloader.dataset.pipeline]
    cfg.merge_from_dict(changes)
    cfg.work_dir = str(Path(folder, name.replace('/', '-')))
    cfg.experiment_name = name
    cfg.log_level = 'ERROR'
    Runner.from_cfg(cfg).train()
    training, validation = read_scalars(cfg.work_dir)
    last = {key: value for record in training for key, value in record.items()}
    told = [
        json.loads(line)
        for path in Path(cfg.work_dir).glob('*/vis_data/health.jsonl')
        for line in path.read_text().splitlines()
    ]
    row = {'run': name} | {column.removeprefix('health/'): last[column] for column in COLUMNS}
    row['kNN'] = validation[-1]['knn/top1']
    row['told'] = ', '.join(f'{each["name"]} ({each["iter"]})' for each in told) or 'nothing'
    return row


def main() -> None:
    args = parse_args(__doc__, repeats=1, epochs=16, only='')
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, changes in RUNS.items():
            if args.only not in name:
                continue
            rows.append(run(name, changes, args.epochs, folder))
            print(rows[-1], flush=True)
    report('troubles of runs', rows, epochs=args.epochs, iterations=22 * args.epochs)


if __name__ == '__main__':
    main()
