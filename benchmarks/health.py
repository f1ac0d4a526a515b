"""Cost of the health figures and the online probe; the warnings on good and on bad runs.

    python benchmarks/health.py --batch 8
    python benchmarks/health.py --table runs --epochs 16

cost: a step of ViT-S/16 with 2 crops and the additions of the hooks to it; the last column is the
share of a step, of a run of 10,000 iterations. runs: the digits recipe with a smaller network and
one change each. docs/health.md shows the results; the thresholds were chosen on these runs.
"""

import json
import tempfile
from pathlib import Path

import torch
from harness import DEVICE, make_rows, measure, parse_args, report, set_up
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.structures import DataSample
from step import OurStep, make_batch

from mmpatchmix.cli.arguments import set_epochs
from mmpatchmix.evaluation import HealthHook, OnlineProbeHook
from mmpatchmix.evaluation.features import TrainingFeatures
from mmpatchmix.evaluation.health import NUM_MEASUREMENTS, measure_features
from mmpatchmix.report.run_record import read_scalars

NUM_ITERS = 10_000
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
COLUMNS = ('kl', 'kl_source', 'health/rank_me', 'health/lidar', 'health/data_share')


def measure_cost(args) -> None:
    """Print the table of the costs."""
    autocast, precision = set_up(args.precision)
    torch.set_default_device(DEVICE)
    ours = OurStep()
    inputs = ours.prepare(make_batch(args.batch, 0))
    width = ours.model.backbone.embed_dims
    groups = [torch.randn(args.batch, width) for _ in range(3)]
    features = TrainingFeatures(ours.model)

    def take() -> torch.Tensor | None:
        features._groups = list(groups)  # as after a step
        return TrainingFeatures.take(features)

    features.take = take
    health, probe = HealthHook(), OnlineProbeHook()
    health._features = probe._features = features
    probe._num_classes = 1000
    samples = [DataSample().set_gt_label(index) for index in range(args.batch)]
    queries, keys = (torch.randn(args.batch, 256) for _ in range(2))
    pairs = torch.randn(health.num_images, 2, width)
    torch.set_default_device(None)  # as in training
    candidates = {
        'step': lambda: ours.step(inputs, autocast),
        'similarities': lambda: ours.model.head.measure_similarity(queries, keys),
        'features remembered': health._remember,
        'probe': lambda: probe.after_train_iter(None, 0, dict(data_samples=samples)),
        'RankMe, LiDAR, spread': lambda: measure_features(pairs.cpu()),
    }
    seconds = measure(candidates, args.repeats)
    often = {'RankMe, LiDAR, spread': NUM_MEASUREMENTS / NUM_ITERS}
    rows = [
        (name, 1000 * value, 100 * value * often.get(name, 1) / seconds['step'])
        for name, value in seconds.items()
    ]
    rows.append(('all but the step', None, sum(percent for *_, percent in rows[1:])))
    rows = make_rows(('what', 'ms', 'of a step, in %'), rows)
    report('health of a run', rows, repeats=args.repeats, batch=args.batch, precision=precision)


def train(name: str, changes: dict, epochs: int, folder: str) -> dict:
    """Train a run with its changes; return the last figures and the warnings."""
    cfg = Config.fromfile(CONFIG)
    set_epochs(cfg, epochs)
    cfg.default_hooks.pop('report')
    pipeline = 'train_dataloader.dataset.pipeline'
    if pipeline in changes:
        changes = changes | {pipeline: changes[pipeline] + cfg.train_dataloader.dataset.pipeline}
    cfg.merge_from_dict(changes)
    cfg.work_dir = str(Path(folder, name.replace('/', '-')))
    cfg.experiment_name = name
    cfg.log_level = 'ERROR'
    Runner.from_cfg(cfg).train()
    training, validation = read_scalars(cfg.work_dir)
    last = {key: value for record in training for key, value in record.items()}
    files = Path(cfg.work_dir).glob('*/vis_data/health.jsonl')
    told = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    row = {'run': name} | {column.removeprefix('health/'): last[column] for column in COLUMNS}
    row['kNN'] = validation[-1]['knn/top1']
    return row | {'told': ', '.join(f'{e["name"]} ({e["iter"]})' for e in told) or 'nothing'}


def main() -> None:
    args = parse_args(
        __doc__, table=('cost', 'runs'), batch=8, precision=('auto', 'fp32', 'bf16'), epochs=16
    )
    if args.table == 'cost':
        measure_cost(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = [train(name, changes, args.epochs, folder) for name, changes in RUNS.items()]
    report('troubles of runs', rows, epochs=args.epochs, iterations=22 * args.epochs)


if __name__ == '__main__':
    main()
