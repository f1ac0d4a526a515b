"""Run mmengine's own tests with our loop, hooks, sampler, log processor and DDP in place of its.

    make upstream
    python -m tests.upstream test_hooks/test_checkpoint_hook.py

The tests come from the source distribution of the installed version; they run twice, and failures
with mmengine's own classes, which are of the machine, do not count. ``NAMED`` lists the others.
"""

import subprocess
import sys
import tarfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path('work_dirs/upstream')
FILES = ('test_hooks', 'test_runner', 'test_dataset/test_sampler.py', 'test_model/test_wrappers')
FILES += ('test_dist', 'test_fileio/test_backends/test_local_backend.py')
# Names in mmengine: our class in their place, everywhere they are imported or registered.
REPLACED = {
    'CheckpointHook': 'mmpatchmix.engine.SafeCheckpointHook',
    'LoggerHook': 'mmpatchmix.engine.SafeLoggerHook',
    'RuntimeInfoHook': 'mmpatchmix.engine.LossLogHook',
    'EpochBasedTrainLoop': 'mmpatchmix.engine.exact_order.ExactTrainLoop',
    'DefaultSampler': 'mmpatchmix.engine.exact_order.ExactSampler',
    'LogProcessor': 'mmpatchmix.engine.ShortLogProcessor',
    'MMDistributedDataParallel': 'mmpatchmix.engine.distributed.PatchMixDDP',
}
# Failures that are differences on purpose: docs/trust.md says why.
NAMED: dict[str, str] = {}


def replace() -> None:
    """Put our classes in the place of mmengine's, in its modules and registries."""
    import mmengine.hooks
    import mmengine.runner
    import mmengine.visualization  # noqa: F401  all modules that hold the names
    from mmengine import registry

    import mmpatchmix.registry  # noqa: F401
    from mmpatchmix.engine import exact_order  # noqa: F401

    roots = [r for r in vars(registry).values() if isinstance(r, registry.Registry)]
    for name, path in REPLACED.items():
        module, _, attribute = path.rpartition('.')
        ours = getattr(import_module(module), attribute)
        theirs = ours.__mro__[1]
        for module in list(sys.modules.values()):
            if getattr(module, '__name__', '').startswith('mmengine'):
                for key, value in list(vars(module).items()):
                    if value is theirs:
                        setattr(module, key, ours)
        for root in roots:
            if root.module_dict.get(name) is theirs:
                root.module_dict[name] = ours


class Outcomes:
    """A pytest plugin that stores the names of failed tests, and counts the others."""

    def __init__(self) -> None:
        self.failed: set[str] = set()
        self.passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store one outcome."""
        if report.failed:
            self.failed.add(report.nodeid.partition('tests/')[2])
        self.passed += report.passed and report.when == 'call'


def fetch() -> Path:
    """Return the folder of mmengine's tests, downloaded once."""
    package = f'onedl-mmengine=={version("onedl-mmengine")}'
    name = package.replace('-', '_').replace('==', '-')
    folder = FOLDER / name / 'tests'
    if not folder.is_dir():
        pip = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--no-binary', ':all:']
        subprocess.run([*pip, '--dest', FOLDER, package], check=True)
        with tarfile.open(FOLDER / f'{name}.tar.gz') as archive:
            archive.extractall(FOLDER, filter='data')
    return folder


def run(files: list[str], ours: bool) -> Outcomes:
    """Run test files in this process."""
    if ours:
        replace()
    outcomes = Outcomes()
    quiet = ['-q', '--tb=short', '-p', 'no:randomly', '-p', 'no:cacheprovider', '-p', 'no:xdist']
    pytest.main([*files, *quiet, '--rootdir', str(FOLDER), '-c', '/dev/null'], [outcomes])
    return outcomes


if __name__ == '__main__':
    which, *parts = sys.argv[1:]
    folder = fetch()
    outcomes = run([str(folder / part) for part in parts or FILES], which == 'ours')
    print(outcomes.passed, 'passed;', *sorted(outcomes.failed), sep='\n')
