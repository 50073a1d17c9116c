"""What holds for every test: eight CPU devices, no silent broadcasting between ranks, and the tiny runs that tests start from."""

import json
import os
import random
import textwrap

os.environ["JAX_PLATFORMS"] = os.environ.get("LM_TEST_PLATFORMS", "cpu")  # make test-gpu: cuda,cpu
flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
os.environ["XLA_FLAGS"] = " ".join([*flags, "--xla_force_host_platform_device_count=8"])
# Compiling takes most of the time here; JAX_DISABLE_MOST_OPTIMIZATIONS=0 tests the programs as they are in use.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402  the environment must be set first
import pytest  # noqa: E402

# Files that take minutes come first, so that at the end no worker waits for the other (`make test` has two).
LONG = ("test_launch.py", "test_multihost.py", "test_plan.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONG)


jax.config.update("jax_numpy_rank_promotion", "raise")

CONFIG = """
from configs import base

def get_config():
    c = base.get_config()
    c.data.path = {corpus!r}
    c.data.cache_dir = {cache!r}
    c.data.tokenizer.kind = "bytes"
    c.data.split.validation = 0.1
    c.data.seq_len = 32
    c.data.batch_size = 8
    c.model.layers = 2
    c.model.dim = 16
    c.model.heads = 2
    c.model.dropout = 0.1
    c.optim.peak_lr = 3e-3
    c.train.steps = 60
    c.train.eval_every = 10
    c.train.save_every = 5
    c.train.eval_batch_size = 16
{lines}
    return c
"""
# A config is Python: this one makes every batch late, so that there is time to kill, and something to see in the times.
SLOW = """
import time
from lm import train
check = train.check_batch

def late(*words):
    time.sleep(0.1)
    check(*words)

train.check_batch = late
"""
ENGLISH = ["the", "cat", "dog", "sat", "ran", "on", "under", "a", "mat", "tree", "and", "then", "left", "home"]


@pytest.fixture(scope="session")
def write_run_config():
    """(folder, lines, texts=) -> writes corpus.jsonl, config.py of a tiny model on it with `lines` added, and slow.py."""

    def write(folder, lines, texts=None):
        words = random.Random(0)
        texts = texts or [f"{i}: {' '.join(words.choices(ENGLISH, k=20))}" for i in range(200)]
        rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
        (folder / "corpus.jsonl").write_text("".join(rows), encoding="utf-8")
        paths = {"corpus": str(folder / "corpus.jsonl"), "cache": str(folder / "cache")}
        config = CONFIG.format(lines=textwrap.indent(textwrap.dedent(lines).strip(), "    "), **paths)
        (folder / "config.py").write_text(config)
        (folder / "slow.py").write_text(SLOW + config)

    return write
