"""Tables and examples of the documents are up to date, and the examples train."""

import importlib.util
import re
import sys

import pytest
import torch
from mmengine.config import Config
from safetensors.torch import load_file

from mmpatchmix.cli.check_run import check_run
from mmpatchmix.cli.verb import build_runner
from mmpatchmix.files import list_recipes
from mmpatchmix.registry import MODELS
from tests.calls import call
from tests.docs.documents import ROOT
from tests.engine.tiny_run import tiny_run_config

EXAMPLES = sorted((ROOT / 'examples').glob('own_*.py'))


@pytest.fixture(scope='module')
def fill():
    spec = importlib.util.spec_from_file_location('fill', ROOT / 'docs/fill.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_documents_are_up_to_date(fill):
    recipes = (ROOT / 'docs/recipes.md').read_text()
    assert recipes == fill.fill(recipes), 'run python docs/fill.py'
    extend = (ROOT / 'docs/extend.md').read_text()
    changed = extend.replace('import timm', 'import anything', 1)
    assert extend == fill.fill(changed) != changed, 'run python docs/fill.py'


def test_every_config_is_in_the_table_with_its_figures():
    recipes = (ROOT / 'docs/recipes.md').read_text()
    rows = re.findall(r'^\| \[`([\w/-]+)`\]\(\S+\) \| (.*) \|$', recipes, re.MULTILINE)
    assert {name for name, _ in rows} == set(list_recipes())
    cells = {name: row.split(' | ') for name, row in rows}
    # Of the paper's table of recipes, not of our configs.
    assert cells['patchmix_vit-s_in1k'][1:8] == [
        '384 × 12, 12 heads, patch 16', 'ImageNet-1K', '2×224 + 8×96', '300', '1024', '0.002',
        'kNN 73.3, linear 77.4, fine-tuned 82.8',
    ]  # fmt: skip
    assert cells['coco/vitdet_vit-b_100e'][2:6] == ['COCO', '1024×1024', '100', '64']


def test_examples_are_short_and_shown_in_the_documents():
    assert all(len(path.read_text().splitlines()) <= 40 for path in EXAMPLES)
    shown = re.findall(r'<!-- file ([\w./]+) -->', (ROOT / 'docs/extend.md').read_text())
    assert set(shown) == {path.relative_to(ROOT).as_posix() for path in EXAMPLES}


def test_the_examples_train_together(tmp_path, monkeypatch):
    """One run with the backbone, the mixing and the evaluation of the three configs."""
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    backbone, mixing, evaluation = (
        Config.fromfile(ROOT / f'examples/own_{name}_digits.py')
        for name in ('backbone', 'mixing', 'evaluation')
    )
    cfg = tiny_run_config(tmp_path, epochs=1, num_images=16)
    cfg.model.backbone = dict(backbone.model.backbone, dims=(4, 4, 8, 12))
    cfg.model.data_preprocessor.mixing = mixing.model.data_preprocessor.mixing
    cfg.default_hooks.clusters = evaluation.default_hooks.clusters
    cfg.train_cfg.val_interval = 1
    cfg.val_cfg.update(more_queries=None, pixel_baseline=False)
    runner = build_runner(cfg)
    check_run(runner)
    before = [parameter.detach().clone() for parameter in runner.model.backbone.parameters()]
    runner.train()
    assert type(runner.model.backbone) is sys.modules['own_backbone'].TimmFeatures
    after = runner.model.backbone.parameters()
    assert not any(map(torch.equal, before, after))
    agreement = runner.message_hub.get_scalar('val/clusters/agreement').current()
    assert -100 <= agreement <= 100


def test_bands_are_rows_of_the_images_in_turn(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    mix_bands = importlib.import_module('own_mixing').mix_bands
    images = torch.arange(3.0)[:, None, None, None].expand(3, 1, 8, 2)  # image n is n everywhere
    torch.manual_seed(0)
    mixed, shares = mix_bands(images, 2)
    first = int(mixed[0, 0, 0, 0])  # whose band comes first is drawn
    for n in range(3):
        expected = [(n + (band + first) % 2) % 3 for band in range(2) for _ in range(4)]
        assert mixed[n, 0, :, 0].tolist() == expected
    assert shares.tolist() == [0.5, 0.5]


def test_demos_on_scenes_are_complete_programs(monkeypatch, capsys):
    """Their networks are trained by the tests of the configs."""
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    for name in ('demo_coco', 'demo_ade20k'):
        monkeypatch.setattr(sys, 'argv', [name, '--help'])
        with pytest.raises(SystemExit) as end:
            importlib.import_module(name).main()
        assert end.value.code == 0 and '--checkpoint' in capsys.readouterr().out


def test_the_shipped_backbone_starts_the_detector_of_the_demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'examples'))
    demo = importlib.import_module('demo_coco')
    cfg = Config.fromfile(demo.DETECTOR).model.backbone
    cfg.init_cfg.checkpoint = str(demo.BACKBONE)
    backbone = MODELS.build(cfg)
    backbone.init_weights()
    loaded, shipped = backbone.state_dict(), load_file(demo.BACKBONE)
    kept = [name for name in shipped if name in loaded]
    assert len(kept) > 40
    assert all(torch.equal(loaded[name], shipped[name].float()) for name in kept)


@pytest.mark.program
def test_the_demo_compares_both_runs(tmp_path):
    folder = tmp_path / 'digits'
    text = call(sys.executable, 'examples/demo.py', '--epochs', '1', '--work-dir', folder)
    assert all(len(line) <= 100 for line in text.splitlines() if str(tmp_path) not in line)
    rows = dict(re.findall(r'^ *([a-z].*?)  +([\d.]+) %', text, re.MULTILINE))
    assert [*rows] == [
        'with mixing', 'without mixing', 'untrained network', 'raw pixels, no network',
    ]  # fmt: skip
    (gap,) = re.findall(r'Mixing adds ([-\d.]+) points', text)
    difference = float(rows['with mixing']) - float(rows['without mixing'])
    assert abs(float(gap) - difference) < 0.11  # all three are rounded
    assert 'epoch   1   kNN with mixing' in text and '1,437 images' in text
    for name in ('digits', 'digits_no_mixing'):
        for file in ('report.html', 'epoch_1.pth', 'mixed.png'):
            assert (tmp_path / name / file).is_file()
