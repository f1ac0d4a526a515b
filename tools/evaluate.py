#!/usr/bin/env python
"""The verb ``mmpatchmix evaluate`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.evaluate import main

if __name__ == '__main__':
    sys.exit(main())
