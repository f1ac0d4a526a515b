#!/usr/bin/env python
"""The verb ``mmpatchmix test`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.test import main

if __name__ == '__main__':
    sys.exit(main())
