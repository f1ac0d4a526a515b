#!/usr/bin/env python
"""The verb ``mmpatchmix report`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.report import main

if __name__ == '__main__':
    sys.exit(main())
