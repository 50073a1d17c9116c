"""How much host memory does this process hold, and what happens to the memory that a step frees?"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import resource
import sys
from pathlib import Path


def keep_memory() -> None:
    """Lets glibc keep what a step on the CPU frees: else each step asks the kernel for its temporaries again.

    A GPT-2 step of 6 x 384 took 300,000 page faults and a sixth of its time for that (docs/LOG.md). Must come before JAX
    starts its threads, so it looks for accelerators in /dev; with one, and without glibc, nothing happens. What is kept
    and not used again piles up, so call `release_memory` now and then, or let a `MemoryWatch` do it.
    """
    found = any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*"))
    platforms = os.environ.get("JAX_PLATFORMS") or ("accelerator" if found else "cpu")
    libc, trim_threshold, mmap_max, arena_max = _glibc(), -1, -4, -8
    if platforms != "cpu" or libc is None:
        return
    libc.mallopt(arena_max, 1)  # the others, one a thread, are too small for a step's temporaries
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)


def release_memory() -> None:
    """Gives the freed memory of this moment back: compiling and evaluating leave holes that no step fits in."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


class MemoryWatch:
    """Gives freed memory back once this process holds half as much again as it did at the least.

    A step's temporaries stand in the hole of the step before, unless that was not free yet or lost some bytes at its edge
    (glibc 2.36: posix_memalign). Then they take another: 6.3 GB instead of 1.7 for 6 x 384 after 15 steps.
    """

    def __init__(self) -> None:
        self.least: int | None = None

    def check(self) -> None:
        held = resident_bytes()
        self.least = min(held, self.least or held)
        if held > 1.5 * self.least:
            release_memory()
            self.least = None


def resident_bytes() -> int:
    """Memory that this process holds now; where the system has no /proc, the most that it ever held."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library of this process; None where it is another one. To find out reads the interpreter's file."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
