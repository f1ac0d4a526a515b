"""SIGKILL at every step of saving, in training and evaluation, and at random times."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook

from mmpatchmix import files
from mmpatchmix.checkpoints import sealing
from mmpatchmix.engine import checkpoint_hook as hook_file
from tests.faults.runs import ITERS, at


class Kill(NamedTuple):
    """A kill of a ``kind`` below, from an iteration on.

    ``share``, from 0 to 1, is that of the bytes written, or of the time of a run.
    """

    kind: str
    iteration: int
    share: float

    def arm(self) -> tuple[Hook, ...]:
        """Return hooks that kill this process; none if it is killed from outside."""
        if self.kind in POINTS:
            return (at(POINTS[self.kind], self.iteration, die, 'VERY_LOW'),)
        if self.kind in STEPS:
            return (at('after_train_iter', self.iteration, lambda: STEPS[self.kind](self.share)),)
        return ()


def die(*args, **kwargs) -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def _after(module, name: str) -> None:
    function = getattr(module, name)
    setattr(module, name, lambda *args: (function(*args), die()))


def _in_the_bytes(share: float) -> None:
    def put(backend: LocalBackend, content: bytes, path: str) -> None:
        with open(path, 'wb') as file:
            file.write(content[: int(share * len(content))])
        die()

    LocalBackend.put = put


def _in_the_seal(share: float) -> None:
    seal = hook_file.seal

    def seal_some(path: Path) -> None:
        seal(path)
        os.truncate(path, os.path.getsize(path) - 1 - int(share * sealing.LENGTH))
        die()

    hook_file.seal = seal_some


def _in_last_checkpoint(share: float) -> None:
    def write_some(path: Path, text: str) -> None:
        Path(f'{path}.partial').write_text(text[: int(share * len(text))])
        die()

    hook_file.write_text = write_some


def _while_removing(share: float) -> None:
    unlink = Path.unlink

    def unlink_one(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        if path.suffix == '.pth':
            die()

    Path.unlink = unlink_one


STEPS: dict[str, Callable[[float], None]] = {  # of saving, in their order
    'in the bytes of the file': _in_the_bytes,
    'before its seal': lambda share: setattr(hook_file, 'seal', die),
    'in its seal': _in_the_seal,
    'before its rename': lambda share: setattr(hook_file, 'move_into_place', die),
    'after its rename': lambda share: _after(hook_file, 'move_into_place'),
    'in last_checkpoint': _in_last_checkpoint,
    'before its rename to last_checkpoint': lambda share: setattr(files, 'move_into_place', die),
    'before older files are removed': lambda share: _after(hook_file, 'write_text'),
    'while older files are removed': _while_removing,
}
POINTS = {  # of training
    'before an iteration': 'before_train_iter',
    'after an iteration': 'after_train_iter',
    'in an evaluation': 'before_val_epoch',
}
OUTSIDE = 'at any time, from outside'
GROUPS = (tuple(STEPS), tuple(POINTS), (OUTSIDE,))


def draw_kill(draw: random.Random, group: int, begun: int) -> Kill:
    """Draw a kill of a group for a run that continues after ``begun`` iterations."""
    kind = draw.choice(GROUPS[group])
    # A share that is before the end even on a fast machine.
    return Kill(kind, draw.randrange(begun, ITERS), draw.uniform(0, 0.6))
