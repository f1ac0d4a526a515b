"""Tests import upstream packages by themselves: what a config's custom_imports does comes first."""

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

import mmpatchmix.registry  # noqa: F401
from tests.calls import plain_text


def _leave_no_scope_behind():
    """Runners set mmengine's default scope; a test that needs one is to set it itself."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


per_module = pytest.fixture(scope='module', autouse=True)(_leave_no_scope_behind)
per_test = pytest.fixture(autouse=True)(_leave_no_scope_behind)


@pytest.fixture(scope='session', autouse=True)
def quick_config_text():
    """Spare tests the formatting of configs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'pretty_text', property(plain_text))
        yield
