"""The notebook runs; needs nbclient and ipykernel."""

import re

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.documents import ROOT

pytestmark = pytest.mark.program
NOTEBOOK = ROOT / 'examples/quick_start.ipynb'


def read_outputs(notebook):
    """Return the text that a notebook printed, and the number of its pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get('outputs', [])]
    pictures = sum('image/png' in output.get('data', {}) for output in outputs)
    return ''.join(output.get('text', '') for output in outputs), pictures


def test_the_notebook_runs(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 1e6
    for cell in notebook.cells:
        cell.source = re.sub(r'epochs=\d+', 'epochs=1', cell.source)
    resources = {'metadata': {'path': str(tmp_path)}}
    NotebookClient(notebook, timeout=240, kernel_name='python3', resources=resources).execute()
    text, pictures = read_outputs(notebook)
    assert pictures == 2 and (tmp_path / 'work_dirs/quick_start/vit.safetensors').is_file()
    assert '[0, 1] [0.5, 0.5]' in text
    assert float(re.search(r'largest difference: (\S+)', text)[1]) < 1e-4
    for pattern in (r'kNN: ([\d.]+) %', r'([\d.]+) % with 50 labels'):
        assert 20 < float(re.search(pattern, text)[1]) <= 100  # one of ten classes by chance: 10
