"""Configs of mmdet are read often in these tests."""

import functools

import pytest
from mmengine.config import utils


@pytest.fixture(scope='package', autouse=True)
def metafiles_are_read_once():
    """mmengine reads a hundred files of mmdet for every base of a config that is one of its."""
    find = utils._get_cfg_metainfo
    utils._get_cfg_metainfo = functools.cache(find)
    yield
    utils._get_cfg_metainfo = find
