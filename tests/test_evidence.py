"""The tables of the documents are made from the results, and every result names its origin."""

import json
import re
import subprocess
import sys

from tests.docs.documents import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))
import evidence
import runs

sys.path.pop(0)


def test_documents_are_made_from_the_results():
    found, rows = evidence.read_all()
    for path in evidence.DOCUMENTS:
        text = path.read_text()
        assert evidence.fill(text, found, rows) == text, f'{path}: run benchmarks/evidence.py'


def test_numbers_changed_by_hand_are_replaced():
    document = (ROOT / 'docs/evidence.md').read_text()
    table = re.search(r'<!-- table detection -->.*?<!-- end -->', document, re.DOTALL)[0]
    number = re.search(r'\d+\.\d', table)[0]
    wrong = document.replace(table, table.replace(number, '99.9', 1))
    assert wrong != document
    assert evidence.fill(wrong, *evidence.read_all()) == document


TUNED = {1e-3: 41.0, 3e-3: 42.0, 9e-3: 40.0}  # kNN by rate


def make_map():
    """By hand: 40 and 44 against 37 and 39 are 42 against 38, +3 and +5, t = 4 with 1 degree."""
    plain = dict(data='digits', level='crops', steps=400, batch=64, alpha=None, images=None)
    plain |= dict(change=None, is_tuning=False)
    return evidence.Map(
        plain | dict(num_mix=m, seed=seed, knn=knn, curve=[[0, 10.0], [400, knn]])
        for m, seed, knn in ((1, 0, 37.0), (1, 1, 39.0), (2, 0, 40.0), (2, 1, 44.0))
    )


def test_map_has_means_spreads_and_the_paired_test():
    text = evidence.table(make_map(), *evidence.MAP_TABLES['map-knn'])
    cells = [cell.strip() for cell in text.splitlines()[2].strip('|').split('|')]
    # Student's t with one degree of freedom is the Cauchy distribution: p = 1 - 2 atan(4) / pi.
    # The standard error of +3 and +5 is 1, their standard deviation over the root of 2.
    gap = '+4.0 ± 1.0 (p = 0.16)'
    assert cells == ['digits', 'crops', '38.0 ± 1.4', '42.0 ± 2.8', '', '', gap]
    assert len(text.splitlines()) == 3  # rows without runs are left out


def test_runs_at_another_rate_than_the_tuned_one_are_left_out():
    plain = make_map().lines[0]
    tuning = [plain | dict(lr=lr, knn=knn, is_tuning=True, steps=133) for lr, knn in TUNED.items()]
    runs = [plain | dict(lr=lr, knn=lr) for lr in (3e-3, 1e-3)]
    where = dict(data='digits', level='crops', num_mix=1)
    found = evidence.Map(tuning + runs)
    assert found.find(**where)[0]['knn'] == 3e-3  # 1e-3 comes later
    assert found.find(**where, lr=1e-3)[0]['knn'] == 1e-3
    assert evidence.Map(tuning[1:] + runs).find(**where)[0]['knn'] == 1e-3  # not tuned yet


def test_heat_map_shows_the_mean_difference_of_the_curves():
    runs = [make_map().find(data='digits', level='crops', num_mix=m) for m in (1, 2)]
    assert evidence.measure_gaps(*runs) == {0: 0.0, 400 * 64: 4.0}


def test_every_result_names_config_code_and_machine():
    for name in ('map', 'detection'):
        for text in (evidence.RESULTS / f'{name}.jsonl').read_text().splitlines():
            line = json.loads(text)
            assert re.fullmatch(r'[0-9a-f]{12}', line['config'])
            assert re.fullmatch(r'[0-9a-f]{12}', line['code'])  # a commit without changes
            assert {'processor', 'cores', 'threads', 'torch', 'date'} <= line['machine'].keys()


def test_results_and_documents_do_not_change_the_code_version(tmp_path, monkeypatch):
    (tmp_path / 'benchmarks/results').mkdir(parents=True)
    (tmp_path / 'docs').mkdir()
    names = ('benchmarks/results/gpu.txt', 'docs/performance.md', 'README.md', 'code.py')
    git = ('git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path))
    for name in names:
        (tmp_path / name).touch()
    for command in (('init', '-q'), ('add', '.'), ('commit', '-qm', 'all')):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runs, 'HERE', tmp_path / 'benchmarks')
    clean = runs.describe_code()
    assert len(clean) == 12
    for name in names[:3]:
        (tmp_path / name).write_text('more')
    assert runs.describe_code() == clean
    (tmp_path / 'code.py').write_text('more')
    assert runs.describe_code() == f'{clean}-dirty'
    monkeypatch.setattr(runs.shutil, 'which', lambda name: None)
    monkeypatch.setenv('GIT_COMMIT', '0123456789abcdef')
    assert runs.describe_code() == '0123456789ab'  # without git
