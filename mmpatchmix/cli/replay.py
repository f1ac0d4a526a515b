"""Repeat the step at which a run met a number that is none, and say where it first appears.

mmpatchmix replay work_dirs/RUN/failed_iter_1234.pth
mmpatchmix replay work_dirs/RUN/failed_iter_1234.pth --no-amp     # does float32 help?

The file carries the run's config, and building a config can run code: replay only files of runs
that you trust.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from mmpatchmix.cli.arguments import add_trust_checkpoint, add_verbose, new_parser
from mmpatchmix.cli.errors import exit_on_user_error


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = new_parser('replay', __doc__)
    parser.add_argument('capsule', metavar='FILE', help='failed_iter_N.pth of the work dir')
    parser.add_argument(
        '--amp',
        action=argparse.BooleanOptionalAction,
        help='bfloat16 autocast; as in the run by default',
    )
    add_trust_checkpoint(parser)
    add_verbose(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Repeat the step and print what was found."""
    args = parse_args(argv)
    with exit_on_user_error(args.verbose):
        # Here, not above: importing takes seconds, and --help is to answer at once.
        from mmpatchmix.cli.console import quiet_stack

        quiet_stack()  # before what it silences is imported
        from mmpatchmix.checkpoints.reading import trust_checkpoints

        if args.trust_checkpoint:
            trust_checkpoints()
        print('\n'.join(replay(args.capsule, args.amp)))


def replay(path: str, bf16: bool | None = None) -> list[str]:
    """Repeat the step of a capsule on this machine's device.

    Args:
        path: A file of :func:`~mmpatchmix.engine.capsule.write_capsule`.
        bf16: Whether under bfloat16 autocast; None as in the run.

    Returns:
        list[str]: What was found, in lines.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or something else.
    """
    import torch
    from mmengine.device import get_device

    import mmpatchmix.registry  # noqa: F401  before anything is built
    from mmpatchmix.engine.bf16_optim_wrapper import BF16OptimWrapper

    capsule = read_capsule(path)
    model = build_model(capsule).to(get_device())
    found = Findings(model)
    wrapper = BF16OptimWrapper(
        torch.optim.SGD(model.parameters(), lr=0.0),
        enabled=capsule['bf16'] if bf16 is None else bf16,
    )
    wrapper.step = wrapper.zero_grad = lambda: None  # the gradients are looked at
    batch = {'inputs': capsule['inputs'], 'data_samples': None}
    losses = model.train_step(batch, wrapper)
    return [
        f'{path}: iteration {capsule["iteration"] + 1} of epoch {capsule["epoch"] + 1}, rank '
        f'{capsule["rank"]} of {capsule["ranks"]}, torch {capsule["torch"]} (here '
        f'{torch.__version__}), {"bfloat16" if wrapper.enabled else "float32"}',
        f'images by index: {", ".join(map(str, capsule["indices"][:16]))}'
        + (' ...' if capsule['indices'][16:] else ''),
        '',
        *compare_losses(losses, capsule['losses']),
        '',
        *found.describe(),
    ]


def read_capsule(path: str) -> dict[str, Any]:
    """Read a capsule without running anything of it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or something else.
    """
    from pathlib import Path

    from mmpatchmix.checkpoints.reading import load_torch

    if not Path(path).is_file():
        raise FileNotFoundError(f'there is no file {path}.')
    capsule = load_torch(path)
    if not isinstance(capsule, dict) or 'random_states' not in capsule:
        raise ValueError(
            f'{path} is no step to replay: take the failed_iter_N.pth that a run names when it '
            'stops.'
        )
    return capsule


def build_model(capsule: dict[str, Any]) -> Any:
    """Build the model of a capsule, with its weights, in training mode; set the random states."""
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    from mmpatchmix.engine.random_states import set_random_states
    from mmpatchmix.registry import MODELS

    cfg = Config(capsule['config'])
    init_default_scope(cfg.get('default_scope', 'mmpretrain'))
    cfg.model['compile'] = False
    model = MODELS.build(cfg.model)
    model.load_state_dict(capsule['state_dict'])
    if model.momentum_encoder is not None:
        model.momentum_encoder.num_updates = 1  # the run has made this step's
    set_random_states(capsule['random_states'])
    return model.train()


def compare_losses(now: dict[str, Any], then: dict[str, float]) -> list[str]:
    """Return a table of the losses here and in the run."""
    rows = [(name, now[name].item(), value) for name, value in then.items() if name in now]
    return [f'{"":<18}{"here":>12}{"in the run":>14}'] + [
        f'{name:<18}{here:>12.6g}{there:>14.6g}' for name, here, there in rows
    ]


class Findings:
    """Look at all weights, outputs and gradients of one training step.

    Args:
        model: Whose step it will be.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.bad_outputs: list[str] = []
        self.largest: dict[str, float] = {}  # absolute output by module
        self.gradients: dict[str, tuple[int, int]] = {}  # not finite, of all
        self.weights = {n: self._count(p) for n, p in model.state_dict().items()}
        for name, module in model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(self._note_output(name))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._note_gradient(name))

    @staticmethod
    def _count(values: Any) -> tuple[int, int]:
        return int((~values.isfinite()).sum()), values.numel()

    def _note_output(self, name: str) -> Any:
        def note(module: Any, inputs: Any, output: Any) -> None:
            if not hasattr(output, 'isfinite'):
                return
            if self._count(output)[0]:
                self.bad_outputs.append(name)
            largest = float(output.detach().abs().max())
            self.largest[name] = max(self.largest.get(name, 0.0), largest)

        return note

    def _note_gradient(self, name: str) -> Any:
        def note(gradient: Any) -> None:
            self.gradients[name] = self._count(gradient)

        return note

    def describe(self) -> list[str]:
        """Return what is not finite, in the order of the step, and the largest outputs."""
        outputs = f'first in {self.bad_outputs[0]}' if self.bad_outputs else 'all finite'
        top = sorted(self.largest.items(), key=lambda pair: -pair[1])[:5]
        return [
            _listed('weights before the step', self.weights),
            f'outputs: {outputs}',
            _listed('gradients', self.gradients),
            'largest outputs: ' + ', '.join(f'{name} {value:.3g}' for name, value in top),
        ]


def _listed(title: str, counts: dict[str, tuple[int, int]]) -> str:
    bad = [f'{name} ({n} of {total})' for name, (n, total) in counts.items() if n]
    more = f' and {len(bad) - 5} more' if bad[5:] else ''
    return f'{title}: ' + (f'not finite in {", ".join(bad[:5])}{more}' if bad else 'all finite')
