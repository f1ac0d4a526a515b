"""Runs of 15 iterations, saved after 2, 4, 5, 6, 8, 10, 12, 14 and 15, and their differences."""

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils._pytree import keystr, tree_flatten_with_path

from mmpatchmix.engine import SafeCheckpointHook, checkpoint_hook
from mmpatchmix.engine.exact_order import SeededSamples
from mmpatchmix.report.run_record import read_scalars
from tests.engine.tiny_run import tiny_run_config

EPOCHS, PER_EPOCH, BATCH = 3, 5, 8
ITERS = EPOCHS * PER_EPOCH
WORKERS = ((0, False), (2, False), (2, True))
# Values that differ from run to run.
CLOCKS = ('time', 'data_time', 'memory', 'eta', 'data_share', 'images_per_second')


def choose_workers(number: int, persistent: bool) -> dict[str, Any]:
    """Return options for a number of data workers."""
    loader = 'train_dataloader.'
    return {f'{loader}num_workers': number, f'{loader}persistent_workers': persistent}


def build(
    work_dir: Path, batch_size: int = BATCH, num_images: int = PER_EPOCH * BATCH, **options: Any
) -> Runner:
    """Build a run that resumes if the work dir has a checkpoint."""
    cfg = tiny_run_config(work_dir, EPOCHS, num_images, batch_size)
    cfg.train_cfg.val_interval = 1
    cfg.default_hooks.checkpoint.update(interval=1, iterations=2, max_keep_ckpts=1)
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    cfg.model.backbone.drop_path_rate = 0.2
    cfg.resume = True
    cfg.merge_from_dict(options)
    return Runner.from_cfg(cfg)


def train(work_dir: Path, options: dict, hooks: tuple[Hook, ...] = (), keep: bool = False) -> None:
    """Train in a work dir, with options of the config by dotted key; the function of a process.

    ``saved.txt`` gets the iterations of complete checkpoints, ``read-RANK.txt`` the samples read.
    ``keep`` keeps all checkpoints.
    """
    work_dir.mkdir(exist_ok=True)
    if keep:
        checkpoint_hook.NUM_BETWEEN = 99
        options = {'default_hooks.checkpoint.max_keep_ckpts': 99, **options}
    _record(work_dir)
    runner = build(work_dir, **options)
    for hook in hooks:
        runner.register_hook(hook)
    runner.train()


def _record(work_dir: Path) -> None:
    save, read = SafeCheckpointHook._save, SeededSamples._read
    reads = work_dir / f'read-{os.environ.get("RANK", 0)}.txt'

    def save_and_record(hook, runner, name, meta, by_epoch):
        is_saved = save(hook, runner, name, meta, by_epoch)
        if is_saved:
            append(work_dir / 'saved.txt', meta['iter'])
        return is_saved

    def read_and_record(samples, index):
        with suppress(OSError):  # the work dir may lie on the disk that is full
            append(reads, int(index))
        return read(samples, index)

    SafeCheckpointHook._save, SeededSamples._read = save_and_record, read_and_record


def append(path: Path, number: int) -> None:
    """Add a line to a file, in one write."""
    with open(path, 'a') as file:
        file.write(f'{number}\n')


def numbers(path: Path) -> list[int]:
    """Read what :func:`append` wrote."""
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def at(point: str, iteration: int, function: Callable, priority: str = 'HIGHEST') -> Hook:
    """Make a hook that calls a function once, at a point of an iteration (from 0) or later."""
    hook, todo = Hook(), [function]
    hook.priority = priority

    def call(runner: Runner, **kwargs: Any) -> None:
        if runner.iter >= iteration and todo:
            todo.pop()()

    setattr(hook, point, call)
    return hook


def read_log(work_dir: Path) -> str:
    """Return the log files of all runs in a work dir."""
    return ''.join(path.read_text() for path in sorted(work_dir.glob('*/*.log')))


def iteration_of(checkpoint: Path) -> int:
    """Return the number of iterations before a checkpoint."""
    return torch.load(checkpoint, weights_only=True)['meta']['iter']


def differences(work_dir: Path, expected_dir: Path, name: str = f'epoch_{EPOCHS}.pth') -> list[str]:
    """Return the names of values of a run that differ in any bit from those of another.

    They are weights, momentum encoder, optimizer, schedules, random states, plan, sampler's seed,
    the log history in the checkpoint, and the values in ``scalars.json``.
    """
    found, expected = (_read_state(folder / name) for folder in (work_dir, expected_dir))
    assert len(expected) > 200
    wrong = [
        key for key in found | expected if not _equal(found.get(key, ...), expected.get(key, ...))
    ]
    records, wanted = (read_scalars(folder) for folder in (work_dir, expected_dir))
    for kind, rows, wanted_rows in zip(('training', 'validation'), records, wanted, strict=True):
        rows, wanted_rows = map(_without_clocks, (rows, wanted_rows))
        # A run that started from the other's checkpoint has only the later rows.
        if not rows or rows != wanted_rows[-len(rows) :]:
            wrong.append(f'{kind} values of the log')
    return sorted(wrong)


def _read_state(path: Path) -> dict[str, Any]:
    content = torch.load(path, weights_only=True)
    scalars = content['message_hub']['log_scalars']
    content['history'] = {k: v for k, v in scalars.items() if k.rpartition('/')[2] not in CLOCKS}
    keys = ('state_dict', 'optimizer', 'param_schedulers', 'exact_resume', 'history')
    leaves, _ = tree_flatten_with_path({key: content[key] for key in keys})
    return {keystr(path): value for path, value in leaves}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


def _without_clocks(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k.rpartition('/')[2] not in CLOCKS} for row in rows]


def digest(work_dir: Path, with_log: bool) -> str:
    """Return a text that is equal for runs that are equal bit for bit, whenever they ran.

    It covers the newest and the best checkpoint, with the history of logged values, and with
    ``with_log`` the values in ``scalars.json``.
    """
    newest = max(work_dir.glob('epoch_*.pth'), key=lambda path: int(path.stem[6:]))
    parts = {'checkpoint': _hash(_read_state(newest))}
    hub = torch.load(newest, weights_only=True)['message_hub']
    if best := hub['runtime_info'].get('best_ckpt'):
        path = work_dir / Path(best).name
        parts[path.name] = _hash(torch.load(path, weights_only=True)['state_dict'])
    logs = read_scalars(work_dir) if with_log else ()
    for kind, rows in zip(('training', 'validation'), logs, strict=False):
        parts[kind] = _hash(dict(enumerate(_without_clocks(rows))))
    return f'{newest.name}: {parts}'


def _hash(values: dict) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(values.items()):
        if isinstance(value, torch.Tensor):
            data = value.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes()
            value = f'{value.dtype} {tuple(value.shape)} {hashlib.sha256(data).hexdigest()}'
        digest.update(f'{key}: {value!r}\n'.encode())
    return f'{len(values)} values {digest.hexdigest()[:16]}'
