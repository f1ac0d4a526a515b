"""Damage of checkpoints is detected, and the newest undamaged one is found."""

import os
import random
import zipfile

import pytest
import torch

from mmpatchmix.checkpoints.sealing import find_good_checkpoint, seal
from mmpatchmix.compat.file_kinds import find_damage
from mmpatchmix.files import write_text


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'epoch_1.pth'
    torch.save({'weights': torch.arange(300.0), 'meta': {'epoch': 1}}, path)
    return path


def test_a_sealed_file_can_be_read(saved):
    before = torch.load(saved, weights_only=True)
    seal(saved)
    for options in ({}, {'mmap': True}):
        after = torch.load(saved, weights_only=True, **options)
        assert torch.equal(after['weights'], before['weights']) and after['meta'] == before['meta']
    assert find_damage(saved) is None
    with zipfile.ZipFile(saved) as archive:
        assert archive.testzip() is None


def test_each_of_300_flipped_bits_and_300_cuts_is_detected(saved):
    seal(saved)
    content = saved.read_bytes()
    generator = random.Random(0)
    # 100 of them at the end, which the check itself parses.
    places = [generator.randrange(len(content)) for _ in range(200)]
    places += [len(content) - 1 - place for place in range(100)]
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << generator.randrange(8)
        saved.write_bytes(flipped)
        assert find_damage(saved), f'bit of byte {place} of {len(content)}'
        saved.write_bytes(content[:place])
        assert find_damage(saved), f'cut to {place} of {len(content)}'
    saved.write_bytes(content)
    assert find_damage(saved) is None


def test_unsealed_files_are_checked_by_their_crc(saved, tmp_path):
    assert find_damage(saved) is None
    content = bytearray(saved.read_bytes())
    content[content.index(torch.arange(300.0).numpy().tobytes()) + 40] ^= 1
    saved.write_bytes(content)
    assert 'CRC' in find_damage(saved)
    old = tmp_path / 'old.pth'
    torch.save({'a': 1}, old, _use_new_zipfile_serialization=False)
    assert find_damage(old) is None


def test_the_newest_good_one_is_found_with_and_without_last_checkpoint(tmp_path):
    assert find_good_checkpoint(tmp_path) == (None, {})
    paths = [tmp_path / name for name in ('epoch_1.pth', 'iter_9.pth', 'epoch_2.pth')]
    for path in paths:
        torch.save({}, path)
        seal(path)
    torch.save({}, tmp_path / 'best_knn_top1_epoch_2.pth')  # holds no optimizer
    assert find_good_checkpoint(tmp_path) == (paths[2], {})
    write_text(tmp_path / 'last_checkpoint', str(paths[1]))
    assert find_good_checkpoint(tmp_path) == (paths[1], {})
    write_text(tmp_path / 'last_checkpoint', '/moved/since/iter_9.pth')
    assert find_good_checkpoint(tmp_path) == (paths[1], {})
    paths[1].write_bytes(b'')
    good, damaged = find_good_checkpoint(tmp_path)
    assert good == paths[2] and list(damaged) == [paths[1]]
    for path in paths:
        path.write_bytes(b'PK')
    assert find_good_checkpoint(tmp_path)[0] is None


def test_last_checkpoint_is_a_hint_that_a_later_file_with_more_iterations_overrides(tmp_path):
    def save(name, iterations, time):
        path = tmp_path / name
        torch.save({'meta': {'iter': iterations}}, path)
        seal(path)
        os.utime(path, (time, time))
        return path

    save('epoch_1.pth', 5, time=10)
    hinted = save('iter_8.pth', 8, time=20)
    write_text(tmp_path / 'last_checkpoint', str(hinted))
    newest = save('epoch_2.pth', 10, time=30)  # killed before last_checkpoint was written
    assert find_good_checkpoint(tmp_path) == (newest, {})
    newest.write_bytes(b'PK')
    assert find_good_checkpoint(tmp_path) == (hinted, {newest: 'its end is missing'})
    newest.unlink()
    save('epoch_1.pth', 5, time=40)  # copied after iter_8.pth
    save('epoch_3.pth', 15, time=15)  # of an earlier run, which was resumed from epoch_1.pth
    assert find_good_checkpoint(tmp_path) == (hinted, {})
