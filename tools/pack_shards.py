#!/usr/bin/env python
"""The verb ``mmpatchmix pack-shards`` as a file, as in other OpenMMLab projects."""

import sys

from mmpatchmix.cli.pack_shards import main

if __name__ == '__main__':
    sys.exit(main())
