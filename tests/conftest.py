"""Tests import upstream packages by themselves: what a config's custom_imports does comes first."""

import mmpatchmix.registry  # noqa: F401
