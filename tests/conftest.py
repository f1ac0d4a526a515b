"""Tests import upstream packages directly, so the stack is prepared before the first of them."""

from mmpatchmix.compat import prepare_openmmlab

prepare_openmmlab()
