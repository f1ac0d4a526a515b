"""mmpretrain's vision-language models next to transformers; test_mmcv_ops.py imports mmpretrain."""

from importlib import metadata

import pytest
from mmpretrain.utils import dependency

from mmpatchmix.compat import multimodal


@pytest.mark.parametrize(
    ('version', 'expected'), [('4.57.1', True), ('5.23.0', False), (None, True)]
)
def test_only_an_incompatible_transformers_disables_the_models(monkeypatch, version, expected):
    def find(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(dependency, 'WITH_MULTIMODAL', True)
    monkeypatch.setattr(multimodal, 'version', find)
    multimodal.install()
    assert dependency.WITH_MULTIMODAL is expected
