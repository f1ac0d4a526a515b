"""The verbs for unlabelled images: embed, neighbours, and evaluate without labels."""

import copy
import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from PIL import Image

from mmpatchmix.checkpoints.vit_spec import compare_with_run
from mmpatchmix.cli import embed, evaluate, neighbours, pack_shards, show

ROOT = Path(__file__).parents[2]

TEST_VIEW = 'test_dataloader.dataset.pipeline'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """Folder of a config with a toy network, a checkpoint and images; and the model."""
    folder = tmp_path_factory.mktemp('run')
    config = folder / 'tiny.py'
    config.write_text(f"""
_base_ = '{ROOT}/configs/patchmix_vit-s_folder.py'
arch = dict(embed_dims=12, num_layers=2, num_heads=2, feedforward_channels=24)
model = dict(
    backbone=dict(arch=arch),
    neck=dict(in_channels=12, hid_channels=16, out_channels=8),
    head=dict(predictor=dict(in_channels=8, hid_channels=16, out_channels=8)),
)
test_dataloader = dict(num_workers=0, persistent_workers=False)
""")
    cfg = Config.fromfile(config)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    (folder / 'work').mkdir()
    torch.save(dict(state_dict=model.state_dict()), folder / 'work' / 'epoch_1.pth')
    rng = np.random.default_rng(0)
    for name in ('cats/1.jpg', 'cats/2.jpg', 'dogs/1.jpg', 'dogs/2.jpg', 'dogs/3.jpg'):
        path = folder / 'images' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((80, 60)).save(path)
    (folder / 'images' / 'copy.jpg').write_bytes((folder / 'images/dogs/2.jpg').read_bytes())
    return folder, model


def call_embed(folder, out, *more, config='tiny.py'):
    embed.main([
        str(folder / config), str(folder / 'work'), '--data-root', str(folder / 'images'),
        '--work-dir', str(folder / 'log'), '--out', str(folder / out), *more,
    ])  # fmt: skip


@pytest.fixture(scope='module')
def embedded(run):
    folder, _ = run
    call_embed(folder, 'embedded')
    return folder / 'embedded'


def read(path):
    with open(path, encoding='utf-8', newline='') as file:
        return list(csv.reader(file))[1:]


def test_shards_have_the_features_of_their_images(run, embedded):
    folder, _ = run
    pack_shards.main([str(folder / 'images'), str(folder / 'shards')])
    embed.main([
        str(folder / 'tiny.py'), str(folder / 'work'), '--out', str(folder / 'of_shards'),
        '--work-dir', str(folder / 'log'), '--data-root', str(folder / 'shards'),
    ])  # fmt: skip
    (shard,) = (path.name for path in (folder / 'shards').glob('*.tar'))
    names = [f'{shard}: {number:09d}.jpg' for number in range(6)]
    assert [file for file, _ in read(folder / 'of_shards/files.csv')] == names
    expected, found = (np.load(path / 'features.npy') for path in (embedded, folder / 'of_shards'))
    expected, found = (rows[rows[:, 0].argsort()] for rows in (expected, found))
    np.testing.assert_allclose(found, expected, atol=1e-6)  # packed in another order


def test_features_are_those_of_the_momentum_backbone_on_the_test_view(run, embedded):
    folder, model = run
    files = [file for file, _ in read(embedded / 'files.csv')]
    assert files == [
        'cats/1.jpg', 'cats/2.jpg', 'copy.jpg', 'dogs/1.jpg', 'dogs/2.jpg', 'dogs/3.jpg',
    ]  # fmt: skip
    images = []
    for file in files:  # the test view, by PIL alone
        image = Image.open(folder / 'images' / file).resize((341, 256), Image.Resampling.BICUBIC)
        images.append(np.asarray(image.crop((58, 16, 282, 240)), np.float32))
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    pixels = torch.from_numpy((np.stack(images) - mean) / std).float().permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model.eval().momentum_encoder.backbone(pixels)[-1]
    features = np.load(embedded / 'features.npy')
    assert features.shape == (6, 12)
    # JPEG decoders differ by a grey level or so; the images differ by far more.
    assert np.abs(features - expected.numpy()).max() < 0.05 * np.ptp(features, axis=0).max()
    about = json.loads((embedded / 'about.json').read_text())
    assert (about['num_images'], about['width'], about['patch_tokens']) == (6, 12, 0)
    assert about['root'] == str(folder / 'images')


def test_patch_tokens_are_written_beside_the_same_features(run, embedded):
    with pytest.raises(SystemExit, match='exists already; remove it or choose another --out'):
        call_embed(run[0], 'embedded')
    call_embed(run[0], 'tokens', '--patch-tokens')
    tokens = np.load(run[0] / 'tokens' / 'patch_tokens.npy', mmap_mode='r')
    assert tokens.shape == (6, 196, 12)
    alone = np.load(embedded / 'features.npy')
    assert np.allclose(np.load(run[0] / 'tokens' / 'features.npy'), alone, atol=1e-4)


def test_a_recipe_that_reads_no_folder_embeds_one(tmp_path):
    config = ROOT / 'configs/patchmix_vit-digits.py'
    state = MODELS.build(Config.fromfile(config).model).state_dict()
    (tmp_path / 'work').mkdir()
    torch.save(dict(state_dict=state), tmp_path / 'work/epoch_1.pth')
    (tmp_path / 'images').mkdir()
    Image.new('RGB', (32, 32)).save(tmp_path / 'images/0.png')
    call_embed(tmp_path, 'out', config=config)
    width = state['momentum_encoder.backbone.cls_token'].shape[-1]
    assert np.load(tmp_path / 'out' / 'features.npy').shape == (1, width)


def cosines(embedded):
    features = np.load(embedded / 'features.npy').astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features @ features.T


def test_neighbours_of_named_images(run, embedded, capsys, tmp_path):
    folder, _ = run
    path = str(folder / 'images' / 'cats' / '1.jpg')
    neighbours.main([str(embedded), '--of', 'dogs/2.jpg', path, '-k', '3', '--out', str(tmp_path)])
    files = [file for file, _ in read(embedded / 'files.csv')]
    rows = read(tmp_path / 'neighbours.csv')
    assert [row[0] for row in rows] == ['dogs/2.jpg'] * 3 + ['cats/1.jpg'] * 3
    for name in ('dogs/2.jpg', 'cats/1.jpg'):
        index = files.index(name)
        similar = cosines(embedded)[index]
        nearest = np.sort(np.delete(similar, index))[::-1][:3]
        found = [row[1:] for row in rows if row[0] == name]
        # By value: rounding decides which of two copies comes first.
        assert len({name, *(file for file, _ in found)}) == 4
        assert np.allclose([similar[files.index(file)] for file, _ in found], nearest, atol=1e-5)
        assert np.allclose([float(c) for _, c in found], nearest, atol=1e-5)
    assert rows[0][1] == 'copy.jpg'
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['dogs/2.jpg', 'copy.jpg', f'{float(rows[0][2]):.4f}'] in lines
    with Image.open(tmp_path / 'neighbours.png') as sheet:
        first, copy = (np.asarray(sheet.crop((x, 4, x + 112, 116)), int) for x in (4, 120))
    assert np.array_equal(first, copy) and first.std() > 10  # the image and its copy, not blank


def test_queries_of_another_embedding(run, embedded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the log goes to work_dirs/
    folder, _ = run
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'x.jpg').write_bytes((folder / 'images/dogs/3.jpg').read_bytes())
    embed.main([
        str(folder / 'tiny.py'), str(folder / 'work'), '--data-root', str(tmp_path / 'new'),
        '--out', str(tmp_path / 'queries'),
    ])  # fmt: skip
    neighbours.main([str(tmp_path / 'queries'), '--of', 'x.jpg'])
    assert read(tmp_path / 'queries' / 'neighbours.csv') == []  # of one image
    neighbours.main([str(embedded), '--queries', str(tmp_path / 'queries'), '-k', '1',
                     '--out', str(tmp_path / 'out')])  # fmt: skip
    ((file, neighbour, cosine),) = read(tmp_path / 'out' / 'neighbours.csv')
    assert (file, neighbour) == ('x.jpg', 'dogs/3.jpg') and float(cosine) == pytest.approx(1)
    about = json.loads((tmp_path / 'queries' / 'about.json').read_text())
    about['digests']['checkpoint'] = 'another'
    (tmp_path / 'queries' / 'about.json').write_text(json.dumps(about))
    with pytest.raises(SystemExit, match='different checkpoint: their features cannot'):
        neighbours.main([str(embedded), '--queries', str(tmp_path / 'queries')])


@pytest.mark.parametrize(
    ('recipe', 'key', 'value', 'message'),
    [
        ('folder', 'model.backbone.arch', 'deit-small', '6 att.* the config has 12'),
        ('folder', 'model.data_preprocessor.mean', [1, 2, 3], r'the mean \(1.0, 2.0, 3.0\), and'),
        ('folder', 'model.data_preprocessor.std', [1, 2, 3], r'the std \(1.0, 2.0, 3.0\), and'),
        ('any', f'{TEST_VIEW}.0.value_range', '0,4095', "'0,4095' of .* the config has .*'dtype'"),
    ],
)
def test_other_preprocessing_than_in_training_is_found(recipe, key, value, message, tmp_path):
    cfg = Config.fromfile(f'configs/patchmix_vit-s_{recipe}.py')
    run = copy.deepcopy(cfg)
    run.merge_from_dict({key: value})
    for name, text in (('run', run.pretty_text), ('same', cfg.pretty_text), ('none', None)):
        torch.save(dict(state_dict=dict(x=torch.ones(1)), meta=dict(cfg=text)), tmp_path / name)
    difference = compare_with_run(str(tmp_path / 'run'), cfg.pretty_text)
    assert re.search(f'was trained with .*{message}', difference)
    for name in ('same', 'none'):
        assert compare_with_run(str(tmp_path / name), cfg.pretty_text) == ''


def test_verbs_refuse_other_means_than_in_training(run, tmp_path):
    folder, model = run
    cfg = Config.fromfile(folder / 'tiny.py')
    cfg.model.data_preprocessor.mean = [0.0, 0.0, 0.0]
    checkpoint = dict(state_dict=model.state_dict(), meta=dict(cfg=cfg.pretty_text))
    torch.save(checkpoint, tmp_path / 'epoch_1.pth')
    config, other = str(folder / 'tiny.py'), str(tmp_path / 'epoch_1.pth')
    common = ['--data-root', str(folder / 'images'), '--work-dir', str(tmp_path)]
    with pytest.raises(SystemExit, match='was trained with the mean'):
        embed.main([config, other, '--out', str(tmp_path / 'x'), *common])
    with pytest.raises(SystemExit, match='was trained with the mean'):
        show.main(['similar', config, str(folder / 'work'), other, *common])  # the second of two


def test_wrong_arguments_are_refused(embedded, tmp_path):
    for folder, arguments, message in (
        (embedded, ['--of', 'dogs/22.jpg'], 'dogs/22.jpg is not in the embedding'),
        (embedded, ['--of', 'cats/1.jpg', '-k', '0'], 'at least 1 neighbour'),
        (embedded, ['--near-duplicates', '97'], 'cosine'),
        (tmp_path / 'none', ['--near-duplicates', '0.9'], 'there is no embedding'),
    ):
        with pytest.raises(SystemExit, match=message):
            neighbours.main([str(folder), *arguments])


def test_unlabelled_images_are_evaluated(run, tmp_path, capsys):
    folder, _ = run
    command = [
        str(folder / 'tiny.py'), str(folder / 'work'), '--data-root', str(folder / 'images'),
        '--workers', '0', '--work-dir', str(tmp_path),
    ]  # fmt: skip
    evaluate.main(command)
    metrics = json.loads((tmp_path / 'evaluation.json').read_text())['metrics']
    assert not any('knn' in name or 'linear' in name for name in metrics)
    # Bank and queries are the same images: their features are extracted once.
    assert [path.name for path in (tmp_path / 'features').iterdir()] == ['bank.safetensors']
    assert 1 < metrics['geometry/rank_me'] <= 6 and metrics['geometry/lidar_images'] == 6
    assert 1 < metrics['geometry/lidar'] <= 5 and 0 < metrics['geometry/alignment'] < 4
    text = capsys.readouterr().out
    assert 'RankMe, of 12 dimensions' in text and 'LiDAR, of 12 dimensions, 6 images' in text
    (tmp_path / 'similarity.png').write_bytes(b'of an earlier checkpoint')
    evaluate.main([*command, '--what', 'geometry'])
    assert not (tmp_path / 'similarity.png').exists()
