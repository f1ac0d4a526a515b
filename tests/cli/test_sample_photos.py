"""Generated photographs."""

import numpy as np
import pytest
from PIL import Image

from mmpatchmix.cli.benchmark import write_sample_photos


def test_photos_are_distinct_reproducible_and_sized_like_imagenet(tmp_path):
    write_sample_photos(tmp_path / 'a', num_images=12, num_distinct=5)
    write_sample_photos(tmp_path / 'b', num_images=2)
    files = sorted((tmp_path / 'a').rglob('*.*'))
    assert len(files) == 12
    images = [Image.open(path) for path in files]
    assert all(image.format == 'JPEG' and image.mode == 'RGB' for image in images)
    sizes = [sorted(image.size) for image in images]
    assert np.mean(sizes, axis=0) == pytest.approx([375, 500], rel=0.06)
    assert np.mean([path.stat().st_size for path in files]) == pytest.approx(90e3, rel=0.4)
    contents = [{path.read_bytes() for path in (tmp_path / 'a' / name).iterdir()} for name in '01']
    assert [len(distinct) for distinct in contents] == [2, 2]  # of 5, evenly
    assert not contents[0] & contents[1]
    first, same = (tmp_path / name / '0/0000000.jpg' for name in 'ab')
    assert same.read_bytes() == first.read_bytes()
