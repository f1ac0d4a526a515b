"""Modules that the server of ``calls.py`` imports, in the order of the command line."""

import gc
from importlib import import_module

gc.disable()  # for the imports: a fifth of their time
import_module('mmpatchmix.cli.verb').quiet_stack()  # before the modules that it silences
registry = import_module('mmpatchmix.registry')
import_module('tests.quick')
for name in ('train', 'test', 'benchmark', 'check_run', 'describe_run'):
    import_module(f'mmpatchmix.cli.{name}')
for name in ('models', 'datasets', 'visualization'):
    import_module(f'mmpretrain.{name}')
for name in ('setuptools', 'torch.utils.serialization', 'torch.utils.tensorboard'):
    import_module(name)
for each in vars(registry).values():
    if hasattr(each, 'import_from_location'):
        each.import_from_location()
gc.freeze()  # mmengine collects garbage for every data set it builds
gc.enable()
