"""How mmengine's hook saves the best checkpoint without a moment in which there is none."""

import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmpatchmix.checkpoints.sealing import find_good_checkpoint, seal
from mmpatchmix.compat.safe_loading import find_damage
from mmpatchmix.engine.distributed import gather_whole, local_share
from mmpatchmix.engine.exact_order import ExactTrainLoop
from mmpatchmix.engine.stop_requests import RankAgreement, StopSignals, exit_code
from mmpatchmix.files import lock_folder, move_into_place, write_text
from mmpatchmix.models import unwrap_model
from mmpatchmix.models.vit import find_pretrained
from mmpatchmix.registry import HOOKS


class KeepsFiles(LocalBackend):
    """A file backend that notes down what it is asked to remove."""

    def __init__(self) -> None:
        self.outdated: set[str] = set()

    def remove(self, filepath: str) -> None:
        """Note down a file."""
        self.outdated.add(str(filepath))


class SavesAside:
    """The Runner as mmengine's hook sees it when it saves the best checkpoint."""

    def __init__(self, runner: Runner, hook: CheckpointHook) -> None:
        self.runner, self.hook = runner, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, **settings: Any) -> None:
        """Write aside, verify, rename; called on all ranks."""
        for name in ('file_client_args', 'backend_args'):
            settings.pop(name)
        self.runner.call_hook('prepare_checkpoint')
        self.hook._refuse_infinite_weights(self.runner)
        if dist.is_main_process():
            self.hook._write(self.runner, self.runner.save_checkpoint, filename, **settings)


def find_start(runner: Runner) -> str | None:
    """Return the file whose weights a run starts or started from; None for random weights."""
    backbone = getattr(unwrap_model(runner.model), 'backbone', None)
    pretrained = find_pretrained(getattr(backbone, 'init_cfg', None)) or {}
    return pretrained.get('checkpoint') or (None if runner._resume else runner._load_from)


def choose_checkpoint(runner: Runner) -> str | None:
    """Return the file to load, verified."""
    named = runner._load_from
    if named is not None:
        damage = find_damage(named) if os.path.isfile(named) else None
        if damage is None:
            return named
        good, _ = find_good_checkpoint(Path(named).parent)
        way_on = f' A good one is {good}.' if good else ''
        raise ValueError(f'{named} cannot be read: it is damaged ({damage}).{way_on}')
    if not runner._resume:
        return None
    good, damaged = find_good_checkpoint(runner.work_dir)
    listed = ''.join(f'\n  {path}: {damage}' for path, damage in damaged.items())
    if damaged and good is None:
        raise ValueError(f'every checkpoint of {runner.work_dir} is damaged:{listed}')
    if damaged:
        runner.logger.warning(f'Damaged checkpoints are passed over:{listed}')
    elif good is not None and not Path(runner.work_dir, 'last_checkpoint').is_file():
        runner.logger.warning(f'last_checkpoint is missing; {good} is the newest good one.')
    return good and str(good)


NUM_BETWEEN = 2  # checkpoints from the middle of epochs that are kept


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, which never leaves a run without a good checkpoint.

    - A file is written aside, sealed with its digest, brought to the disk and renamed. Only then
      older ones go, and ``last_checkpoint`` names it.
    - What is loaded is verified first. ``resume`` without a path falls back to the newest good file
      and says so, also where ``last_checkpoint`` is missing.
    - Weights that are NaN or infinite stop the run and are not saved.
    - Weights that ``mmpatchmix.PatchMixFSDP`` shares among the ranks are saved whole.
    - Where the disk is full or read-only the run goes on with what is saved, and says so. Only a
      last checkpoint that could not be saved is an error, at the end.
    - With ``mmpatchmix.ExactTrainLoop``, checkpoints are also written within an epoch, as
      ``iter_N.pth``; the newest two are kept.
    - SIGTERM, SIGUSR1, SIGHUP and Ctrl-C to any rank save after the iteration and end the run with
      exit code 75 (run me again), 130 after Ctrl-C. Ranks ask each other once a second.

    Remote file systems are left to mmengine.

    Args:
        interval: Epochs, or iterations with ``by_epoch=False``, between checkpoints.
        by_epoch: Whether ``interval`` counts epochs.
        minutes: Minutes after which a checkpoint is written within an epoch; None for never.
        iterations: Iterations after which one is; None for never.
        **kwargs: Those of mmengine's ``CheckpointHook``: ``max_keep_ckpts``, ``save_best``, ...

    Raises:
        ValueError: If ``minutes`` or ``iterations`` is not above 0.
    """

    def __init__(
        self,
        interval: int = -1,
        by_epoch: bool = True,
        minutes: float | None = 15,
        iterations: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(interval=interval, by_epoch=by_epoch, **kwargs)
        for name, value in (('minutes', minutes), ('iterations', iterations)):
            if value is not None and not value > 0:
                raise ValueError(f'checkpoint.{name}={value} must be above 0, or None for never.')
        self.minutes = minutes
        self.iterations = iterations
        self._saved_at = time.monotonic()
        self._signals = StopSignals()
        self._ranks = RankAgreement()
        self._missed = False  # a figure that was to be the best
        self._failure: str | None = None  # why the newest state is not saved
        self._whole: dict[str, dict] = {}  # what the ranks of FSDP hold together, on rank 0

    def before_run(self, runner: Runner) -> None:
        """Verify what is about to be loaded, and choose what to resume from.

        Raises:
            ValueError: If the named file, or every checkpoint of the work dir, is damaged, or
                another run writes into the work dir.
        """
        choice: list = [runner._load_from, None]
        if dist.is_main_process():
            try:
                if runner._train_loop is not None:
                    lock_folder(runner.work_dir)
                if not runner._has_loaded:
                    choice[0] = choose_checkpoint(runner)
            except ValueError as error:
                choice[1] = str(error)
        dist.broadcast_object_list(choice)
        if choice[1]:
            raise ValueError(choice[1])
        runner._load_from = choice[0]
        if runner._resume and choice[0]:
            # All weights come from there: what the run once began with need not exist any more.
            runner._init_model_weights = lambda: None

    def before_train(self, runner: Runner) -> None:
        """Begin to count the minutes; remove what an interrupted run has left half written."""
        super().before_train(runner)
        self._saved_at = time.monotonic()
        dist_cfg = (runner.cfg.get('env_cfg') or {}).get('dist_cfg') or {}
        self._ranks.timeout = dist_cfg.get('timeout')
        if isinstance(runner.train_loop, ExactTrainLoop):
            self._signals.install()
        if dist.is_main_process() and self._is_local():
            Path(self.out_dir).mkdir(parents=True, exist_ok=True)
            for path in Path(self.out_dir).glob('.*.pth.partial'):
                path.unlink()

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save where a checkpoint is due within the epoch."""
        super().after_train_iter(runner, batch_idx, *args, **kwargs)
        if not self._can_save_here(runner):
            return
        at_end = self.end_of_epoch(runner.train_dataloader, batch_idx)
        late = self.minutes is not None and time.monotonic() - self._saved_at >= 60 * self.minutes
        # The clock of the first rank counts, and a signal to any.
        mine = late and dist.is_main_process(), self._signals.received
        is_late, number = self._ranks.listen(*mine, at_once=at_end)
        if number:
            self._stop(runner, number)
        if at_end:
            return  # the end of the epoch saves, or the next iteration does
        by_iteration = self.iterations and (runner.iter + 1) % self.iterations == 0
        if self.by_epoch and (is_late or by_iteration):
            self.save_within_epoch(runner)

    def prepare_checkpoint(self, runner: Runner) -> None:
        """Gather what ranks hold shares of; called on all of them before rank 0 saves."""
        if getattr(runner.model, 'is_cut', False):
            self._whole = {
                'state_dict': gather_whole(unwrap_model(runner.model).state_dict()),
                'optimizer': gather_whole(runner.optim_wrapper.state_dict()),
            }

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save whole tensors where this rank has shares."""
        whole, self._whole = self._whole, {}
        checkpoint.update({key: whole[key] for key in whole if key in checkpoint})

    def save_within_epoch(self, runner: Runner) -> None:
        """Save the state after this iteration; called on all ranks."""
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        if not self._save(runner, f'iter_{runner.iter + 1}.pth', meta, by_epoch=False):
            return
        found = sorted(Path(self.out_dir).glob('iter_*.pth'), key=lambda path: path.stat().st_mtime)
        for path in found[:-NUM_BETWEEN]:
            path.unlink(missing_ok=True)

    def after_train(self, runner: Runner) -> None:
        """Leave signals to what follows."""
        self._signals.restore()
        super().after_train(runner)

    def after_run(self, runner: Runner) -> None:
        """Say so where the end of the run could not be saved.

        Raises:
            OSError: If the newest checkpoint that was due is not on the disk.
        """
        if self._failure and runner._train_loop is not None:
            raise OSError(f'the run is over, but its last checkpoint is missing: {self._failure}')

    def _can_save_here(self, runner: Runner) -> bool:
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        is_whole_step = (runner.iter + 1) % accumulation == 0
        return isinstance(runner.train_loop, ExactTrainLoop) and is_whole_step

    def _stop(self, runner: Runner, number: int) -> None:
        """Save, end the data workers and leave; called on all ranks."""
        if self.by_epoch:
            self.save_within_epoch(runner)
        else:
            self._save_checkpoint(runner)
        self._ranks.agree(0)  # nobody leaves before the checkpoint is there
        if shut_down := getattr(runner.train_loop.batches, '_shutdown_workers', None):
            shut_down()
        self._signals.restore()
        good = runner.message_hub.get_info('last_ckpt')
        runner.logger.warning(
            f'Stopped by {signal.Signals(number).name} after iteration {runner.iter + 1} of '
            f'{runner.max_iters}. The same command with --resume continues from {good}.'
        )
        sys.exit(exit_code(number))

    def _is_local(self) -> bool:
        return isinstance(self.file_backend, LocalBackend)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        runner = runner.runner if isinstance(runner, SavesAside) else runner
        if not self._is_local():
            runner.call_hook('prepare_checkpoint')
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        kept = deque(getattr(self, 'keep_ckpt_ids', ()))
        if step not in kept:
            kept.append(step)
        num_old = len(kept) - self.max_keep_ckpts if self.max_keep_ckpts > 0 else 0
        old = [kept.popleft() for _ in range(num_old)]
        if self.max_keep_ckpts > 0:
            runner.message_hub.update_info('keep_ckpt_ids', list(kept))
        name = self.filename_tmpl.format(step)
        if not self._save(runner, name, meta, self.by_epoch):
            return
        if self.max_keep_ckpts > 0:
            self.keep_ckpt_ids = kept
        for each in old:
            Path(self.out_dir, self.filename_tmpl.format(each)).unlink(missing_ok=True)

    def _save(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> bool:
        """Save on rank 0; tell there whether it worked."""
        runner.call_hook('prepare_checkpoint')
        self._refuse_infinite_weights(runner)
        self._saved_at = time.monotonic()
        path = Path(self.out_dir, name)
        former = runner.message_hub.get_info('last_ckpt')
        runner.message_hub.update_info('last_ckpt', str(path))
        settings = dict(save_optimizer=self.save_optimizer, by_epoch=by_epoch, **self.args)
        settings['save_param_scheduler'] = self.save_param_scheduler
        saved = dist.is_main_process() and self._write(
            runner, runner.save_checkpoint, name, meta=meta, **settings
        )
        # All ranks know: with save_best mmengine saves again where there is a last checkpoint.
        if any(self._ranks.agree(saved)):
            self.last_ckpt = str(path)
        else:
            runner.message_hub.update_info('last_ckpt', former)
        return saved

    def _write(self, runner: Runner, save: Callable, name: str, **settings: Any) -> bool:
        """Write one file aside and rename it; on a failing disk warn, and let the run go on."""
        path, partial = Path(self.out_dir, name), Path(self.out_dir, f'.{name}.partial')
        is_for_resuming = settings.get('save_optimizer', True)
        try:
            self._refuse_full_disk(runner)
            save(str(self.out_dir), partial.name, **settings)
            seal(partial)
            move_into_place(partial, path)
            if is_for_resuming:
                write_text(Path(runner.work_dir, 'last_checkpoint'), str(path))
                self._failure = None
        except OSError as error:
            reason = f'{type(error).__name__}: {error}'
            try:
                partial.unlink(missing_ok=True)
            except OSError as second:
                reason += f'; {second}'
            if is_for_resuming:
                self._failure = reason
            good = self.last_ckpt or runner.message_hub.get_info('last_ckpt')
            runner.logger.error(
                f'{name} was not saved ({reason}). The run goes on; what is saved is '
                f'{good or "nothing yet"}.'
            )
            return False
        return True

    def _refuse_full_disk(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        sizes = [value.nbytes for value in model.state_dict().values() if torch.is_tensor(value)]
        trained = [p.nbytes for p in model.parameters() if p.requires_grad]
        needed = sum(sizes) + 2 * sum(trained)  # two moments, as Adam has them
        free = shutil.disk_usage(self.out_dir).free
        if free < needed:
            raise OSError(f'{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free')

    def _refuse_infinite_weights(self, runner: Runner) -> None:
        weights = [local_share(p) for p in unwrap_model(runner.model).parameters()]
        checks = [torch.isfinite(weight).all() for weight in weights]
        # Ranks may hold shares: one that is not finite anywhere stops all.
        if any(self._ranks.agree(bool(checks) and not bool(torch.stack(checks).all()))):
            good = self.last_ckpt or runner.message_hub.get_info('last_ckpt')
            raise FloatingPointError(
                f'the weights are not finite after iteration {runner.iter}; they were not saved. '
                f'The last good checkpoint is {good or "none: nothing had been saved yet"}.'
            )

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save the best one as mmengine does, but remove the former one last."""
        if not self.save_best or not self._is_local():
            super()._save_best_checkpoint(runner, metrics)
            return
        if missing := [key for key in self.key_indicators if key not in ('auto', *metrics)]:
            if not self._missed:
                runner.logger.warning(
                    f'save_best={missing[0]!r}: there is no such figure, so no best checkpoint is '
                    f'kept. There are {", ".join(metrics)}.'
                )
            self._missed = True
            return
        backend, self.file_backend = self.file_backend, KeepsFiles()
        try:
            super()._save_best_checkpoint(SavesAside(runner, self), metrics)
            outdated = self.file_backend.outdated
        finally:
            self.file_backend = backend
        best = getattr(self, 'best_ckpt_path_dict', None) or {'': self.best_ckpt_path}
        for path in outdated - set(best.values()):
            os.unlink(path)
