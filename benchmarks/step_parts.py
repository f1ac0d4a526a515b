"""Where the time of a training step goes, part by part, beside the same parts of the floor.

    python benchmarks/step_parts.py --batch 8

The step is `step.py`'s with 2 crops, taken apart by hand, so that each part has a clock of
its own; medians over the rounds.
"""

import statistics
import time
from contextlib import contextmanager, nullcontext

import torch
from harness import choose_precision, keep_memory_as_training_does, parse_args, report
from mmengine.logging import MMLogger
from step import MOMENTUM, OurStep, prepare, workers_batch

from mmpatchmix.models.contrastive_head import Pair


class Clock:
    """Seconds by part, in the order in which they first came."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def part(self, name: str):
        began = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.setdefault(name, []).append(time.perf_counter() - began)


def take_step(ours: OurStep, inputs: dict, autocast, clock: Clock) -> None:
    """Time one step of ours, part by part."""
    model, size = ours.model, len(inputs['view_1'])
    slow = model.momentum_encoder
    with clock.part('momentum update'):
        model.update_momentum_encoder(MOMENTUM)
    with autocast():
        with torch.no_grad():
            with clock.part('keys: backbone'):
                names = ('view_1', 'view_2', 'mixed_view_1')
                features = slow.backbone(torch.cat([inputs[name] for name in names]))[-1]
            with clock.part('keys: projector'):
                k = model.head.gather([slow.neck((part,))[0] for part in features.split(size)])
        with clock.part('queries: backbone'):
            views = torch.cat([inputs['view_1'], inputs['mixed_view_2']])
            features = model.backbone(views)[-1]
        with clock.part('queries: projector, predictor'):
            q = [model.head.predict(model.neck((part,))[0]) for part in features.split(size)]
        with clock.part('losses'):
            pairs = [
                Pair(q[0], k[1]),
                Pair(q[1], k[0], inputs['mix_to_source']),
                Pair(q[1], k[2], inputs['mix_to_mix']),
            ]
            source, mix_source, mix_mix = model.head.contrast(pairs).loss
            loss = source + 0.5 * mix_source + 0.5 * mix_mix
    with clock.part('backward'):
        loss.backward()
    with clock.part('AdamW'):
        ours.optimizer.step()
    with clock.part('freeing gradients'):
        ours.optimizer.zero_grad()


def take_floor(backbone, pair: list, autocast, clock: Clock) -> None:
    """Time the floor, part by part."""
    with autocast():
        with clock.part('queries: backbone'):
            total = backbone(torch.cat(pair))[-1].sum()
        with clock.part('backward'):
            total.backward()
        with torch.no_grad(), clock.part('keys: backbone'):
            backbone(torch.cat([*pair, pair[0]]))
    with clock.part('freeing gradients'):
        backbone.zero_grad()


def main() -> None:
    args = parse_args(__doc__, batch=8, precision='auto')
    args.precision = choose_precision(args.precision)
    keep_memory_as_training_does()
    MMLogger.get_instance('benchmark', log_level='WARNING')
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    torch.set_default_device(device)

    def autocast():
        is_bf16 = args.precision == 'bf16'
        return torch.autocast(device, dtype=torch.bfloat16) if is_bf16 else nullcontext()

    ours = OurStep()
    batch = workers_batch(args.batch, 0)
    inputs = prepare(ours.model, batch)
    pair = [torch.randn(args.batch, 3, 224, 224) for _ in range(2)]
    torch.set_default_device(None)  # as in training
    step_clock, floor_clock = Clock(), Clock()
    for round_index in range(-1, args.repeats):
        clocks = (step_clock, floor_clock) if round_index >= 0 else (Clock(), Clock())
        take_step(ours, inputs, autocast, clocks[0])
        take_floor(ours.model.backbone, pair, autocast, clocks[1])
    medians = [
        {name: 1000 * statistics.median(values) for name, values in clock.seconds.items()}
        for clock in (step_clock, floor_clock)
    ]
    rows = [
        {'part': name, 'step (ms)': value, 'floor (ms)': medians[1].get(name)}
        for name, value in medians[0].items()
    ]
    rows.append(
        {
            'part': 'sum',
            'step (ms)': sum(medians[0].values()),
            'floor (ms)': sum(medians[1].values()),
        }
    )
    report('parts of a step', rows, batch=args.batch, precision=args.precision)


if __name__ == '__main__':
    main()
