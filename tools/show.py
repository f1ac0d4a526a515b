#!/usr/bin/env python
"""The verb ``mmpatchmix show`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.show import main

if __name__ == '__main__':
    sys.exit(main())
