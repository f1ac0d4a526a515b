"""glibc keeps freed memory in the process after keep_freed_memory()."""

import os
import platform
import subprocess
import sys

import pytest

from mmpatchmix.cli.verb import USERS_OWN_SETTINGS

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
    env = {name: value for name, value in os.environ.items() if name not in USERS_OWN_SETTINGS}
    command = [sys.executable, '-c', CHILD]
    done = subprocess.run(command, env=env | settings, capture_output=True, text=True, check=True)
    taken, faults = done.stdout.split()
    assert taken == str(not settings)
    assert (int(faults) < FEW) == (not settings)
