#!/usr/bin/env python
"""The verb ``mmpatchmix train`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.train import main

if __name__ == '__main__':
    sys.exit(main())
