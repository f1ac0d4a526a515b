"""The command, its verbs and their help; recipes by name."""

import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mmpatchmix
from mmpatchmix.__main__ import VERBS, main
from mmpatchmix.cli import convert, show
from mmpatchmix.convert.convert_checkpoint import TARGETS
from mmpatchmix.files import find_config, list_recipes
from mmpatchmix.report.pictures import PICTURES

HEAVY = ('torch', 'mmcv', 'mmpretrain', 'mmdet', 'numpy')
CHILD = f"""
import sys
from mmpatchmix.__main__ import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    loaded = [name for name in {HEAVY} if name in sys.modules]
    print('status', end.code, 'loaded', loaded)
"""


@pytest.mark.parametrize(
    ('verb', 'argument', 'status'), [*((verb, '--help', 0) for verb in VERBS), ('train', '--no', 2)]
)
def test_help_and_mistakes_answer_before_heavy_imports(verb, argument, status):
    command = [sys.executable, '-c', CHILD, verb, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f'status {status} loaded []' in done.stdout, done.stdout + done.stderr
    assert f'usage: mmpatchmix {verb} ' in done.stdout + done.stderr


def test_options_may_stand_between_arguments():
    args = show.parse_args(['map', 'CONFIG', '--data-root', 'PATH', 'RUN', 'RUN2'])
    assert (args.config, args.data_root) == ('CONFIG', 'PATH')
    assert args == show.parse_args(['map', 'CONFIG', 'RUN', 'RUN2', '--data-root', 'PATH'])


def test_choices_verbs_version_and_unknown_verbs(capsys):
    assert tuple(PICTURES) == show.OF_FEATURES
    assert set(convert.TARGETS) == {*TARGETS, 'hf'}  # another name of transformers
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f'  {verb} ' in text and line in text for verb, line in VERBS.items())
    with pytest.raises(SystemExit):
        main(['--version'])
    assert capsys.readouterr().out.strip() == f'mmpatchmix {mmpatchmix.__version__}'
    with pytest.raises(SystemExit) as end:
        main(['trian'])
    assert end.value.code == 2 and "'train'" in capsys.readouterr().err


@pytest.mark.parametrize('verb', ['train', 'test'])
def test_files_in_tools_run_the_verbs(monkeypatch, verb):
    monkeypatch.setattr(import_module(f'mmpatchmix.cli.{verb}'), 'main', lambda: 7)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(f'tools/{verb}.py', run_name='__main__')
    assert end.value.code == 7


def test_recipes_are_found_by_name_from_anywhere(monkeypatch, tmp_path):
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    for name in ('patchmix_vit-digits', 'linear/vit-s_in1k', 'coco/mask-rcnn_vit-s_fpn_1x'):
        assert find_config(name).samefile(root / 'configs' / f'{name}.py')
    assert not any(name.startswith('_base_') for name in list_recipes())
    own = tmp_path / 'patchmix_vit-digits.py'
    own.touch()
    assert find_config('patchmix_vit-digits.py') == Path(own.name)
    for name, near in (
        ('configs/patchmix_vit-digit.py', 'patchmix_vit-digits'),
        ('vit-s_in1k', 'finetune/vit-s_in1k or linear/vit-s_in1k'),
    ):
        with pytest.raises(FileNotFoundError, match=f'no config {name}, .* did you mean {near}'):
            find_config(name)
