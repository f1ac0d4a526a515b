"""A cache of yapf that another process is writing, and one that stays broken."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mmpatchmix.compat import imports
from tests.calls import environment

CODE = """
from mmpatchmix.compat.imports import import_yapf
print('it begins', flush=True)
import_yapf()
import yapf
"""


def start(cache):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    env = environment(XDG_CACHE_HOME=cache)
    return subprocess.Popen([sys.executable, '-c', CODE], env=env, **options)


@pytest.fixture
def grammars(tmp_path):
    """Truncate the files of a cache that yapf has written; return their content."""
    assert start(tmp_path).wait(60) == 0
    files = {path: path.read_bytes() for path in tmp_path.rglob('*.pickle')}
    assert files
    for path, whole in files.items():
        path.write_bytes(whole[: len(whole) // 2 if 'Pattern' in path.name else 0])
    return files


def test_the_import_is_retried_while_another_process_writes(grammars):
    process = start(next(iter(grammars)).parents[2])
    assert process.stdout.readline() == 'it begins\n'
    time.sleep(0.3)  # the first attempt has failed
    for path, whole in grammars.items():
        path.write_bytes(whole)
    assert process.wait(60) == 0, process.stderr.read()


def test_a_cache_that_stays_broken_is_named(grammars):
    folder = next(iter(grammars)).parents[1]
    process = start(folder.parent)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert last.startswith(f"OSError: {folder}: yapf's cache is broken") and 'Delete' in last


def test_equal_texts_are_formatted_once():
    formatted = []

    def format_code(text, style_config='pep8'):
        formatted.append(text)
        return text.strip() + style_config['base'], True

    api = SimpleNamespace(FormatCode=format_code)
    for text, base in ((' a', 'x'), (' a', 'x'), (' b', 'x'), (' b', 'y'), (' b', 'y')):
        imports._format_once(api)  # again: no effect
        assert api.FormatCode(text, style_config=dict(base=base)) == (text.strip() + base, True)
    assert formatted == [' a', ' b', ' b']
