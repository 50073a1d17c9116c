"""Does the memory that a step frees stay, and go back when too much of it piles up?"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np
from lm.memory import MemoryWatch, keep_memory, resident_bytes

keep_memory()
watch = MemoryWatch()
watch.check()
start, least = resident_bytes(), watch.least
held, pins = [], []
for _ in range(4):  # each block freed, with something behind it that stays
    held.append(np.ones(64 << 20, np.uint8))
    pins.append(np.ones(1 << 20, np.uint8))
del held
kept = resident_bytes() - start
watch.check()
print(kept >> 20, (resident_bytes() - start) >> 20, watch.least is None and least > 0)
"""


def run(env: dict[str, str]) -> list[str]:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return found.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory on demand")
def test_freed_memory_is_kept_until_it_is_too_much() -> None:
    kept, left, released = run({**os.environ, "JAX_PLATFORMS": "cpu"})
    assert int(kept) > 200
    assert int(left) < 30
    assert released == "True"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps freed memory on demand")
def test_nothing_is_kept_where_an_accelerator_computes() -> None:
    kept, _, _ = run({**os.environ, "JAX_PLATFORMS": "cuda"})
    assert int(kept) < 30
