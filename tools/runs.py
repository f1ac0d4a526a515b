#!/usr/bin/env python
"""The verb ``mmpatchmix runs`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.runs import main

if __name__ == '__main__':
    sys.exit(main())
