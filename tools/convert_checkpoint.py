#!/usr/bin/env python
"""The verb ``mmpatchmix convert`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.convert import main

if __name__ == '__main__':
    sys.exit(main())
