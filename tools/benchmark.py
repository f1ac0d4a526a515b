#!/usr/bin/env python
"""The verb ``mmpatchmix benchmark`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.benchmark import main

if __name__ == '__main__':
    sys.exit(main())
