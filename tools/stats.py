#!/usr/bin/env python
"""The verb ``mmpatchmix stats`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.stats import main

if __name__ == '__main__':
    sys.exit(main())
