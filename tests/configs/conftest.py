"""mmpretrain's scope, in which most configs are built."""

import pytest
from mmengine.registry import init_default_scope


@pytest.fixture(autouse=True)
def default_scope():
    init_default_scope('mmpretrain')
