"""Photographs are made alike each time, and look like ImageNet's to a decoder."""

import numpy as np
import pytest
from PIL import Image

from mmpatchmix.cli.benchmark import write_sample_photos


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    write_sample_photos(folder, num_images=30, num_distinct=13)
    return folder


def test_files_are_jpegs_of_the_usual_size(photos):
    files = sorted(photos.rglob('*.*'))
    assert len(files) == 30
    sizes = []
    for path in files:
        with Image.open(path) as image:
            assert image.format == 'JPEG' and image.mode == 'RGB'
            sizes.append(sorted(image.size))
    assert np.mean(sizes, axis=0) == pytest.approx([375, 500], rel=0.06)
    assert np.mean([path.stat().st_size for path in files]) == pytest.approx(90e3, rel=0.4)


def test_each_folder_has_a_photograph_of_its_own(photos):
    contents = [{path.read_bytes() for path in (photos / name).iterdir()} for name in '01']
    assert [len(list((photos / name).iterdir())) for name in '01'] == [15, 15]
    assert [len(distinct) for distinct in contents] == [6, 6]  # of 13, evenly
    assert not contents[0] & contents[1]


def test_a_seed_gives_the_same_files(photos, tmp_path):
    write_sample_photos(tmp_path / 'same', num_images=2)
    write_sample_photos(tmp_path / 'other', num_images=2, seed=1)
    first = photos / '0' / '0000000.jpg'
    assert (tmp_path / 'same/0/0000000.jpg').read_bytes() == first.read_bytes()
    assert (tmp_path / 'other/0/0000000.jpg').read_bytes() != first.read_bytes()
