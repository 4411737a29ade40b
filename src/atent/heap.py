"""Keep freed memory in the process: the tensors of one pass are allocated again in the next one.

glibc returns freed memory at the end of its heap to the system, by default beyond 128 KiB, and each page is later
allocated by a page fault that costs more than the arithmetic of a small layer. Activations take megabytes, so that a
pass through a small network spends a tenth of its time on page faults.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping

# Parameter numbers of mallopt, from malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
# Largest amount of freed memory that is kept, growth increment of the heap, and largest block in it, which is glibc's
# maximum: larger blocks are mapped, and returned when freed.
_KEPT, _STEP, _LARGEST = 2**30, 2**26, 2**25
_DECIDED = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_")


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Keep up to 1 GiB of freed memory in this process; returns whether that was set.

    No effect with another C library than glibc, and if the user configured glibc. Results do not depend on it.
    """
    decided = "malloc" in environment.get("GLIBC_TUNABLES", "") or any(name in environment for name in _DECIDED)
    if decided or not sys.platform.startswith("linux"):
        return False
    mallopt = _mallopt()
    if mallopt is None:
        return False
    given = ((_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _STEP))
    return all([mallopt(name, value) for name, value in given])


def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's mallopt; None under another C library, whose parameters differ."""
    import ctypes

    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018
        found: Callable[[int, int], int] = library.mallopt
    except (AttributeError, OSError):
        return None
    return found
