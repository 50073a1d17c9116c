"""How much memory do this process and its machine have, and when is what was written on the disk?"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's numbers of these, in malloc.h
GROUPS, GROUP_OF = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def resident_bytes() -> int:
    """Memory that this process holds now; where the system has no /proc, the most that it ever held."""
    if not sys.platform.startswith("linux"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def memory_left() -> tuple[int, int]:
    """Returns (bytes that this process can still have without swapping, of how many): the machine's or its control group's."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = left = page * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as file:
        left = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    for limit, used in _groups():
        if limit < total:
            left, total = min(left, max(limit - used, 0)), limit
    return left, total


def _groups() -> Iterator[tuple[int, int]]:
    """Yields (limit, bytes used, but not for files that can be read again) of each control group that this process is in."""
    try:
        lines = GROUP_OF.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, kinds, name = line.split(":", 2)
        if kinds not in ("", "memory") and "memory" not in kinds.split(","):
            continue
        root, limit, used = (
            (GROUPS, "memory.max", "memory.current")
            if kinds == ""
            else (GROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        path = root / name.lstrip("/")
        for folder in {root, path, *(parent for parent in path.parents if root in parent.parents)}:
            with contextlib.suppress(OSError, ValueError):  # "max", or no such file
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
                yield int((folder / limit).read_text()), int((folder / used).read_text()) - idle


def collect_rarely() -> None:
    """Lets this process look for garbage in cycles less often: it has hardly any, and to look through many documents takes 5 %."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def reuse_memory() -> None:
    """Lets this process use again what it freed, which it gives back otherwise: to get many arrays of a few MB anew, page by page,
    takes 10 % of its time. Up to 64 MB lie idle."""
    libc = glibc()
    if libc is not None:
        libc.mallopt(MMAP_THRESHOLD, 2**25)  # the most that glibc takes
        libc.mallopt(TRIM_THRESHOLD, 2**26)


def release_memory() -> None:
    """Gives the freed memory of this moment back, as after training a tokenizer or compiling."""
    libc = glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def glibc() -> ctypes.CDLL | None:
    """The C library of this process; None where it is another one. To find out reads the interpreter's file."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def sync(path: Path) -> None:
    """Returns when what was written to a file, or to the list of files of a folder, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
