"""Does the memory that a step frees stay, and go back when too much of it piles up?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory on demand")

PROGRAM = """
import sys
import numpy as np
from lm.memory import MemoryWatch, keep_memory, resident_bytes

keep_memory()
watch = MemoryWatch(active=sys.argv[1] == "cpu")
watch.check()
start, pins = resident_bytes(), []

def pile_up():
    held = []
    for _ in range(4):  # each block freed, with something behind it that stays
        held.append(np.ones(64 << 20, np.uint8))
        pins.append(np.ones(1 << 20, np.uint8))

pile_up()
kept = resident_bytes() - start
watch.check()
found = watch.crowded, watch.full
watch.settle()
left = resident_bytes() - start
watch.check()  # what it sees now is what is needed
assert watch.crowded == found[0] and not watch.full
print(kept >> 20, left >> 20, *found)
"""


def run(kind: str) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind],
        env={**os.environ, "JAX_PLATFORMS": kind},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return found.stdout.split()


def test_freed_memory_is_kept_until_it_is_too_much() -> None:
    kept, left, crowded, full = run("cpu")
    assert int(kept) > 200
    assert int(left) < 30
    assert (crowded, full) == ("True", "True")


def test_nothing_is_kept_or_waited_for_where_an_accelerator_computes() -> None:
    kept, _, crowded, full = run("cuda")
    assert int(kept) < 30
    assert (crowded, full) == ("False", "False")


def test_a_step_that_does_not_fit_twice_is_waited_for_from_the_start(monkeypatch) -> None:
    from lm import memory

    held = iter([9 << 30, 1 << 30, 9 << 30, 1 << 30])
    monkeypatch.setattr(memory, "resident_bytes", lambda: next(held))
    for available, crowded in ((21 << 30, False), (19 << 30, True)):
        monkeypatch.setattr(memory, "memory_left", lambda available=available: (available, 24 << 30))
        watch = memory.MemoryWatch(active=True)
        watch.release()
        assert watch.crowded is crowded
