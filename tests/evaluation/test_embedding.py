"""Features on disk equal those in memory, after interruptions and on several ranks, too."""

import json
import os
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import default_collate
from mmpretrain.registry import MODELS
from PIL import Image
from test_features import Numbers, Sums, expected_features, make_loader, on_two_ranks
from torch.utils.data import DataLoader

from mmpatchmix.cli import neighbours
from mmpatchmix.datasets import ImageFolder
from mmpatchmix.evaluation import embedding
from mmpatchmix.evaluation.embedding import embed, read_embedding
from tests.calls import SERVER

# The last one is not UTF-8 and has a line break.
NAMES = ['a.png', 'b, c.png', 'no.png', 'sub/d.png', os.fsdecode('sub/é '.encode() + b'\xff\n.png')]
ABOUT = dict(digests=dict(checkpoint='a'))
WIDE = 8192


class Wide(Sums):
    """Features of 32 kB."""

    def extract_feat(self, inputs):
        return inputs.float().mean(dim=(1, 2, 3))[:, None].expand(-1, WIDE) + torch.arange(WIDE)


class Counting(Sums):
    """Stores which images it sees; after a number of them it calls a function."""

    def __init__(self, most=None, function=None):
        super().__init__()
        self.seen, self.most, self.function = [], most, function

    def extract_feat(self, inputs):
        if len(self.seen) == self.most:
            self.function()
        self.seen += inputs[:, 0, 0, 0].tolist()
        return super().extract_feat(inputs)


def write_embeddings(folder):
    """Record the peak memory in MiB after 250 and after 2,000 images; then die in the next."""
    peaks = []
    for size in (250, 2000):
        embed(Wide(), make_loader(Numbers(size), batch_size=50), folder / f'{size}', {})
        peak = re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())
        peaks.append(int(peak[1]) / 1024)
    (folder / 'peaks.json').write_text(json.dumps(peaks))
    embedding._SYNC_SECONDS = 0
    dying = Counting(13, lambda: os._exit(9))  # the first image is seen twice
    embed(dying, make_loader(Numbers(23)), folder / 'cut', ABOUT)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """A folder with embeddings of a process that died in the last one."""
    folder = tmp_path_factory.mktemp('written')
    process = SERVER.Process(target=write_embeddings, args=(folder,))
    process.start()
    process.join()
    assert process.exitcode == 9
    return folder


def test_memory_does_not_grow_with_the_images(written):
    features = np.load(written / '2000' / 'features.npy', mmap_mode='r')
    assert features.shape == (2000, WIDE) and features.nbytes > 60 * 2**20
    assert features[1234, 3] == 1234 % 256 + 3
    few, many = json.loads((written / 'peaks.json').read_text())
    assert many - few < 8


def _continue_on_rank(rank, folder):
    model = Counting()
    embed(model, make_loader(Numbers(23), batch_size=3), folder / 'cut', ABOUT)
    with pytest.raises(FileExistsError, match='exists already'):  # on both
        embed(model, make_loader(Numbers(23)), folder / 'cut', ABOUT)
    torch.save(model.seen, folder / f'seen-{rank}.pt')


def test_a_killed_run_continues_on_two_ranks(written):
    with pytest.raises(FileNotFoundError, match=r'cut\.partial is not finished'):
        read_embedding(written / 'cut')
    on_two_ranks(_continue_on_rank, written)
    assert np.allclose(read_embedding(written / 'cut').features, expected_features(23))
    seen = [torch.load(written / f'seen-{rank}.pt') for rank in range(2)]
    # Image 0 gives the shape (twice: the second embed() fails only then); 12 were done.
    assert all(each[:1] == each[-1:] == [0] for each in seen)
    assert sorted(seen[0][1:-1] + seen[1][1:-1]) == list(range(12, 23))
    assert len(seen[0]) > 5 and len(seen[1]) > 5
    assert sorted(path.name for path in (written / 'cut').iterdir()) == [
        'about.json', 'features.npy', 'files.csv',
    ]  # fmt: skip


def test_an_interrupted_run_keeps_its_rows_and_a_full_disk_raises(tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    interrupted = Counting(9, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        embed(interrupted, make_loader(Numbers(11)), tmp_path / 'x', ABOUT)
    with pytest.raises(ValueError, match=r'x\.partial was begun with other digests: remove it'):
        embed(Sums(), make_loader(Numbers(11)), tmp_path / 'x', dict(digests=1))
    again = Counting()
    assert embed(again, make_loader(Numbers(11), batch_size=2), tmp_path / 'x', ABOUT) == 0
    assert again.seen == [0, 8, 9, 10]
    assert np.allclose(read_embedding(tmp_path / 'x').features, expected_features(11))
    free = SimpleNamespace(free=11 * 2 * 4)
    monkeypatch.setattr(embedding.shutil, 'disk_usage', lambda path: free)
    with pytest.raises(ValueError, match=r'would take 0\.0 GiB, and 0\.0 GiB are free'):
        embed(Sums(), make_loader(Numbers(11)), tmp_path / 'y', ABOUT)


@pytest.fixture
def photos(tmp_path):
    """Five files, the third of which is no image."""
    (tmp_path / 'images' / 'sub').mkdir(parents=True)
    for index, name in enumerate(NAMES):
        path = tmp_path / 'images' / name
        Image.new('RGB', (8, 8), (40 * index, 10, 20)).save(path)
    (tmp_path / 'images' / 'no.png').write_bytes(b'no image')
    return ImageFolder(
        str(tmp_path / 'images'), labels=False, max_unreadable=1.0, test_mode=True,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='mmpretrain.PackInputs')],
    )  # fmt: skip


def folder_loader(data, num_workers=0):
    return DataLoader(data, 2, collate_fn=default_collate, num_workers=num_workers)


@pytest.mark.parametrize('num_workers', [0, 1])
def test_rows_have_file_names_and_unreadable_files_are_marked(
    photos, tmp_path, capsys, num_workers
):
    assert embed(Sums(), folder_loader(photos, num_workers), tmp_path / 'x', ABOUT) == 1
    text = (tmp_path / 'x' / 'files.csv').read_bytes()
    assert text.startswith(b'file,readable\r\na.png,1\r\n"b, c.png",1\r\nno.png,0\r\n')
    assert text.endswith('"sub/é '.encode() + b'\xff\n.png",1\r\n')  # the bytes of the name
    features = np.load(tmp_path / 'x' / 'features.npy')
    means = np.array([(40 * index + 30) / 3 for index in (0, 1, 3, 4)])
    assert np.allclose(features[[0, 1, 3, 4], 0], means, atol=1e-3)
    assert np.isnan(features[2]).all()
    found = read_embedding(tmp_path / 'x')
    assert found.files == NAMES
    assert found.readable.tolist() == [True, True, False, True, True]
    assert found.about['root'] == str(tmp_path / 'images')
    neighbours.main([str(tmp_path / 'x'), '--near-duplicates', '0.9'])
    assert 'sub/é \\udcff\\n.png' in capsys.readouterr().out
    table = (tmp_path / 'x' / 'near_duplicates.csv').read_bytes()
    assert b'a.png,"' + os.fsencode(NAMES[4]) + b'",1.0' in table
    assert (tmp_path / 'x' / 'near_duplicates.png').is_file()


def test_patch_tokens_are_those_of_the_vit(photos, tmp_path):
    arch = dict(embed_dims=8, num_layers=2, num_heads=2, feedforward_channels=16)
    backbone = dict(type='mmpretrain.VisionTransformer', arch=arch, img_size=8, patch_size=4)
    preprocessor = dict(type='mmpretrain.ClsDataPreprocessor')
    model = dict(type='mmpretrain.ImageClassifier', data_preprocessor=preprocessor)
    model = MODELS.build(dict(model, backbone=backbone))
    model.init_weights()
    model.eval()
    pixels = torch.stack([photos[index]['inputs'] for index in (0, 1, 3, 4)]).float()
    with torch.no_grad():
        model.backbone.out_type = 'raw'
        expected = model.backbone(pixels)[-1].numpy()  # (4, 1 + 4, 8)
        model.backbone.out_type = 'cls_token'
    embed(model, folder_loader(photos), tmp_path / 'x', ABOUT, patch_tokens=True)
    tokens = np.load(tmp_path / 'x' / 'patch_tokens.npy', mmap_mode='r')
    assert tokens.shape == (5, 4, 8) and tokens.dtype == np.float16
    assert np.allclose(tokens[[0, 1, 3, 4]], expected[:, 1:], atol=2e-3)
    features = np.load(tmp_path / 'x' / 'features.npy')
    assert np.allclose(features[[0, 1, 3, 4]], expected[:, 0], atol=1e-5)
    model.backbone.out_type = 'avg_featmap'
    with pytest.raises(ValueError, match='a norm of their own'):
        embed(model, folder_loader(photos), tmp_path / 'y', ABOUT, patch_tokens=True)
    with pytest.raises(ValueError, match='no ViT of mmpretrain: no patch tokens'):
        embed(Sums(), folder_loader(photos), tmp_path / 'y', ABOUT, patch_tokens=True)
