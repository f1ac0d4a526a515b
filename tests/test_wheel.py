"""What `pip install` brings along: the command, the recipes and the tools."""

import shutil
import sys
import zipfile
from email.parser import Parser

import pytest
import yaml

from tests.calls import ROOT, call


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of this tree, built without a network."""
    folder = tmp_path_factory.mktemp('wheel')
    left_out = shutil.ignore_patterns(
        '.*', 'work_dirs', 'build', 'data', '*.egg-info', '__pycache__'
    )
    shutil.copytree(ROOT, folder / 'source', ignore=left_out)
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--quiet']
    call(*command, '--wheel-dir', folder, folder / 'source')
    (path,) = folder.glob('*.whl')
    return path


def test_the_wheel_holds_every_recipe_and_tool_and_the_command(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith('/entry_points.txt'))
        assert 'mmpatchmix = mmpatchmix.__main__:main' in archive.read(entry_points).decode()
        (metadata,) = (name for name in names if name.endswith('.dist-info/METADATA'))
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert fields['License-Expression'] == 'Apache-2.0' and fields['Keywords']
    assert 'Typing :: Typed' in fields.get_all('Classifier')
    assert 'Paper, https://arxiv.org/abs/2306.12243' in fields.get_all('Project-URL')
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert fields['Version'] == citation['version']
    configs = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('configs/**/*.py')}
    tools = {f'tools/{name}' for name in ('train.py', 'test.py', 'dist_train.sh', 'torchrun.sh')}
    assert len(configs) > 40
    assert {f'mmpatchmix/.mim/{name}' for name in configs | tools} <= names
    data = ('convert/model_card.md.jinja', 'py.typed', 'report/report.html.jinja')
    assert {f'mmpatchmix/{name}' for name in data} <= names
    assert not any(name.startswith('tests/') for name in names)


@pytest.mark.program
def test_a_recipe_runs_by_its_name_from_an_empty_folder(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'installed')
    empty = tmp_path / 'empty'
    empty.mkdir()
    command = [sys.executable, '-m', 'mmpatchmix', 'train', 'patchmix_vit-digits', '--dry-run']
    text = call(*command, cwd=empty, PYTHONPATH=tmp_path / 'installed')
    assert 'Everything builds and trains; no run was written.' in text
    assert 'OneDL' not in text
    assert list(empty.iterdir()) == []
