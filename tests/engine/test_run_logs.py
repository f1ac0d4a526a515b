"""Lines of the console and of the log file."""

import re

from mmengine.runner import Runner

from mmpatchmix.engine.run_logs import format_seconds
from tests.engine.tiny_run import tiny_run_config


def test_the_console_has_short_lines_and_the_log_file_all_values(tmp_path, capfd):
    cfg = tiny_run_config(tmp_path, epochs=1, num_images=16)
    cfg.train_cfg.val_interval = 1
    Runner.from_cfg(cfg).train()
    printed = ''.join(capfd.readouterr())
    middle, end, validation = [line for line in printed.splitlines() if ' - Epoch' in line]
    figures = r'  loss \d+\.\d{3}  acc \d+\.\d%  lr \d\.\de.\d\d  \d+\.\d\d s/it  ETA 0m \d+s'
    assert re.search(rf'Epoch 1/1 \(50%\){figures}$', middle)
    assert re.search(rf'Epoch 1/1{figures}$', end)
    assert re.search(r'Epoch 1/1  knn/top1 (\S+) \(best \1\)', validation)
    assert validation.count('knn/top1') == 1 and len(validation) <= 120
    log = next(tmp_path.glob('*/*.log')).read_text()
    for parts in (('(train) [1][2/2]', 'kl_mix_mix: '), ('(val) [1][1/1]', 'knn/top5_k10: ')):
        assert re.search('.*'.join(map(re.escape, ('DEBUG - Epoch', *parts))), log)
    assert [format_seconds(s) for s in (9, 7500, 93700)] == ['0m 9s', '2h 5m', '1d 2h']
