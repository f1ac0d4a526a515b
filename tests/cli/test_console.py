"""Effects on a process: messages of the stack, imports, freed memory; each in a fresh process."""

import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mmpatchmix.cli import verb as console
from tests.calls import environment

# Messages come from imports and from a process of a distributed run.
CODE = """
import random, warnings
import numpy, torch
import mmengine.logging, mmengine.registry, mmpretrain.utils

def state():
    python = list(warnings.filters), warnings.showwarning, mmengine.logging.print_log
    drawn = random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist()
    settings = torch.get_num_threads(), torch.get_default_dtype()
    return *python, *drawn, *settings, mmengine.registry.DefaultScope.get_current_instance()

before = state()
import mmpatchmix.registry
assert state() == before
if {quiet}:
    from mmpatchmix.cli.verb import quiet_stack
    quiet_stack()
    quiet_stack()  # again: no effect
for node in vars(mmpatchmix.registry).values():
    if isinstance(node, mmengine.registry.Registry):
        node.import_from_location()  # all that a Runner can build of ours
assert state()[3:] == before[3:]

import mmpretrain.models, mmpretrain.datasets, mmdet.apis, mmdet.datasets, mmdet.evaluation
import mmseg.engine, mmseg.models
from mmengine.logging import print_log
from mmengine.utils.dl_utils import set_multi_processing
from mmpatchmix.engine.distributed import PatchMixDDP

set_multi_processing(distributed=True)
store = torch.distributed.HashStore()
torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
PatchMixDDP(torch.nn.Linear(1, 1), device_ids=[0], broadcast_buffers=False)
torch.distributed.destroy_process_group()
mmseg.models.CrossEntropyLoss()
mmengine.visualization.Visualizer.get_instance('any')
mmseg.engine.SegVisualizationHook()

print_log('Could not import OneDL: the disk is full')
warnings.warn('faster_coco_eval is too old')
"""
KEPT = ('Could not import OneDL: the disk is full', 'UserWarning: faster_coco_eval is too old')


def read_output(quiet):
    """Return the lines of stdout and stderr, without the source lines below warnings."""
    env = {key: value for key, value in environment().items() if not key.startswith('MKL_')}
    command = [sys.executable, '-c', CODE.format(quiet=quiet)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120, env=env)
    lines = (done.stdout + done.stderr).splitlines()
    return [line for line in lines if line and not line.startswith('  ')]


@pytest.mark.program
def test_imports_change_nothing_of_the_process_and_exactly_the_listed_messages_are_dropped():
    with ThreadPoolExecutor() as threads:
        loud, left = threads.map(read_output, (False, True))
    for message in console.PRINTED:
        assert message in loud
    for message in console.WARNED:
        assert any(re.search(f'Warning: {message}', line) for line in loud), message
    assert len(left) == 2 and all(line.endswith(end) for line, end in zip(left, KEPT, strict=True))


# 64 MiB are 16,384 pages of 4 KiB, or 32 of 2 MiB where the system has those.
FEW = 20
# Counts the new pages of a block of a size that was freed before. The first ten or so blocks
# move on when something small has taken the place of their first byte.
CHILD = """
import resource
import statistics
import sys
from mmpatchmix.cli.verb import keep_freed_memory
taken = keep_freed_memory()
one = len(sys.argv)  # keeps the block from being a constant
counts = [0] * 40
for index in range(len(counts)):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b'1' * 2**26 * one
    counts[index] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(taken, statistics.median_high(counts[20:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='needs glibc')
@pytest.mark.parametrize('settings', [{}, {'MALLOC_MMAP_THRESHOLD_': '131072'}], ids=str)
def test_freed_memory_is_used_again_unless_the_user_has_settings(settings):
    env = {k: v for k, v in os.environ.items() if k not in console.USERS_OWN_SETTINGS}
    command = [sys.executable, '-c', CHILD]
    done = subprocess.run(command, env=env | settings, capture_output=True, text=True, check=True)
    taken, faults = done.stdout.split()
    assert taken == str(not settings)
    assert (int(faults) < FEW) == (not settings)
