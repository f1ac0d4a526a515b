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
    rows = evidence.read_all()
    for path in evidence.DOCUMENTS:
        text = path.read_text()
        assert evidence.fill(text, rows) == text, f'{path}: run python benchmarks/evidence.py'


def test_numbers_changed_by_hand_are_replaced():
    document = (ROOT / 'docs/evidence.md').read_text()
    table = re.search(r'<!-- table accuracy -->.*?<!-- end -->', document, re.DOTALL)[0]
    number = re.search(r'\d+\.\d', table)[0]
    wrong = document.replace(table, table.replace(number, '99.9', 1))
    assert wrong != document
    assert evidence.fill(wrong, evidence.read_all()) == document


def test_accuracy_table_has_means_spreads_and_the_paired_test():
    """By hand: 40 and 44 against 37 and 39 are 42 against 38, +3 and +5, t = 4 with 1 degree."""

    def run(row, seed, accuracy):
        part = dict(knn20=accuracy, knn200=accuracy, linear=accuracy + 10.0)
        return dict(row=row, seed=seed, query=dict(part, linear=1.0), momentum=part)

    rows = {
        'mocov3': {seed: run('mocov3', seed, value) for seed, value in ((0, 37.0), (1, 39.0))},
        'patchmix-2': {seed: run('patchmix-2', seed, v) for seed, v in ((0, 40.0), (1, 44.0))},
    }
    line = evidence.TABLES['accuracy'](rows).splitlines()[3]
    cells = [cell.strip() for cell in line.strip('|').split('|')]
    # Student's t with one degree of freedom is the Cauchy distribution: p = 1 - 2 atan(4) / pi.
    assert cells == [
        'PatchMix, M = 2', '2', '42.0 ± 2.8', '42.0 ± 2.8', '+4.0 (p = 0.16)',
        '52.0 ± 2.8', '+4.0 (p = 0.16)', '1.0 ± 0.0',
    ]  # fmt: skip


def test_every_result_names_config_code_and_machine():
    for name in ('methods', 'detection'):
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
