"""Configs are worked out as mmengine would read them, and nothing in them is run."""

from pathlib import Path

import pytest
from mmengine.config import Config

from mmpatchmix.cli import show_config
from mmpatchmix.cli.find_config import list_recipes
from mmpatchmix.cli.show_config import ConfigText, _plain


def without_scopes(node):
    """Leave out what mmengine adds to what comes from another package's configs."""
    if isinstance(node, dict):
        return {key: without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return type(node)(map(without_scopes, node)) if isinstance(node, list | tuple) else node


@pytest.mark.parametrize('name', list_recipes())
def test_every_shipped_config_is_what_mmengine_reads(name):
    path = list_recipes()[name]
    text = ConfigText(path)
    assert text.problems == []
    expected = without_scopes(Config.fromfile(path).to_dict())
    assert without_scopes(_plain(text.names)) == expected


TRAPS = [
    'import os\nos.system("touch SIGN")',
    'x = __import__("os").system("touch SIGN")',
    'x = open("SIGN", "w")',
    'x = [open("SIGN", "w") for _ in [1]]',
    "x = dict(a=[eval(\"open('SIGN', 'w')\")])",
    'x = (lambda: open("SIGN", "w"))()',
    'def f():\n    open("SIGN", "w")\nx = f()',
    'class A:\n    open("SIGN", "w")',
    'x = "".__class__.__base__.__subclasses__()',
    'x = "{0.__class__}".format(1)',
    "x = f\"{open('SIGN', 'w')}\"",
    '_base_ = [open("SIGN", "w").name]',
    'for i in [1]:\n    open("SIGN", "w")',
    'tuple = open\nx = tuple("SIGN", "w")',
    'x = "a" * 10 ** 10',
    'x = [0] * 10 ** 10',
    'x = "%1000000000d" % 1',
    'x = 3; ' + 'x = x * x; ' * 60,
    'x = [1]; ' + 'x = x + x; ' * 60,
    'x: int = open("SIGN", "w")',
]


@pytest.mark.parametrize('trap', TRAPS)
def test_nothing_is_run_and_what_is_beyond_is_said(trap, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text(f'lr = 2 * 0.5\n{trap}\nafter = dict(lr=lr)\n')
    assert show_config.main(['config.py']) == 1
    printed = capsys.readouterr()
    assert "after = {'lr': 1.0}" in printed.out
    assert f'{tmp_path / "config.py"}:2: ' in printed.err
    assert not Path('SIGN').exists()


def test_the_environment_is_read_as_mmengine_does(tmp_path, monkeypatch):
    (tmp_path / 'a.py').write_text("size = int('{{$SIDE_OF_A_TEST:16}}')\n")
    assert ConfigText(tmp_path / 'a.py').names['size'] == 16
    monkeypatch.setenv('SIDE_OF_A_TEST', '48')
    assert ConfigText(tmp_path / 'a.py').names['size'] == 48


@pytest.mark.parametrize(
    ('text', 'message'),
    [("_base_ = './a.py'", 'leads back'), ('x = (', 'is no Python')],
)
def test_files_that_are_no_configs(tmp_path, text, message):
    (tmp_path / 'a.py').write_text(text)
    with pytest.raises(SystemExit, match=message):
        show_config.main([str(tmp_path / 'a.py')])


def test_missing_bases_are_said(tmp_path, capsys):
    (tmp_path / 'a.py').write_text("_base_ = ['none.py', 'no_package::b.py']\nx = 1\n")
    assert show_config.main([str(tmp_path / 'a.py')]) == 1
    printed = capsys.readouterr()
    assert printed.out == 'x = 1\n'
    assert 'no none.py' in printed.err and 'no no_package::b.py' in printed.err
