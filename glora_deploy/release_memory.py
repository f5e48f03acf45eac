"""Memory that is free but still held by the process."""

from __future__ import annotations

import ctypes
import sys


def release_memory() -> None:
    """Give what the C library keeps for later allocations back to the system.

    A network that was dropped otherwise stays resident, up to its full size, beside the next one.
    Only glibc holds on to that much; elsewhere this does nothing.
    """
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
