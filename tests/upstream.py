"""Run mmengine's own tests with our loop, hooks, sampler and DDP in place of its own.

    make upstream
    python -m tests.upstream test_hooks/test_checkpoint_hook.py

The tests come from the source distribution of the installed version. Those that fail run again with
mmengine's own classes, where failures are of the machine. ``NAMED`` lists the others.
"""

import json
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest

FOLDER = Path('work_dirs/upstream')
FILES = ('test_hooks', 'test_runner', 'test_dataset/test_sampler.py', 'test_model/test_wrappers')
# Names in mmengine: our class in their place, everywhere they are imported or registered.
REPLACED = {
    'CheckpointHook': 'mmpatchmix.engine.SafeCheckpointHook',
    'LoggerHook': 'mmpatchmix.engine.SafeLoggerHook',
    'RuntimeInfoHook': 'mmpatchmix.engine.LossLogHook',
    'EpochBasedTrainLoop': 'mmpatchmix.engine.exact_order.ExactTrainLoop',
    'DefaultSampler': 'mmpatchmix.engine.exact_order.ExactSampler',
    'MMDistributedDataParallel': 'mmpatchmix.engine.distributed.PatchMixDDP',
}
# Failures that are differences on purpose: docs/trust.md says why.
NAMED = {
    'test_hooks/test_ema_hook.py::TestEMAHook::test_with_runner': 'trains to a loss of -inf',
    'test_runner/test_runner.py::TestRunner::test_get_hooks_info': 'prints our names',
    'test_hooks/test_runtime_info_hook.py::TestRuntimeInfoHook::test_after_train_iter': 'float32',
}


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


class Failures(set):
    """A pytest plugin that stores the names of failed tests, and counts the others."""

    passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Store one outcome."""
        if report.failed:
            self.add(report.nodeid.partition('/tests/')[2])
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


def run(folder: Path, tests: list[str], which: str) -> tuple[int, list[str]]:
    """Run tests with our classes or mmengine's; return how many passed, and which failed."""
    with NamedTemporaryFile('r') as file:
        command = [sys.executable, '-m', 'tests.upstream', which, file.name]
        subprocess.run([*command, *(str(folder / test) for test in tests)], check=True)
        return tuple(json.load(file))


def run_here(which: str, result: str, *tests: str) -> None:
    """Run tests in this process, and write their outcomes."""
    if which == 'ours':
        replace()
    failures = Failures()
    plugins = ['-p', 'no:randomly', '-p', 'no:cacheprovider', '-c', os.devnull]
    options = ['-q', '--tb=short', '--show-capture=no', f'--rootdir={FOLDER}']
    pytest.main([*tests, *options, *plugins], [failures])
    Path(result).write_text(json.dumps([failures.passed, sorted(failures)]))


def main(parts: list[str]) -> int:
    """Run tests with our classes, those that fail again with mmengine's; print the difference."""
    folder = fetch()
    passed, failed = run(folder, parts or list(FILES), 'ours')
    theirs = run(folder, failed, 'theirs')[1] if failed else []
    ours = [test for test in failed if test not in theirs]
    print(f"{passed} tests passed; {len(theirs)} fail here with mmengine's own classes:")
    print(*theirs, sep='\n')
    print(f'{len(ours)} fail with ours alone:')
    for test in ours:
        print(f'{test}: {NAMED.get(test, "not named in docs/trust.md")}')
    return int(not set(ours) <= set(NAMED))


if __name__ == '__main__':
    arguments = sys.argv[1:]
    sys.exit(run_here(*arguments) if arguments[:1] in (['ours'], ['theirs']) else main(arguments))
