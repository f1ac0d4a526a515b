"""Lines of the console and of the log file."""

import re

from mmengine.runner import Runner

from mmpatchmix.cli.describe_run import describe_run
from mmpatchmix.report.run_record import read_scalars
from tests.engine.tiny_run import tiny_run_config


def test_the_console_has_short_lines_and_the_log_file_all_values(tmp_path, capfd):
    cfg = tiny_run_config(tmp_path, epochs=1, num_images=16)
    cfg.train_cfg.val_interval = 1
    Runner.from_cfg(cfg).train()
    printed = ''.join(capfd.readouterr())
    middle, end, validation = [line for line in printed.splitlines() if ' - Epoch' in line]
    figures = r'  loss \d+\.\d{3}  acc \d+\.\d%  lr \d\.\de.\d\d  \d+\.\d\d s/it  ETA 0:00:\d\d'
    assert re.search(rf'Epoch 1/1 \(50%\){figures}$', middle)
    assert re.search(rf'Epoch 1/1{figures}$', end)
    assert re.search(r'Epoch 1/1  knn/top1 (\S+) \(best \1\)', validation)
    assert validation.count('knn/top1') == 1 and len(validation) <= 120
    log = next(tmp_path.glob('*/*.log')).read_text()
    for parts in (('(train) [1][2/2]', 'kl_mix_mix: '), ('(val) [1][1/1]', 'knn/top5_k10: ')):
        assert re.search('.*'.join(map(re.escape, ('DEBUG - Epoch', *parts))), log)


def test_a_run_that_counts_iterations_logs_and_reports_them(tmp_path, capfd):
    cfg = tiny_run_config(tmp_path, epochs=1, num_images=16, report=True)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=2)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=4)
    runner = Runner.from_cfg(cfg)
    facts = describe_run(runner)[1]
    assert (facts['length'], facts['evaluation']) == ('4 iterations', 'KNNLoop every 2 iterations')
    runner.train()
    printed = ''.join(capfd.readouterr())
    assert 'Epoch' not in printed
    assert re.search(r'Iteration 4/4  knn/top1 ', printed) and 'after 4 iterations' in printed
    assert [record['step'] for record in read_scalars(tmp_path)[1]] == [0, 2, 4]
