"""Fixtures of all tests, and their order."""

import atexit
import gc
from importlib import import_module

import pytest

gc.disable()  # for the imports: a fifth of their time

LONGEST = (
    'test_any_runner',
    'test_command_line',
    'test_two_ranks',
    'test_chaos',
    'test_examples',
    'test_mmcv_ops',
    'test_console',
    'test_ranks',
    'test_report_page',
    'test_quick_start',
    'test_benchmarks',
    'test_wheel',
)


def pytest_configure(config):
    """Import the replacements of slow parts, where tests are run."""
    if not getattr(config.option, 'numprocesses', None):
        import_module('tests.quick')


def _restore_default_scope():
    """Undo the default scope that a Runner has set; a test that needs one sets it."""
    from mmengine.registry import DefaultScope

    before = dict(DefaultScope._instance_dict)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


per_module = pytest.fixture(scope='module', autouse=True)(_restore_default_scope)
per_test = pytest.fixture(autouse=True)(_restore_default_scope)


@pytest.hookimpl(trylast=True)  # after pytest-randomly
def pytest_collection_modifyitems(items):
    """Start with the files that take longest: a worker that ends early finds another file."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish(session):
    """Exempt imported modules from garbage collection, which mmengine runs for every data set."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # or bindings report what was not destroyed
