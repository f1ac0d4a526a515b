import copy
import os

import pytest
import torch
from safetensors.torch import load_file
from test_knn_loop import ColouredNoise

from mmpatchmix.datasets import Digits, ImageFolder
from mmpatchmix.evaluation.feature_cache import _compare, cached_features, feature_key
from mmpatchmix.evaluation.features import Features


class Counter:
    calls = 0

    def __init__(self, labels=True):
        self.labels = torch.arange(3) if labels else None

    def __call__(self):
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        return Features(torch.randn(3, 4, generator=generator), self.labels)


KEY = dict(checkpoint='a', model='b', transform='c', dataset='d', images='e')


@pytest.mark.parametrize('labels', [True, False])
def test_features_are_stored_bit_for_bit_and_computed_again_under_another_key(tmp_path, labels):
    compute, path = Counter(labels), tmp_path / 'sub' / 'bank.safetensors'
    first = cached_features(path, KEY, compute)
    again = cached_features(path, KEY, compute)
    assert compute.calls == 1
    assert torch.equal(first.features, again.features)
    assert (again.labels is None) if not labels else torch.equal(first.labels, again.labels)
    assert [path.name for path in (tmp_path / 'sub').iterdir()] == ['bank.safetensors']
    for part in KEY:
        assert _compare(path, KEY | {part: 'z'}) == f'computing again, other {part} than in {path}'
    other = cached_features(path, KEY | {part: 'z'}, compute)
    assert compute.calls == 2 and not torch.equal(first.features, other.features)
    path.write_text('not safetensors')
    cached_features(path, KEY, compute)
    assert compute.calls == 3 and 'features' in load_file(path)


@pytest.fixture
def parts(tmp_path):
    (tmp_path / 'a.pth').write_bytes(b'weights')
    pipeline = [dict(type='ResizeEdge', scale=36), dict(type='PackInputs')]
    return dict(
        checkpoint=tmp_path / 'a.pth',
        model=dict(type='M', backbone=dict(depth=3)),
        dataset=dict(type='ColouredNoise', size=5, seed=0, pipeline=pipeline),
        data=ColouredNoise(5, 0),
    )


def changed_names(parts, **changes):
    first, second = feature_key(**parts), feature_key(**(parts | changes))
    return [name for name in first if first[name] != second[name]]


def test_key_depends_on_content_and_not_on_names(parts, tmp_path):
    (tmp_path / 'b.pth').write_bytes(b'weights')
    assert changed_names(parts, checkpoint=tmp_path / 'b.pth') == []
    (tmp_path / 'c.pth').write_bytes(b'other weights')
    assert changed_names(parts, checkpoint=tmp_path / 'c.pth') == ['checkpoint']
    assert changed_names(parts, model=dict(type='M', backbone=dict(depth=4))) == ['model']
    assert changed_names(parts, model=dict(backbone=dict(depth=3), type='M')) == []
    dataset = copy.deepcopy(parts['dataset'])
    dataset['pipeline'][0]['scale'] = 40
    assert changed_names(parts, dataset=dataset) == ['transform']
    assert changed_names(parts, dataset=parts['dataset'] | dict(seed=1)) == ['dataset']
    assert changed_names(parts, data=ColouredNoise(5, 1)) == ['images']
    assert changed_names(parts, data=ColouredNoise(4, 0)) == ['images']
    assert changed_names(parts | dict(data=Digits('train')), data=Digits('test')) == ['images']


def test_key_depends_on_the_time_of_a_file_with_any_name(parts, tmp_path):
    path = tmp_path / os.fsdecode(b'not UTF-8 \xff\n.png')
    path.write_bytes(b'image')
    data = ImageFolder(str(tmp_path))
    before = feature_key(**(parts | dict(data=data)))
    os.utime(path, ns=(1, 1))
    after = feature_key(**(parts | dict(data=data)))
    assert [name for name in before if before[name] != after[name]] == ['images']
