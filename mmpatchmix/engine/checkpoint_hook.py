"""Hooks that always keep a good checkpoint, and refuse one that does not fit the model."""

import math
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine import dist
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import BaseLoop, Runner
from torch.distributed.tensor import DTensor

from mmpatchmix.checkpoints import fit_state_dict
from mmpatchmix.checkpoints.sealing import choose_checkpoint, seal
from mmpatchmix.checkpoints.vit_spec import read_stated_spec
from mmpatchmix.datasets.image_folder import adopt_classes
from mmpatchmix.engine.distributed import PatchMixFSDP
from mmpatchmix.engine.exact_order import ExactTrainLoop
from mmpatchmix.engine.ranks import call_on_first_rank
from mmpatchmix.engine.stop_requests import RankAgreement, StopSignals, exit_code
from mmpatchmix.files import lock_folder, move_into_place, write_text
from mmpatchmix.models import PatchMix, unwrap_model
from mmpatchmix.registry import HOOKS

NUM_BETWEEN = 2  # number of checkpoints within epochs that are kept
INIT = "--init FILE (model.backbone.init_cfg=dict(type='Pretrained', checkpoint=FILE))"


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, except that a run always keeps a good checkpoint.

    A checkpoint is written to a temporary file, sealed with its digest, synchronised to disk and
    renamed; then older ones are removed. It is verified before it is loaded. NaN or infinite
    weights stop the run and are not saved; a full disk is an error in the log. With
    ``mmpatchmix.ExactTrainLoop`` the newest two checkpoints within epochs are kept, as
    ``iter_N.pth``; a signal to any rank saves one and ends the run.

    Args:
        minutes: Minutes between checkpoints within an epoch, above 0; None for never.
        iterations: Iterations between checkpoints within an epoch, above 0; None for never. With
            accumulation, at the next step of the optimizer.
        **kwargs: Those of mmengine's ``CheckpointHook``: ``interval``, ``save_best``, ...
    """

    def __init__(
        self, *args: Any, minutes: float | None = 15, iterations: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        for name, value in (('minutes', minutes), ('iterations', iterations)):
            if value is not None and not value > 0:
                raise ValueError(f'checkpoint.{name}={value} must be above 0, or None for never.')
        self.minutes, self.iterations = math.inf if minutes is None else minutes, iterations
        self._saved_at = time.monotonic()
        self._signals, self._ranks = StopSignals(), RankAgreement()
        self._failure = ''  # why the newest checkpoint is missing
        self._whole: dict[str, dict] = {}  # gathered weights and optimizer of FSDP, on rank 0

    def before_run(self, runner: Runner) -> None:
        """Lock the work dir and choose the checkpoint to load, on rank 0 for all ranks."""

        def choose() -> tuple[str | None, bool]:
            if runner._train_loop is not None:
                lock_folder(runner.work_dir)
            path = runner._load_from if runner._has_loaded else choose_checkpoint(runner)
            if path is None and runner._resume:  # the run has no checkpoint yet
                return getattr(runner, 'start_from', None), False
            return path, runner._resume

        runner._load_from, runner._resume = call_on_first_rank(choose)
        if runner._resume and runner._load_from:
            # The checkpoint has all weights; the file of init_cfg may no longer exist.
            runner._init_model_weights = lambda: None

    def before_train(self, runner: Runner) -> None:
        """Install signal handlers; remove temporary files of an interrupted run."""
        super().before_train(runner)
        if not isinstance(self.file_backend, LocalBackend):
            raise ValueError(f'checkpoint.out_dir={self.out_dir} must be a folder, not remote.')
        self._saved_at = time.monotonic()
        env_cfg = runner.cfg.get('env_cfg') or {}
        self._ranks.timeout = (env_cfg.get('dist_cfg') or {}).get('timeout')
        if isinstance(runner.train_loop, ExactTrainLoop):
            self._signals.install()
        if dist.is_main_process():
            Path(self.out_dir).mkdir(parents=True, exist_ok=True)
            for path in Path(self.out_dir).glob('.*.pth.partial'):
                path.unlink()

    def after_train_iter(self, runner: Runner, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """Save within the epoch if a checkpoint is due; stop after a signal."""
        super().after_train_iter(runner, batch_idx, *args, **kwargs)
        accumulation = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not isinstance(runner.train_loop, ExactTrainLoop) or (runner.iter + 1) % accumulation:
            return
        at_end = self.end_of_epoch(runner.train_dataloader, batch_idx)
        # The clock of rank 0 decides, and a signal to any rank.
        late = dist.is_main_process() and time.monotonic() - self._saved_at >= 60 * self.minutes
        late, number = self._ranks.listen(late, self._signals.received, at_once=at_end)
        if number:
            self._stop(runner, number)
        by_iteration = self.iterations and (runner.iter + 1) % self.iterations < accumulation
        # At the end of an epoch a late one is saved by the epoch or in the next iteration.
        if self.by_epoch and (by_iteration or (late and not at_end)):
            self.save_within_epoch(runner)

    def prepare_checkpoint(self, runner: Runner) -> None:
        """Gather sharded state; called on all ranks before rank 0 saves."""
        if isinstance(runner.model, PatchMixFSDP):
            self._whole = runner.model.gather_state(runner.optim_wrapper)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Replace sharded state by gathered state."""
        whole, self._whole = self._whole, {}
        checkpoint.update({key: whole[key] for key in whole if key in checkpoint})

    def save_within_epoch(self, runner: Runner) -> None:
        """Save the state after this iteration; called on all ranks."""
        meta = dict(epoch=runner.epoch, iter=runner.iter + 1)
        if self._save(runner, f'iter_{runner.iter + 1}.pth', meta, by_epoch=False):
            found = Path(self.out_dir).glob('iter_*.pth')
            for path in sorted(found, key=lambda path: path.stat().st_mtime)[:-NUM_BETWEEN]:
                path.unlink(missing_ok=True)

    def after_train_or_error(self, runner: Runner) -> None:
        """Restore the previous signal handlers, however training has ended."""
        self._signals.restore()

    def after_run(self, runner: Runner) -> None:
        """Raise ``OSError`` if the last checkpoint of the run could not be saved."""
        if self._failure and runner._train_loop is not None:
            raise OSError(f'the run is over, but its last checkpoint is missing: {self._failure}')

    def _stop(self, runner: Runner, number: int) -> None:
        """Save, end the data workers and exit; called on all ranks."""
        self.save_within_epoch(runner) if self.by_epoch else self._save_checkpoint(runner)
        self._ranks.agree(0)  # no rank exits before the checkpoint is written
        if shut_down := getattr(runner.train_loop.batches, '_shutdown_workers', None):
            shut_down()
        runner.logger.warning(
            f'Stopped by {signal.Signals(number).name} after iteration {runner.iter + 1} of '
            f'{runner.max_iters}; the same command with --resume continues from '
            f'{self._name_good(runner)}.'
        )
        sys.exit(exit_code(number))

    def _name_good(self, runner: Runner) -> str:
        return self.last_ckpt or runner.message_hub.get_info('last_ckpt') or 'nothing yet'

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save as mmengine does, but remove old checkpoints afterwards."""
        kept, old = list(dict.fromkeys([*getattr(self, 'keep_ckpt_ids', ()), step])), []
        if self.max_keep_ckpts > 0:
            old, kept = kept[: -self.max_keep_ckpts], kept[-self.max_keep_ckpts :]
            runner.message_hub.update_info('keep_ckpt_ids', kept)
        if self._save(runner, self.filename_tmpl.format(step), meta, self.by_epoch):
            self.keep_ckpt_ids = kept
            for each in old:
                Path(self.out_dir, self.filename_tmpl.format(each)).unlink(missing_ok=True)

    def _save(self, runner: Runner, name: str, meta: dict, by_epoch: bool) -> bool:
        """Save on rank 0; return there whether it succeeded."""
        runner.call_hook('prepare_checkpoint')
        self._refuse_nonfinite_weights(runner)
        self._saved_at = time.monotonic()
        path, hub = str(Path(self.out_dir, name)), runner.message_hub
        previous = hub.get_info('last_ckpt')
        hub.update_info('last_ckpt', path)
        settings = dict(self.args, save_optimizer=self.save_optimizer, by_epoch=by_epoch)
        settings['save_param_scheduler'] = self.save_param_scheduler
        saved = dist.is_main_process() and self._write(runner, name, meta=meta, **settings)
        # On all ranks: with save_best mmengine saves again if there is a last checkpoint.
        if any(self._ranks.agree(saved)):
            self.last_ckpt = path
        else:
            hub.update_info('last_ckpt', previous)
        return saved

    def _write(self, runner: Runner, name: str, **settings: Any) -> bool:
        """Write a temporary file and rename it; if the disk fails, log it and return False."""
        path, partial = Path(self.out_dir, name), Path(self.out_dir, f'.{name}.partial')
        can_resume = settings.get('save_optimizer', True)
        try:
            self._refuse_full_disk(runner)
            type(runner).save_checkpoint(runner, str(self.out_dir), partial.name, **settings)
            seal(partial)
            move_into_place(partial, path)
            if can_resume:
                write_text(Path(runner.work_dir, 'last_checkpoint'), str(path))
                self._failure = ''
            return True
        except OSError as error:
            failure = f'{type(error).__name__}: {error}'
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            self._failure = failure if can_resume else self._failure
            good = f'the last good checkpoint is {self._name_good(runner)}'
            runner.logger.error(f'{name} was not saved ({failure}). The run continues; {good}.')
            return False

    def _refuse_full_disk(self, runner: Runner) -> None:
        model = unwrap_model(runner.model)
        needed = sum(value.nbytes for value in model.state_dict().values())
        needed += 2 * sum(p.nbytes for p in model.parameters() if p.requires_grad)  # of Adam
        if (free := shutil.disk_usage(self.out_dir).free) < needed:
            raise OSError(f'{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free')

    def _refuse_nonfinite_weights(self, runner: Runner) -> None:
        parameters = unwrap_model(runner.model).parameters()
        local = (p.to_local() if isinstance(p, DTensor) else p for p in parameters)
        checks = [torch.isfinite(p).all() for p in local]
        # Ranks may hold different shards.
        if any(self._ranks.agree(not bool(torch.stack(checks).all()))):
            raise FloatingPointError(
                f'the weights are not finite after iteration {runner.iter}; they were not saved. '
                f'The last good checkpoint is {self._name_good(runner)}.'
            )

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save as mmengine does, but safely, and remove the previous best checkpoint last."""
        if not self.save_best:
            return
        if missing := [key for key in self.key_indicators if key not in ('auto', *metrics)]:
            runner.logger.warning(
                f'save_best={missing[0]!r} is not among the metrics, so no best checkpoint is '
                f'kept. The metrics are {", ".join(metrics)}.'
            )
            return

        def save(out_dir, filename, file_client_args, backend_args, **settings) -> None:
            runner.call_hook('prepare_checkpoint')
            self._refuse_nonfinite_weights(runner)
            saved = dist.is_main_process() and self._write(runner, filename, **settings)
            if not any(self._ranks.agree(saved)):
                raise OSError(filename)

        outdated: set[str] = set()
        runner.save_checkpoint, self.file_backend.remove = save, outdated.add
        info = runner.message_hub.runtime_info
        before, path = dict(info), getattr(self, 'best_ckpt_path', None)
        paths = dict(getattr(self, 'best_ckpt_path_dict', {}))  # with several keys in save_best
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError:  # it is in the log; the previous one stays the best
            outdated.clear()
            info.clear()
            info.update(before)
            self.best_ckpt_path, self.best_ckpt_path_dict = path, paths
        finally:
            del runner.save_checkpoint, self.file_backend.remove
        best = getattr(self, 'best_ckpt_path_dict', {}).values() or [self.best_ckpt_path]
        for path in outdated.difference(best):
            os.unlink(path)


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Refuse a checkpoint that does not fit the model; mmengine only logs mismatches.

    The number of heads, which no shape shows, is compared where the file records it. Validation
    and test sets of classifiers take the class list of the training set, from the checkpoint where
    nothing is trained; those of ``KNNLoop`` take that of its bank.
    """

    def before_train(self, runner: Runner) -> None:
        """Let the validation set number its classes as the training set does."""
        metainfo = getattr(runner.train_dataloader.dataset, 'metainfo', None)
        self._share_classes(runner.val_loop, metainfo)

    @staticmethod
    def _share_classes(loop: BaseLoop | dict | None, metainfo: dict | None) -> None:
        if isinstance(loop, BaseLoop) and not hasattr(loop, 'bank_dataloader'):
            adopt_classes(loop.dataloader.dataset, metainfo)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Raise ``ValueError`` with all mismatches; called before anything is loaded."""
        model = unwrap_model(runner.model)
        advice = 'Use the config it was trained with, a copy of which is in its work dir.'
        if isinstance(model, PatchMix):
            advice += f' To initialise only the backbone, from any layout: {INIT}.'
        state = checkpoint.get('state_dict', checkpoint)
        checkpoint['state_dict'], _ = fit_state_dict(state, model, 'The checkpoint', advice)
        saved = read_stated_spec(checkpoint.get('meta') or {}).get('num_heads')
        arch = getattr(getattr(model, 'backbone', None), 'arch_settings', None) or {}
        if saved and saved != arch.get('num_heads', saved):
            raise ValueError(
                f'The checkpoint was trained with {saved} attention heads and the config has '
                f'{arch["num_heads"]}: use the config of its work dir, or the same --init.'
            )
        if not isinstance(runner._train_loop, BaseLoop):
            for loop in (runner._val_loop, runner._test_loop):
                self._share_classes(loop, (checkpoint.get('meta') or {}).get('dataset_meta'))
