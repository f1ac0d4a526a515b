"""Configs run in mmengine's Runner and upstream's tools, in processes without an import of ours."""

import re
import sys
from pathlib import Path

import cv2
import mmdet
import mmpretrain
import numpy as np
import pytest
import torch

from examples.digit_scenes import write_digit_scenes
from tests.calls import ROOT, call
from tests.faults.processes import free_port

pytestmark = pytest.mark.program
CONFIGS = {
    'mmpretrain': [*ROOT.glob('configs/*.py'), *ROOT.glob('configs/[fl]*/*.py')],
    'mmdet': [*ROOT.glob('configs/coco/*.py')],
    'mmseg': [*ROOT.glob('configs/ade20k/*.py')],
}
UPSTREAM = {
    module.__name__: Path(module.__path__[0], '.mim/tools') for module in (mmpretrain, mmdet)
}

# Configs of a user that inherit from the shipped ones.
DIGITS = """
_base_ = '{root}/configs/patchmix_vit-digits.py'
train_dataloader = dict(batch_size=32, dataset=dict(indices=128))
val_dataloader = test_dataloader = dict(dataset=dict(indices=64))
val_cfg = test_cfg = dict(bank_dataloader=dict(dataset=dict(indices=64)))
train_cfg = dict(max_epochs=1)
default_hooks = dict(report=dict(evaluate_untrained=False, pictures=False))
env_cfg = dict(dist_cfg=dict(timeout=100))
"""
SCENES = """
_base_ = '{root}/configs/coco/mask-rcnn_vit-digits_scenes.py'
train_dataloader = dict(batch_size=2, dataset=dict(data_root='{data}'))
val_dataloader = test_dataloader = dict(batch_size=2, dataset=dict(data_root='{data}'))
val_evaluator = test_evaluator = dict(ann_file='{data}/annotations/instances_val.json')
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(report=dict(evaluate_untrained=False, pictures=False))
"""


def run(folder, *command, **env):
    """Run a command in a folder, on CPUs only, and return its output."""
    return call(*command, cwd=folder, CUDA_VISIBLE_DEVICES='-1', PYTHONPATH=ROOT, **env)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('scenes')
    write_digit_scenes(folder, num_train=4, num_val=4)
    return folder


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp('images')
    for name in ('train/a/0', 'train/a/1', 'train/b/0', 'train/b/1', 'val/a/0', 'val/b/0'):
        path = folder / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        # 32 pixels: the recipe of pieces of ink does not crop.
        cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    return folder


@pytest.mark.parametrize('scope', CONFIGS)
def test_every_config_runs_in_a_plain_runner(scope, images, scenes, tmp_path):
    script = ROOT / 'tests/plain_runner.py'
    command = (sys.executable, script, images, scenes, tmp_path, *CONFIGS[scope])
    text = run(tmp_path, *command, PATCHMIX_IMG_SIZE=32)
    assert re.findall(r'^BUILT (.*)', text, re.M) == [str(path) for path in CONFIGS[scope]]
    ran = [Path(path).name for path in re.findall(r'^RAN (.*) 1$', text, re.M)]
    assert len(ran) >= (2 if scope == 'mmseg' else 3)


def test_mmpretrains_own_tools_train_on_two_processes(tmp_path):
    (tmp_path / 'mine.py').write_text(DIGITS.format(root=ROOT))
    tools = UPSTREAM['mmpretrain']
    run(tmp_path, 'bash', tools / 'dist_train.sh', 'mine.py', 2, PORT=free_port())
    path = tmp_path / 'work_dirs/mine/epoch_1.pth'
    meta = torch.load(path, weights_only=False)['meta']
    assert meta['iter'] == 128 // 32 // 2  # the processes share the images


def test_mmdets_own_tools_train_and_test(scenes, tmp_path):
    (tmp_path / 'mine.py').write_text(SCENES.format(root=ROOT, data=scenes))
    run(tmp_path, 'python', UPSTREAM['mmdet'] / 'train.py', 'mine.py')
    checkpoint = tmp_path / 'work_dirs/mine/epoch_1.pth'
    # This tool imports mmdet before it reads a config, which fails without mmcv's compiled ops or
    # with transformers 5.
    code = (
        'import runpy, sys, mmpatchmix.registry\n'
        'sys.argv.pop(0)\n'
        'runpy.run_path(sys.argv[0], run_name="__main__")\n'
    )
    text = run(tmp_path, 'python', '-c', code, UPSTREAM['mmdet'] / 'test.py', 'mine.py', checkpoint)
    assert 'coco/segm_mAP: ' in text
