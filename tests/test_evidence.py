"""The documents say what the results say."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / 'benchmarks/evidence.py'


@pytest.fixture(scope='module')
def evidence():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location('evidence', SCRIPT)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(SCRIPT.parent))


def test_the_documents_are_made_of_the_results():
    done = subprocess.run([sys.executable, SCRIPT, '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_figure_changed_by_hand_is_found_and_mended(evidence):
    document = (ROOT / 'docs/evidence.md').read_text()
    table = re.search(r'<!-- table accuracy -->.*?<!-- end -->', document, re.DOTALL)[0]
    number = re.search(r'\d+\.\d', table)[0]
    wrong = document.replace(table, table.replace(number, '99.9', 1))
    assert wrong != document
    assert evidence.fill(wrong, evidence.read_all()) == document


def test_the_accuracy_table_has_means_spreads_and_the_paired_test(evidence):
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


def test_every_line_says_where_it_comes_from(evidence):
    for name in ('methods.jsonl', 'detection.jsonl', 'photographs.jsonl'):
        for text in (evidence.RESULTS / name).read_text().splitlines():
            line = json.loads(text)
            assert re.fullmatch(r'[0-9a-f]{12}', line['config'])
            assert re.fullmatch(r'[0-9a-f]{12}', line['code'])  # a commit, nothing uncommitted
            assert {'processor', 'cores', 'threads', 'torch', 'date'} <= line['machine'].keys()
