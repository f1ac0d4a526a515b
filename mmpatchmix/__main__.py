"""Let ``python -m mmpatchmix`` be the command ``mmpatchmix``."""

import sys

from mmpatchmix.cli.main import main

sys.exit(main())
