"""The commands of the documents are valid; those of the quick start are run.

Of the others, which train for hours or need a data set or a cluster, every verb, config, option and
config key is checked.
"""

import argparse
import re
import runpy
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmpatchmix.__main__ import VERBS, main
from mmpatchmix.cli.config_checks import apply_options, check_config
from mmpatchmix.files import find_config
from mmpatchmix.registry import MODELS
from tests.docs.documents import DOCUMENTS, ROOT, read_commands

# Commands that are not checked, and why.
OTHERS = {
    'source': 'activates the environment',
    'ln': 'links a folder of the reader',
    'python -': 'text given to Python, which reads COCO',
    'python -c': 'unpickles a file of the reader in an environment of his',
    'python docs/fill.py': 'run by test_examples.py',
    'pip install lmdb': 'a package that is not ours',
    'pip install opencv-python-headless': 'a package that is not ours',
    'pip install --no-binary onedl-mmcv onedl-mmcv': 'compiles for 17 minutes',
}
# Fragments of commands are for any recipe; this one has all of the keys.
RECIPE = 'mmpatchmix train patchmix_vit-s_continue '
COMMANDS = [
    pytest.param(path, command, id=f'{path.stem}: {command[:60]}')
    for path in DOCUMENTS
    for command in dict.fromkeys(read_commands(path))
]


def expand(document, command):
    """Return the words of a command without environment variables, comments and brackets."""
    before = read_commands(document)
    before = before[: before.index(command)]
    if command.startswith('... --'):
        command = before[-1] + command[3:]
    if command.startswith('--cfg-options '):
        command = RECIPE + command
    for name, value in re.findall(r'^([A-Z]+)=(\S+)$', '\n'.join(before), re.MULTILINE):
        command = command.replace(f'${name}', value)
    if '[--' in command:  # what may be left out
        command = re.sub(r'\[(?=--)|\](?= |$)| \|(?= )', '', command)
    command = command.replace('...', '')
    words = shlex.split(command, comments=True)
    while words and re.match(r'\w+=', words[0]):
        words.pop(0)
    return words


def to_arguments(words):
    """Return verb and arguments of a command of ours, or None."""
    match words:
        case ['mmpatchmix', *arguments] | ['python', '-m', 'mmpatchmix', *arguments]:
            return arguments
        case ['python', 'tools/train.py' | 'tools/test.py' as tool, *arguments]:
            return [Path(tool).stem, *arguments]
        case ['bash', 'tools/dist_train.sh', config, ranks, *arguments] if ranks.isdigit():
            return ['train', config, *arguments]
        case ['bash', 'tools/dist_test.sh', config, file, ranks, *arguments] if ranks.isdigit():
            return ['test', config, file, *arguments]
        case ['bash', 'tools/slurm_train.sh', _, _, config, work_dir, *arguments]:
            return ['train', config, '--work-dir', work_dir, *arguments]
        case ['bash', 'tools/torchrun.sh', _, '-m', 'mmpatchmix', *arguments]:
            return arguments
        case ['torchrun', '--nproc_per_node', _, '-m', 'mmpatchmix', *arguments]:
            return arguments
    return None


def check_arguments(arguments):
    """Parse the arguments, find the config, and apply the options to it."""
    assert not arguments or arguments[0] in VERBS
    if len(arguments) < 2:
        return  # the verb is only named
    for index, word in enumerate(arguments):
        if re.fullmatch(r'[\w-]+(\|[\w-]+)+', word):
            for choice in word.split('|'):
                check_arguments([*arguments[:index], choice, *arguments[index + 1 :]])
            return
    verb = import_module(f'mmpatchmix.cli.{arguments[0].replace("-", "_")}')
    args = verb.parse_args(arguments[1:])
    for key in ('config', 'finetune'):
        name = getattr(args, key, None) or 'NAME'
        path = None if name.isupper() else find_config(name)
        options = [text for text in getattr(args, 'cfg_options', []) if text != 'KEY=VALUE']
        if path and options and key == 'config':
            cfg = Config.fromfile(path)
            apply_options(cfg, options)
            check_config(cfg)


def check_script(script, arguments, monkeypatch):
    """Run a script of benchmarks/ or examples/ until it has parsed its arguments."""
    parse = argparse.ArgumentParser.parse_args

    def stop(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        sys.exit('parsed')

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [script, *arguments])
    monkeypatch.syspath_prepend(str((ROOT / script).parent))
    with pytest.raises(SystemExit, match='parsed'):
        runpy.run_path(str(ROOT / script), run_name='__main__')


@pytest.mark.parametrize(('document', 'command'), COMMANDS)
def test_command_is_valid(document, command, monkeypatch):
    if any(command.startswith(other) for other in OTHERS) or re.fullmatch(r'[A-Z]+=\S+', command):
        return
    words = expand(document, command)
    match words:
        case ['make', target, *settings]:
            lines = (ROOT / 'Makefile').read_text().splitlines()
            starts = [f'{target}:', *(f'{setting.partition("=")[0]} ?=' for setting in settings)]
            assert all(any(line.startswith(start) for line in lines) for start in starts)
        case ['pip', 'install', package]:
            extra = re.fullmatch(r'(?:\.|mmpatchmix)(?:\[(\w+)\])?', package)[1]
            assert extra is None or f"'{extra}': " in (ROOT / 'setup.py').read_text()
        case ['pytest', *arguments]:
            for argument in arguments:
                path, _, name = argument.partition('::')
                assert argument.startswith('-') or f'def {name}' in (ROOT / path).read_text()
        case ['python', script, *arguments] if script.startswith(('benchmarks/', 'examples/')):
            check_script(script, arguments, monkeypatch)
        case _:
            arguments = to_arguments(words)
            assert arguments is not None, f'{words}: neither a tool of ours nor among OTHERS'
            check_arguments(arguments)


def test_exceptions_are_used_and_mistakes_are_found():
    commands = [command.values[1] for command in COMMANDS]
    for other in OTHERS:
        assert any(command.startswith(other) for command in commands), other
    assert len(commands) > 100
    for wrong in (
        ['trian', 'CONFIG'],
        ['train', 'patchmix_vit-s_none', '--dry-run'],
        ['train', 'CONFIG', '--dry-rum'],
        ['train', 'patchmix_vit-s_folder', '--cfg-options', 'model.head.temprature=1'],
    ):
        with pytest.raises((AssertionError, FileNotFoundError, SystemExit, ValueError)):
            check_arguments(wrong)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A folder with the reader's images, and a toy recipe under the name of the folder recipe."""
    folder = tmp_path_factory.mktemp('reader')
    work_dir = folder / 'work_dirs/patchmix_vit-s_folder'
    work_dir.mkdir(parents=True)
    config = folder / 'patchmix_vit-s_folder.py'
    config.write_text(f"""
_base_ = '{ROOT}/configs/patchmix_vit-s_folder.py'
arch = dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
)
few = dict(num_workers=0, persistent_workers=False, dataset=dict(holdout=0.4))  # of 6 images
train_dataloader = dict(few, batch_size=2)
val_dataloader = test_dataloader = few
val_cfg = test_cfg = dict(bank_dataloader=few)
""")
    cfg = Config.fromfile(config)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(state_dict=state, meta=dict(cfg=cfg.pretty_text)), work_dir / 'epoch_1.pth')
    generator = np.random.default_rng(0)
    for name in ('cats/1', 'cats/2', 'dogs/1', 'dogs/7', 'dogs/8', 'dogs/9'):
        path = folder / f'PATH/{name}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(path)
    return folder


def test_quick_start_commands_run(place, monkeypatch, capsys):
    """All but the training, in their order."""
    monkeypatch.chdir(place)
    run = []
    for command in [
        *read_commands(ROOT / 'docs/quick-start.md'),
        'mmpatchmix neighbours embedded --of cats/1.jpg dogs/7.jpg -k 10',  # of features.md
    ]:
        is_training = ' train ' in command and '--dry-run' not in command
        if not command.startswith('mmpatchmix ') or is_training:
            continue
        words = [f'{w}.py' if w == 'patchmix_vit-s_folder' else w for w in shlex.split(command)[1:]]
        assert not main(words), command
        run.append(words[0])
    assert run == ['stats', 'train', 'embed', 'neighbours', 'convert', 'neighbours']
    assert 'one step: loss' in capsys.readouterr().out
    for name in (
        'views.png', 'embedded/features.npy', 'embedded/near_duplicates.csv', 'vit.safetensors',
        'embedded/neighbours.png',
    ):  # fmt: skip
        assert (place / name).stat().st_size > 0, name
    assert np.load('embedded/features.npy').shape == (6, 12)
