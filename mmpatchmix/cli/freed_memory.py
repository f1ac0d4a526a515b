"""Let a training on CPU cores reuse the memory of its last step."""

import ctypes
import os
import sys

# mallopt(3): https://man7.org/linux/man-pages/man3/mallopt.3.html
M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
USERS_OWN_SETTINGS = (
    'GLIBC_TUNABLES',
    'MALLOC_MMAP_MAX_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_TRIM_THRESHOLD_',
)


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed blocks for this process instead of returning them to the system.

    Torch caches the memory of accelerators but not that of the host. By default glibc returns
    every large block when it is freed, so each training step is given fresh pages and the
    system has to clear them first: about 460 MiB per step of ViT-S with 8 images
    (``benchmarks/freed_memory.py``). The process then stays as large as it once was.

    Whoever has set glibc's own environment variables is left alone, as are systems without
    glibc.

    Returns:
        bool: Whether glibc took the settings.
    """
    if sys.platform != 'linux' or any(name in os.environ for name in USERS_OWN_SETTINGS):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:  # musl
        return False
    # Blocks come from the heap, however large, and the heap never shrinks.
    return mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, -1) == 1
