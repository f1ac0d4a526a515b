#!/usr/bin/env python
"""The verb ``mmpatchmix neighbours`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.neighbours import main

if __name__ == '__main__':
    sys.exit(main())
