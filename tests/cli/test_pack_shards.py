"""Shards hold the images of the folder, also after interrupted packing."""

import json
import multiprocessing
import os
import signal
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset
from mmengine.fileio import get

from mmpatchmix.cli.pack_shards import main
from mmpatchmix.datasets import ImageFolder, ShardedImages
from mmpatchmix.datasets import pack_shards as module
from mmpatchmix.datasets.pack_shards import pack_shards
from mmpatchmix.files import locked
from tests.datasets.any_images import as_png, as_tiff
from tests.datasets.folders import make_classes, make_folder


def pack(images, out, **settings) -> dict[str, str]:
    return pack_shards(images, out, say=str, **settings)


def read_shards(out: Path) -> dict[str, tuple[bytes, int]]:
    """Read tar files with tarfile: content and label by source."""
    found = {}
    for path in sorted(out.glob('*.tar')):
        with tarfile.open(path) as shard:
            files = {member.name: shard.extractfile(member).read() for member in shard}
        meta = json.loads(files.pop('__pack__'))
        labels = {name[:9]: int(files[name]) for name in files if name.endswith('.cls')}
        images = [name for name in files if not name.endswith('.cls')]
        for name, source in zip(images, meta['sources'], strict=True):
            found[source] = (files[name], labels.get(name[:9], -1))
    return found


def read_folder(root: Path) -> dict[str, tuple[bytes, int]]:
    found, folder = {}, ImageFolder(str(root))
    for info in map(folder.get_data_info, range(len(folder))):
        path = Path(info['img_path'])
        found[str(path.relative_to(root))] = (path.read_bytes(), info.get('gt_label', -1))
    return found


def digest(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob('*.tar')}


def test_shards_hold_what_the_folder_holds(tmp_path):
    images = make_classes(tmp_path / 'images', 9)
    make_folder(images, 'ant/a.b.png', 'ant/größe.PNG', 'bee/with space.jpeg')
    pack(images, tmp_path / 'out', per_shard=7, num_workers=2)
    assert sorted(digest(tmp_path / 'out')) == [f'images-00000{i}.tar' for i in range(5)]
    assert read_shards(tmp_path / 'out') == read_folder(images)
    dataset = ShardedImages(str(tmp_path / 'out'))
    assert dataset.metainfo['classes'] == ('ant', 'bee', 'cow')
    pattern = str(tmp_path / 'out/images-{000000..000004}.tar')
    samples = list(webdataset.WebDataset(pattern, shardshuffle=False, empty_check=False))
    assert len(samples) == len(dataset) == 30
    for index, sample in enumerate(samples):
        info = dataset.get_data_info(index)
        assert sample['__key__'] == f'{index:09d}' and int(sample['cls']) == info['gt_label']
    # The first shard has images of all classes.
    assert {int(sample['cls']) for sample in samples[:7]} == {0, 1, 2}


def test_files_of_other_endings_are_left_out_by_name(tmp_path):
    make_folder(tmp_path, 'a.png', 'b.png')
    (tmp_path / 'c.jfif').write_bytes((tmp_path / 'a.png').read_bytes())
    (tmp_path / 'list.txt').write_text('a.png\nb.png\nc.jfif\n')
    skipped = pack(tmp_path / 'list.txt', tmp_path / 'out')
    assert [*skipped] == ['c.jfif'] and 'shards hold files that end in .jpg' in skipped['c.jfif']
    assert len(ShardedImages(str(tmp_path / 'out'))) == 2


def test_the_images_held_out_are_those_of_the_folder(tmp_path):
    images = make_classes(tmp_path / 'images', 40)
    pack(images, tmp_path / 'out')
    for split in ('train', 'val'):
        contents = []
        for kind, root in ((ImageFolder, images), (ShardedImages, tmp_path / 'out')):
            data = kind(str(root), split=split, holdout=0.2)
            paths = (data.get_data_info(index)['img_path'] for index in range(len(data)))
            contents.append(sorted(map(get, paths)))
        assert contents[0] == contents[1] and 0 < len(contents[0]) < 120


def test_only_larger_images_are_resized(tmp_path):
    sizes = {(90, 60): (48, 32), (40, 100): (32, 80), (20, 30): (20, 30), (32, 50): (32, 50)}
    (tmp_path / 'images').mkdir()
    for before in sizes:
        image = np.full((*before, 3), (10, 100, 200), np.uint8)
        assert cv2.imwrite(str(tmp_path / f'images/{before}.png'), image)
    pack(tmp_path / 'images', tmp_path / 'out', size=32)
    found = read_shards(tmp_path / 'out')
    for before, after in sizes.items():
        content, _ = found[f'{before}.png']
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape[:2] == after
        assert np.abs(image.astype(int) - (10, 100, 200)).max() <= 3
        if before == after:
            assert content == (tmp_path / f'images/{before}.png').read_bytes()


def test_a_quality_encodes_all_images(tmp_path):
    images = make_folder(tmp_path / 'images', '1.jpg', '2.png')
    pack(images, tmp_path / 'out', quality=30)
    for name, (content, _) in read_shards(tmp_path / 'out').items():
        settings = [cv2.IMWRITE_JPEG_QUALITY, 30]
        expected = cv2.imencode('.jpg', cv2.imread(str(images / name)), settings)[1]
        assert content == expected.tobytes()


def test_images_that_no_jpeg_holds_are_left_out_or_copied(tmp_path):
    rng = np.random.default_rng(0)
    kinds = {
        'deep.png': rng.integers(0, 65536, (40, 50), np.uint16),
        'transparent.png': rng.integers(0, 256, (40, 50, 4), np.uint8),
        'bands.tif': rng.integers(0, 256, (40, 50, 5), np.uint8),
        'grey.png': np.full((40, 50), 90, np.uint8),
        'small.png': rng.integers(0, 65536, (20, 50), np.uint16),
    }
    (tmp_path / 'images').mkdir()
    for name, values in kinds.items():
        options = dict(photometric='minisblack', planarconfig='contig')
        content = as_tiff(values, **options) if name == 'bands.tif' else as_png(values)
        (tmp_path / 'images' / name).write_bytes(content)
    assert pack(tmp_path / 'images', tmp_path / 'copied') == {}
    assert read_shards(tmp_path / 'copied') == read_folder(tmp_path / 'images')
    skipped = pack(tmp_path / 'images', tmp_path / 'out', size=32)
    assert sorted(skipped) == ['bands.tif', 'deep.png', 'transparent.png']
    assert '5 channels of uint8 cannot be a JPEG' in skipped['bands.tif']
    assert '1 channel of uint16' in skipped['deep.png']
    found = read_shards(tmp_path / 'out')
    assert sorted(found) == ['grey.png', 'small.png']
    grey = cv2.imdecode(np.frombuffer(found['grey.png'][0], np.uint8), cv2.IMREAD_UNCHANGED)
    assert grey.shape == (32, 40) and np.abs(grey.astype(int) - 90).max() <= 2
    (tmp_path / 'images/grey.png').unlink(), (tmp_path / 'images/small.png').unlink()
    with pytest.raises(ValueError, match=r'none of the 3 images in .* can be packed, such as'):
        pack(tmp_path / 'images', tmp_path / 'none', size=32)


def test_damaged_images_are_left_out_by_name(tmp_path, capsys):
    images, names = make_classes(tmp_path / 'images', 5), ('ant/001.jpg', 'cow/gone.jpg')
    (images / names[0]).write_bytes(b'no image')
    (images / names[1]).symlink_to('nowhere')
    main([str(images), str(tmp_path / 'out'), '--per-shard', '4', '--workers', '0'])
    text = capsys.readouterr().out
    assert '14 of 16 images are in 4 shards' in text and '2 left out by this run' in text
    for name in names:
        assert f'left out: {name} (' in text
        (images / name).unlink()
    assert read_shards(tmp_path / 'out') == read_folder(images)
    with pytest.raises(SystemExit, match='there is no folder'):
        main([str(tmp_path / 'missing'), str(tmp_path / 'out')])


def kill_after(num_images: int, images: Path, out: Path) -> None:
    """Pack in a process that is killed in the middle of a shard."""

    def encode(sources, place, encode=module.Sources.__getitem__):
        if place == num_images:
            os.kill(os.getpid(), signal.SIGKILL)
        return encode(sources, place)

    def run():
        module.Sources.__getitem__ = encode
        pack(images, out, per_shard=5)

    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_run_continues_with_the_same_result(tmp_path):
    images, out = make_classes(tmp_path / 'images', 7), tmp_path / 'out'
    pack(images, tmp_path / 'whole', per_shard=5)
    for num_images, num_whole in ((3, 0), (13, 2)):
        kill_after(num_images, images, out)
        stamps = {path.name: path.stat().st_mtime_ns for path in out.glob('*.tar')}
        assert sorted(stamps) == [f'images-00000{i}.tar' for i in range(num_whole)]
    pack(images, out, per_shard=5)
    assert digest(out) == digest(tmp_path / 'whole')
    assert {name: (out / name).stat().st_mtime_ns for name in stamps} == stamps
    assert not list(out.glob('*.partial'))
    assert read_shards(out) == read_folder(images)


def test_another_packing_is_refused_with_the_difference(tmp_path):
    images = make_classes(tmp_path / 'images', 3)
    pack(images, tmp_path / 'out', per_shard=5)
    before = digest(tmp_path / 'out')
    with pytest.raises(ValueError, match=r'size: None before, 32 now\n  per_shard: 5 before'):
        pack(images, tmp_path / 'out', per_shard=6, size=32)
    make_folder(images, 'ant/more.jpg')
    with pytest.raises(ValueError, match='num_images: 9 before, 10 now'):
        pack(images, tmp_path / 'out', per_shard=5)
    assert digest(tmp_path / 'out') == before


def test_a_second_process_is_refused(tmp_path):
    images, out = make_classes(tmp_path / 'images', 1), tmp_path / 'out'
    message = f'{out} is in use by process {os.getpid()} on '
    fork = multiprocessing.get_context('fork')
    with locked(out), fork.Pool(1) as pool, pytest.raises(ValueError, match=message):
        pool.apply(pack, (images, out))


def test_a_shard_that_reads_back_differently_is_removed(tmp_path, monkeypatch):
    images = make_classes(tmp_path / 'images', 2)
    add = module._add

    def spoil(shard, name, content):
        add(shard, name, content[:-1] + b'?' if name == '000000003.jpg' else content)

    monkeypatch.setattr(module, '_add', spoil)
    with pytest.raises(OSError, match=r'images-000000\.tar\.partial reads back differently'):
        pack(images, tmp_path / 'out')
    assert not digest(tmp_path / 'out')


def test_wrong_arguments_are_refused(tmp_path):
    for name, value in dict(size=0, quality=101, per_shard=0).items():
        with pytest.raises(ValueError, match=f'{name}=.* is out of range'):
            pack(tmp_path, tmp_path / 'out', **{name: value})
    images = make_classes(tmp_path / 'images', 1)
    path = tmp_path / 'list.csv'
    path.write_text('images/ant/000.jpg,ant,train\nimages/bee/000.jpg,bee,val\n')
    with pytest.raises(ValueError, match='has splits: pack a list of each'):
        pack(path, tmp_path / 'out')
    with pytest.raises(ValueError, match=r'holds other files, and no pack.json'):
        pack(images, images)
