#!/usr/bin/env python
"""The verb ``mmpatchmix replay`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.replay import main

if __name__ == '__main__':
    sys.exit(main())
