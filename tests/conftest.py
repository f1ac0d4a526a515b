"""Fixtures of all tests. As by configs, mmpatchmix.registry is imported before other packages."""

import functools
import gc

import pytest
from mmengine.config import Config, utils
from mmengine.registry import DefaultScope

import mmpatchmix.registry  # noqa: F401
from tests.calls import plain_text


def _restore_default_scope():
    """Undo the default scope that a Runner has set; a test that needs one sets it."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


per_module = pytest.fixture(scope='module', autouse=True)(_restore_default_scope)
per_test = pytest.fixture(autouse=True)(_restore_default_scope)


@pytest.fixture(scope='session', autouse=True)
def quick_config_text():
    """Replace the slow formatting of configs, and search mmdet's 100 metafiles once per base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, '_get_cfg_metainfo', functools.cache(utils._get_cfg_metainfo))
        patch.setattr(Config, 'pretty_text', property(plain_text))
        yield


def pytest_collection_finish():
    """Exempt imported modules from garbage collection, which mmengine runs for every data set."""
    gc.freeze()
