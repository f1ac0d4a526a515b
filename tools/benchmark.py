#!/usr/bin/env python
"""Tell which side limits a training; ``--help`` says more."""

from mmpatchmix.cli.benchmark import main

if __name__ == '__main__':
    main()
