"""What docs/trust.md and docs/ranks.md promise, with real kills, disks, signals and links."""

import os

# Runs to kill; `make soak` sets it, and then what takes minutes is run too.
SOAK = int(os.environ.get('SOAK', 0))
