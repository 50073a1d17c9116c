"""Is what is read ahead bounded in bytes, refused by name where it cannot fit, and stopped before the machine is full?"""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipeline import buffers, machine
from data_pipeline.buffers import Buffers, Stream, plan_prefetch, plan_stream
from data_pipeline.config import DataConfig
from data_pipeline.machine import memory_left
from data_pipeline.schema import ConfigError, UserError

MB = 10**6
READ_LONG = """
import sys, threading, time
from data_pipeline.batch import open_data
from data_pipeline.config import DataConfig, TokenizerConfig
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
config = DataConfig(path=sys.argv[1], tokenizer=TokenizerConfig(kind="bytes"), seq_len=1024, batch_size=8, streaming=True,
                    shuffle_documents=int(sys.argv[3]), buffer_bytes=int(sys.argv[2]), cache_dir=sys.argv[1] + ".cache")
data = open_data(config, log=lambda text: None)
import tensorflow
before = peak = rss()
def watch():
    global peak
    while True:
        peak = max(peak, rss())
        time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
batches = data.train_batches(0, (0, 8))
for _ in range(1200):
    next(batches)
held = sum(batches.buffers.held.values())
batches.close()
print(peak - before, held)
"""


def stream(count=1000, size=1000, shuffled=100, name="a"):
    return Stream(name, np.full(count, size, np.int64), shuffled)


def plan(streams, budget=2**30, seq_len=1024, tokens_a_byte=0.5):
    config, watched = DataConfig(path="x", buffer_bytes=budget, seq_len=seq_len), Buffers(budget)
    return plan_stream(config, streams, tokens_a_byte, 8, False, watched), watched


def test_what_cannot_fit_is_refused_with_the_number_that_would():
    with pytest.raises(ConfigError) as error:
        plan([stream(size=MB, shuffled=2048)], budget=2**26)
    first, second = str(error.value).splitlines()[:2]
    assert first.startswith(
        "config.data.buffer_bytes=67,108,864: what is read ahead may hold 2.3 GB. Raise it, or lower"
    )
    fits = int(second.split("(")[1].split(" would fit")[0])
    assert "2.3 GB documents to shuffle of a: config.data.shuffle_documents=" in second
    assert fits > 10
    plan([stream(size=MB, shuffled=fits)], budget=2**26)
    with pytest.raises(ConfigError):
        plan([stream(size=MB, shuffled=fits + 2)], budget=2**26)
    with pytest.raises(ConfigError, match=r"the longest document has 1\.0 GB"):
        plan([Stream("a", np.array([1000, 10**9]), 1)])


def test_the_largest_stretch_of_long_documents_counts_not_the_mean():
    sizes = np.full(100_000, 1000, np.int64)
    sizes[70_000:70_500] = MB
    with pytest.raises(ConfigError, match=r"555\.3 MB documents to shuffle"):
        plan([Stream("a", sizes, 5000)], budget=2**28)
    assert plan([Stream("a", np.sort(sizes)[:70_000], 5000)], budget=2**28)[0].window == 1024


def test_usual_streams_are_packed_as_ever_and_many_classes_in_smaller_windows():
    assert plan([stream(), stream(name="b")])[0] == buffers.Plan(1024, 16)
    assert plan([stream()], seq_len=8192)[0].window == 128
    many, watched = plan([stream(name=str(i)) for i in range(77)])
    assert 64 <= many.window < 1024
    assert sum(need for need in watched.held.values()) < 2**30


def test_read_ahead_is_as_much_as_fits():
    config = DataConfig(path="x", batch_size=1024, seq_len=8192)  # 168 MB a batch
    assert plan_prefetch(config, 1024, 4, False)[0] == 4
    assert plan_prefetch(config, 2048, 4, False)[0] == 1
    with pytest.raises(
        ConfigError,
        match=r"three batches of 671\.1 MB are more. Raise it, or lower config.data.batch_size",
    ):
        plan_prefetch(config, 4096, 4, False)


@pytest.mark.parametrize("streaming", [False, True])
def test_reading_stops_before_the_machine_is_full_and_names_the_buffer(opened, corpus, monkeypatch, streaming):
    data = opened(corpus, streaming=streaming)
    monkeypatch.setattr(buffers, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(buffers, "memory_left", lambda: (1000, 10**9))
    name = "rows packed together" if streaming else "batches read ahead"
    batches = data.train_batches(0, (0, 8))
    with pytest.raises(
        UserError, match=f"1.0 KB of memory are left of 1.0 GB; stopped before the machine does. .*: {name}"
    ):
        list(itertools.islice(batches, 50))
    batches.close()


def test_memory_that_others_hold_stops_nothing(opened, corpus, monkeypatch):
    data = opened(corpus)
    monkeypatch.setattr(buffers, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(buffers, "memory_left", lambda: (100 * MB, 10**9))  # little, but more than the buffers hold
    batches = data.train_batches(0, (0, 8))
    next(batches)
    batches.close()


def test_a_buffer_that_outgrows_the_budget_is_named():
    watched = Buffers(1000)
    watched.add("documents to shuffle of web", "config.data.shuffle_documents=7")
    watched.change("documents to shuffle of web", 1200)
    with pytest.raises(
        UserError, match=r"shuffle of web, 1\.7 KB. Lower config.data.shuffle_documents=7, or give the run more"
    ):
        watched.change("documents to shuffle of web", 500)


def test_counts_stay_true_through_reading_and_a_restart(opened, corpus):
    data = opened(corpus, streaming=True, shuffle_documents=30)
    batches = data.train_batches(0, (0, 8))
    for _ in range(40):
        next(batches)
    state, held = batches.state(), dict(batches.buffers.held)
    batches.close()
    texts = "documents to shuffle of data"
    mean = np.mean(data.texts[0][1].sizes)
    assert 10 * mean < held[texts] < 80 * mean  # 30 in the buffer, at most 32 beside it
    again = data.train_batches(40, (0, 8), state)
    for _ in range(40):
        next(again)
    assert 10 * mean < again.buffers.held[texts] < 80 * mean
    again.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_is_a_limit_too(tmp_path, monkeypatch, version):
    root = tmp_path / ("memory" if version == 1 else ".")
    inner = root / "box" / "run"
    inner.mkdir(parents=True)
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    )
    for folder, most in ((inner, "max" if version == 2 else str(2**62)), (inner.parent, str(50 * MB))):
        (folder / limit).write_text(most + "\n")
        (folder / used).write_text(f"{40 * MB}\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {15 * MB}\n")
    line = "0::/box/run" if version == 2 else "4:memory:/box/run"
    (tmp_path / "self").write_text(f"9:cpu:/\n{line}\n")
    monkeypatch.setattr(machine, "GROUPS", tmp_path)
    monkeypatch.setattr(machine, "GROUP_OF", tmp_path / "self")
    assert memory_left() == (25 * MB, 50 * MB)


@pytest.mark.slow
def test_long_documents_stay_within_the_budget(tmp_path):
    """120 documents of 1 MB, 16 to shuffle: 64 MiB and what TensorFlow takes for itself; 2,048 of them are refused."""
    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(1, 9)))) for _ in range(3000)]
    path = tmp_path / "long.jsonl"
    with open(path, "w") as file:
        for i in range(120):
            file.write(json.dumps({"text": f"{i} " + " ".join(rng.choice(words, 180_000))}) + "\n")
    assert path.stat().st_size > 120 * 0.9 * MB
    command = [sys.executable, "-c", READ_LONG, str(path), str(2**26)]
    done = subprocess.run([*command, "16"], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    grown, held = map(int, done.stdout.split())
    assert held < 2**26
    assert grown < 2**26 + 150 * MB, grown
    done = subprocess.run([*command, "2048"], capture_output=True, text=True, timeout=300, env=os.environ)
    assert "config.data.buffer_bytes=67,108,864: what is read ahead may hold 2." in done.stderr
