"""What the figures of a run's health and the online probe take, beside a training step.

    python benchmarks/health.py --batch 8

Measured are the step of ViT-S/16 with 2 crops (step.py: "ours"), and what the hooks add to it:

- each iteration: mean similarities of queries and keys, remembering the features, a step of the
  probe (labels of 1,000 classes read off the data samples);
- about a hundred times a run: RankMe, LiDAR and the spread of features of 1,024 images.

The last column is the share of a step, of a run of 10,000 iterations, 100 of which look at the
features. The norm of all gradients and the gaps of the terms were computed before there was a hook.
"""

import torch
from harness import choose_precision, keep_memory_as_training_does, measure, parse_args, report
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample
from step import OurStep, prepare, workers_batch

from mmpatchmix.evaluation import HealthHook, OnlineProbeHook
from mmpatchmix.evaluation.features import TrainingFeatures
from mmpatchmix.evaluation.health import NUM_LOOKS, measure_features

NUM_ITERS = 10_000


class Remembered(TrainingFeatures):
    """The features of one step, as often as they are asked for."""

    def __init__(self, groups: list[torch.Tensor], model: torch.nn.Module) -> None:
        super().__init__(model)
        self.groups = groups

    def take(self) -> torch.Tensor | None:
        """Return them as a step leaves them."""
        self._groups = list(self.groups)
        return super().take()


def main() -> None:
    args = parse_args(__doc__, batch=8, precision='auto')
    precision = choose_precision(args.precision)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    torch.set_default_device(device)

    def autocast():
        return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == 'bf16')

    ours = OurStep()
    inputs = prepare(ours.model, workers_batch(args.batch, 0))
    width = ours.model.backbone.embed_dims
    groups = [torch.randn(args.batch, width) for _ in range(3)]
    health, probe = HealthHook(), OnlineProbeHook()
    health._features = probe._features = Remembered(groups, ours.model)
    probe._num_classes = 1000
    samples = [DataSample().set_gt_label(index) for index in range(args.batch)]
    queries, keys = (torch.randn(args.batch, 256) for _ in range(2))
    pairs = torch.randn(health.num_images, 2, width)
    torch.set_default_device(None)  # as in training
    seconds = measure(
        {
            'step': lambda: ours.step(inputs, autocast),
            'similarities': lambda: ours.model.head.measure_similarity(queries, keys),
            'features remembered': health._remember,
            'probe': lambda: probe.after_train_iter(None, 0, dict(data_samples=samples)),
            'RankMe, LiDAR, spread': lambda: measure_features(pairs.cpu()),
        },
        args.repeats,
    )
    often = {'RankMe, LiDAR, spread': NUM_LOOKS / NUM_ITERS}
    rows = [
        {
            'what': name,
            'ms': 1000 * value,
            'of a step, in %': 100 * value * often.get(name, 1) / seconds['step'],
        }
        for name, value in seconds.items()
    ]
    hooks = sum(row['of a step, in %'] for row in rows[1:])
    rows.append({'what': 'all but the step', 'ms': None, 'of a step, in %': hooks})
    report('health of a run', rows, repeats=args.repeats, batch=args.batch, precision=precision)


if __name__ == '__main__':
    main()
