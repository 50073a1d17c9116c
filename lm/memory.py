"""How much host memory does this process hold, and what happens to the memory that a step frees?"""

from __future__ import annotations

import os
import time
from pathlib import Path

from data_pipeline.machine import glibc, memory_left, release_memory
from data_pipeline.machine import resident_bytes as resident_bytes


def keep_memory() -> None:
    """Lets glibc keep what a step on the CPU frees: else each step asks the kernel for its temporaries again.

    A GPT-2 step of 6 x 384 took 300,000 page faults and a sixth of its time for that (docs/LOG.md). Must come before JAX
    starts its threads, so it looks for accelerators in /dev; with one, and without glibc, nothing happens. What is kept
    and not used again piles up, so call `release_memory` now and then, or let a `MemoryWatch` do it.
    """
    found = any(any(Path("/dev").glob(name)) for name in ("nvidia[0-9]*", "accel*", "vfio/[0-9]*"))
    platforms = os.environ.get("JAX_PLATFORMS") or ("accelerator" if found else "cpu")
    libc, trim_threshold, mmap_max, arena_max = glibc(), -1, -4, -8
    if platforms != "cpu" or libc is None:
        return
    libc.mallopt(arena_max, 1)  # the others, one a thread, are too small for a step's temporaries
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)


class MemoryWatch:
    """Gives freed memory back once this process holds `LIMIT` times what it does with one step's temporaries.

    They stand in the hole of the step before. But XLA frees that a few milliseconds after its results are there, and the
    next step, if asked for at once, takes another: up to 4.9 GB instead of 2.5 for 6 x 384 (docs/LOG.md). Once that has
    happened, or where two would not fit, the watch is `crowded`: from then on call `settle` before each step.
    """

    LIMIT = 1.4
    SHARE = 0.8  # of the memory that programs can have now, for the temporaries of two steps
    SETTLE = 0.005  # seconds; 0.002 were enough in 70 steps of 6 x 384

    def __init__(self, active: bool) -> None:
        self.active = active and glibc() is not None
        self.crowded = False
        self.full = False  # now, so to be released when no step runs
        self.needed: int | None = None

    def check(self) -> None:
        """To be called when a step has ended, the next running or not; takes some 20 microseconds."""
        if self.active:
            held = resident_bytes()
            self.needed = min(held, self.needed or held)
            self.full = held > self.LIMIT * self.needed
            self.crowded |= self.full

    def settle(self) -> None:
        """Lets the step that has just ended free its temporaries; gives back what is too much."""
        if self.full:
            self.release()
        else:
            time.sleep(self.SETTLE)

    def release(self) -> None:
        """Releases memory while no step runs; the next check sees what one step needs."""
        time.sleep(self.SETTLE)
        before = resident_bytes()
        release_memory()
        self.full, self.needed = False, None
        freed = before - resident_bytes()
        self.crowded |= self.active and 2 * freed > self.SHARE * memory_left()[0]
