"""Keeps freed memory in the process, because every step allocates the same sizes again.

glibc returns the memory of large tensors to the system when they are freed, and the next allocation faults in new
pages: one to two thousand page faults per step of a 0.5M-parameter model, ten thousand at 26M, a tenth of the step's
time.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # <malloc.h>
_LARGEST = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> None:
    """Make this process keep and reuse the memory that it frees.  It cannot be undone, so only commands may call it.

    Does nothing if the C library is not glibc, or if GLIBC_TUNABLES already sets malloc's behaviour.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
