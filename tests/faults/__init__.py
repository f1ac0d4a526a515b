"""What docs/trust.md and docs/ranks.md promise, with real kills, disks, signals and links."""

import os

# `make soak` sets it: many trials, and what takes minutes.
SOAK = 'SOAK' in os.environ
