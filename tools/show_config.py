#!/usr/bin/env python
"""The verb ``mmpatchmix show-config`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.show_config import main

if __name__ == '__main__':
    sys.exit(main())
