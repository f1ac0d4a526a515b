"""A run always keeps a good checkpoint, and survives a failing disk and signals."""

import os
import signal

import pytest
import torch
from mmengine.fileio import HTTPBackend
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmpatchmix.compat.file_kinds import find_damage
from mmpatchmix.engine import SafeCheckpointHook, checkpoint_hook
from mmpatchmix.engine.stop_requests import exit_code
from tests.engine.tiny_run import tiny_run_config


def build(work_dir, epochs=3, resume=False, val_interval=9, **checkpoint):
    cfg = tiny_run_config(work_dir, epochs, num_images=24)  # 3 iterations an epoch
    cfg.train_cfg.val_interval = val_interval
    cfg.val_cfg.update(pixel_baseline=False, more_queries=None)
    cfg.default_hooks.checkpoint.update(checkpoint)
    cfg.resume = resume
    return Runner.from_cfg(cfg)


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth'))


def log(folder):
    return ''.join(path.read_text() for path in folder.glob('*/*.log'))


class At(Hook):
    """Call a function at one iteration, before the step."""

    def __init__(self, iteration, function):
        self.iteration, self.function = iteration, function

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            self.function()


def stop():
    raise InterruptedError


def test_checkpoints_within_epochs_rotate_and_the_newest_good_one_is_resumed(tmp_path):
    runner = build(tmp_path, iterations=1, max_keep_ckpts=2)
    runner.register_hook(At(8, stop))
    with pytest.raises(InterruptedError):
        runner.train()
    assert names(tmp_path) == ['epoch_1.pth', 'epoch_2.pth', 'iter_7.pth', 'iter_8.pth']
    assert all(find_damage(tmp_path / name) is None for name in names(tmp_path))
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_8.pth')
    with open(tmp_path / 'iter_8.pth', 'r+b') as file:
        file.truncate(1000)
    (tmp_path / '.iter_9.pth.partial').write_bytes(b'half')
    runner = build(tmp_path, resume=True, max_keep_ckpts=2)
    begun = []
    runner.register_hook(At(7, lambda: begun.append(7)))
    runner.train()
    assert begun == [7] and 'iter_8.pth: its end is missing' in log(tmp_path)
    assert 'epoch_3.pth' in names(tmp_path) and 'epoch_1.pth' not in names(tmp_path)
    assert not list(tmp_path.glob('.*.partial'))
    for path in tmp_path.glob('*.pth'):
        path.write_bytes(b'PK')
    with pytest.raises(ValueError, match=r'every checkpoint of .* is damaged'):
        build(tmp_path, resume=True).train()


def test_a_checkpoint_by_minutes(tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 240))  # 4 minutes for each reading
    monkeypatch.setattr(checkpoint_hook.time, 'monotonic', lambda: next(clock))
    runner = build(tmp_path, epochs=1, minutes=5)
    runner.train()
    assert names(tmp_path) == ['epoch_1.pth', 'iter_2.pth']
    with pytest.raises(ValueError, match='minutes=0'):
        SafeCheckpointHook(minutes=0)


@pytest.mark.filterwarnings('ignore:Detected call of `scheduler')  # without a step before
@pytest.mark.parametrize(
    ('iterations', 'saved'), [(1, [2, 4, 6]), (2, [2, 4, 6]), (3, [4, 6]), (5, [6]), (7, [])]
)
def test_with_accumulation_the_next_optimizer_step_is_saved(tmp_path, iterations, saved):
    cfg = tiny_run_config(tmp_path, 1, num_images=48)  # 6 iterations, the last ends the epoch
    cfg.optim_wrapper.accumulative_counts = 2
    cfg.default_hooks.checkpoint.iterations = iterations
    runner = Runner.from_cfg(cfg)
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, SafeCheckpointHook))
    found = []
    hook.save_within_epoch = lambda runner: found.append(runner.iter + 1)
    runner.train()
    assert found == saved


def test_a_remote_folder_is_refused_before_training(tmp_path, monkeypatch):
    # Of mmengine's remote backends http needs no other package, but cannot join paths.
    monkeypatch.setattr(HTTPBackend, 'join_path', lambda _, *parts: '/'.join(parts), raising=False)
    with pytest.raises(ValueError, match=r'out_dir=http://h/.* must be a folder'):
        build(tmp_path, out_dir='http://h').train()


def test_a_failing_disk_ends_no_run_and_keeps_good_checkpoints(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    def fill_disk():
        monkeypatch.setattr(checkpoint_hook, 'seal', fail)
        monkeypatch.setattr(runner.visualizer, 'add_scalars', fail)

    runner = build(tmp_path, max_keep_ckpts=1)
    runner.register_hook(At(5, fill_disk))
    with pytest.raises(OSError, match=r'last checkpoint is missing.*No space left'):
        runner.train()
    assert runner.iter == 9
    assert names(tmp_path) == ['epoch_1.pth']
    assert find_damage(tmp_path / 'epoch_1.pth') is None
    assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'epoch_1.pth')
    assert 'epoch_2.pth was not saved (OSError: [Errno 28]' in log(tmp_path)
    assert log(tmp_path).count('Metrics are no longer written ([Errno 28]') == 1
    assert not list(tmp_path.glob('.*.partial'))


def test_nan_weights_are_not_saved(tmp_path):
    runner = build(tmp_path)

    class Poison(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:  # the last of the second epoch: its loss was finite
                runner.model.neck.fc0.weight.data.fill_(float('nan'))

    runner.register_hook(Poison())
    former = signal.getsignal(signal.SIGINT)
    with pytest.raises(FloatingPointError, match=r'not finite after .*epoch_1\.pth'):
        runner.train()
    assert names(tmp_path) == ['epoch_1.pth']
    assert signal.getsignal(signal.SIGINT) is former  # Ctrl-C works in what goes on


def test_the_previous_best_checkpoint_is_removed_last(tmp_path, monkeypatch):
    from mmpatchmix.evaluation import KNNLoop

    scores = iter([10.0, 20.0, 15.0])
    monkeypatch.setattr(KNNLoop, 'evaluate', lambda loop: {'knn/top1': next(scores)})
    runner = build(tmp_path, val_interval=1, save_best='knn/top1', max_keep_ckpts=1)
    runner.train()
    assert names(tmp_path) == ['best_knn_top1_epoch_2.pth', 'epoch_3.pth']
    best = torch.load(tmp_path / 'best_knn_top1_epoch_2.pth', weights_only=True)
    assert best['meta']['epoch'] == 2 and 'optimizer' not in best
    assert find_damage(tmp_path / 'best_knn_top1_epoch_2.pth') is None
    assert type(runner).save_checkpoint is runner.save_checkpoint.__func__


def test_several_metrics_have_a_best_checkpoint_each(tmp_path, monkeypatch):
    from mmpatchmix.evaluation import KNNLoop

    scores = iter([(1.0, 2.0), (2.0, 1.0)])
    both = 'knn/top1', 'knn/top5'
    evaluate = lambda loop: dict(zip(both, next(scores), strict=True))  # noqa: E731
    monkeypatch.setattr(KNNLoop, 'evaluate', evaluate)
    build(tmp_path, 2, val_interval=1, save_best=[*both], max_keep_ckpts=1).train()
    best = ['best_knn_top1_epoch_2.pth', 'best_knn_top5_epoch_1.pth']
    assert names(tmp_path) == [*best, 'epoch_2.pth']


def test_the_best_checkpoint_stays_if_a_better_one_cannot_be_written(tmp_path, monkeypatch):
    from mmpatchmix.evaluation import KNNLoop

    def seal(path, real=checkpoint_hook.seal):
        if 'best' in path.name and 'epoch_2' in path.name:
            raise OSError(28, 'No space left on device')
        real(path)

    scores = iter([10.0, 20.0, 20.0, 15.0, 5.0])  # of epoch 2 twice: the file is older
    monkeypatch.setattr(KNNLoop, 'evaluate', lambda loop: {'knn/top1': next(scores)})
    monkeypatch.setattr(checkpoint_hook, 'seal', seal)
    runner = build(tmp_path, 2, val_interval=1, save_best='knn/top1', max_keep_ckpts=1)
    runner.train()
    assert names(tmp_path) == ['best_knn_top1_epoch_1.pth', 'epoch_2.pth']
    assert 'best_knn_top1_epoch_2.pth was not saved' in log(tmp_path)
    assert 'epoch is saved to best_knn_top1_epoch_2.pth' not in log(tmp_path)
    info = runner.message_hub.runtime_info
    assert info['best_score'] == 10 and info['best_ckpt'].endswith('epoch_1.pth')
    runner = build(tmp_path, 4, resume=True, val_interval=1, save_best='knn/top1', max_keep_ckpts=1)
    runner.hooks[0].change_schedule = True
    runner.train()
    assert names(tmp_path) == ['best_knn_top1_epoch_3.pth', 'epoch_4.pth']


def test_a_signal_saves_after_the_iteration_and_exits(tmp_path):
    number = signal.SIGUSR1
    former = signal.getsignal(number)
    runner = build(tmp_path)
    runner.register_hook(At(4, lambda: os.kill(os.getpid(), number)))
    with pytest.raises(SystemExit) as end:
        runner.train()
    assert end.value.code == 75 and exit_code(signal.SIGINT) == 130
    assert names(tmp_path) == ['epoch_1.pth', 'iter_5.pth']
    assert f'Stopped by {number.name} after iteration 5 of 9' in log(tmp_path)
    assert signal.getsignal(number) is former
