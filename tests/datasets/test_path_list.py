import pickle

import numpy as np
import pytest

from mmpatchmix.datasets.path_list import PathList

NAMES = ['a/1.jpg', 'b/größe.png', 'c/' + 'x' * 300 + '.jpg', 'd/日本.bmp', 'e/\udcff.jpg']


@pytest.mark.parametrize('labels', [None, [3, 0, 2, 2, 1]])
def test_reads_like_a_list_of_samples(labels):
    paths = PathList('root/', iter(NAMES), labels)
    expected = [{'img_path': f'root/{name}'} for name in NAMES]
    if labels:
        expected = [{**item, 'gt_label': n} for item, n in zip(expected, labels, strict=True)]
    assert len(paths) == 5
    assert list(paths) == expected
    assert [paths[-1], paths[-5]] == [expected[-1], expected[0]]
    assert list(paths[1:4]) == expected[1:4]
    assert list(paths[::-2]) == expected[::-2]
    assert list(paths[[4, 0, 0]]) == [expected[4], expected[0], expected[0]]
    assert list(pickle.loads(pickle.dumps(paths))) == expected
    for outside in (5, -6):
        with pytest.raises(IndexError):
            paths[outside]


def test_empty_list():
    assert list(PathList('root', [], [])) == []


def test_memory_per_file_is_the_name_and_twelve_bytes():
    names = [f'n{i:08d}/n{i:08d}_{i:06d}.JPEG' for i in range(20_000)]
    paths = PathList('data/imagenet/train', names, np.zeros(len(names), int))
    size = sum(array.nbytes for array in (paths.text, paths.ends, paths.labels))
    assert size == sum(map(len, names)) + 12 * len(names)
