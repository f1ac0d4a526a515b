"""Tests of docs/trust.md and docs/ranks.md with real kills, disks, signals and links."""

import os

# Number of runs to kill; `make soak` sets it, which also enables tests that take minutes.
SOAK = int(os.environ.get('SOAK', 0))
