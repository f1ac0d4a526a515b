"""Tests import upstream packages by themselves: what a config's custom_imports does comes first."""

import pytest
from mmengine.registry import DefaultScope

import mmpatchmix.registry  # noqa: F401


def _leave_no_scope_behind():
    """Runners set mmengine's default scope; a test that needs one is to set it itself."""
    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


per_module = pytest.fixture(scope='module', autouse=True)(_leave_no_scope_behind)
per_test = pytest.fixture(autouse=True)(_leave_no_scope_behind)
