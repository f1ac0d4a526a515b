#!/usr/bin/env python
"""The verb ``mmpatchmix embed`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.embed import main

if __name__ == '__main__':
    sys.exit(main())
