"""Annotation files of mmpretrain's form, with damaged images among good ones, as a user trains."""

import pytest

from mmpatchmix.cli import train
from mmpatchmix.datasets import CustomDataset
from tests.datasets.folders import PIPELINE, make_folder

NAMES = [f'photos/{number:02d}.jpg' for number in range(20)]
CONFIG = """
_base_ = '{root}/configs/patchmix_vit-s_folder.py'
arch = dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)
model = dict(
    backbone=dict(arch=arch, img_size=32),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
)
crops = dict(type='mmpatchmix.LoadMultiCrop', global_size=32, local_size=16, num_local=0)
train_dataloader = dict(
    batch_size=4, num_workers=1, persistent_workers=False, collate_fn=dict(type='default_collate'),
    dataset=dict(
        _delete_=True, type='{type}', data_root='{data_root}', ann_file='train.txt',
        data_prefix='photos', pipeline=[crops, dict(type='mmpatchmix.PackViews')],
    ),
)
val_dataloader = val_cfg = val_evaluator = test_dataloader = test_cfg = test_evaluator = None
"""


@pytest.fixture
def images(tmp_path):
    """A folder of 20 images and a list of them with labels; one is empty, one cut off."""
    folder = tmp_path / 'images'
    make_folder(folder, *NAMES)
    (folder / NAMES[3]).write_bytes(b'')
    content = (folder / NAMES[7]).read_bytes()
    (folder / NAMES[7]).write_bytes(content[: len(content) // 8])
    lines = [f'{name.removeprefix("photos/")} {number % 2}' for number, name in enumerate(NAMES)]
    (folder / 'train.txt').write_text('\n'.join(lines))
    return folder


def write_config(tmp_path, pytestconfig, **settings):
    path = tmp_path / 'mine.py'
    path.write_text(CONFIG.format(root=pytestconfig.rootpath, **settings))
    return str(path)


def test_a_run_goes_on_and_counts_them(images, tmp_path, pytestconfig, capsys):
    settings = dict(type='mmpatchmix.CustomDataset', data_root='elsewhere')
    config = write_config(tmp_path, pytestconfig, **settings)
    work_dir = tmp_path / 'run'
    arguments = [config, '--data-root', str(images), '--epochs', '2', '--work-dir', str(work_dir)]
    train.main(arguments)
    assert (work_dir / 'epoch_2.pth').is_file()
    said = capsys.readouterr()
    assert '2 unreadable images were skipped' in said.out + said.err
    assert 'ends at the first one' not in said.out + said.err


def test_that_of_mmpretrain_is_pointed_out(images, tmp_path, pytestconfig, capsys):
    for name in (NAMES[3], NAMES[7]):
        (images / name).write_bytes((images / NAMES[0]).read_bytes())
    config = write_config(tmp_path, pytestconfig, type='CustomDataset', data_root=images)
    train.main([config, '--dry-run', '--work-dir', str(tmp_path / 'run')])
    said = capsys.readouterr()
    assert "type='mmpatchmix.CustomDataset' skips and counts them" in said.out + said.err


def test_more_than_the_limit_stop(images):
    settings = dict(data_root=str(images), ann_file='train.txt', data_prefix='photos')
    dataset = CustomDataset(**settings, pipeline=PIPELINE, max_unreadable=0)
    assert [dataset.get_data_info(n)['gt_label'] for n in range(4)] == [0, 1, 0, 1]
    assert dataset.prepare_data(0) is not None
    with pytest.raises(ValueError, match=r'1 of 20 images cannot be read'):
        dataset.prepare_data(3)
    with pytest.raises(ValueError, match=r'max_unreadable must be in \[0, 1\]; got 2'):
        CustomDataset(**settings, max_unreadable=2)
