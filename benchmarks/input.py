"""How fast are batches read on one core, also where they lie encrypted, does memory grow, and what does grain do with the same shards?

Every figure comes from a child process that is pinned to one core (`os.sched_setaffinity`), so preparation, TensorFlow and
all of grain's threads share it. Children alternate (A B A B ...), so that a noisy machine disturbs them alike; tokens/s is
the median over rounds and counts no padding, by the clock and by CPU time, which other work on the core does not lower. RSS is read after 20 batches, after a tenth and at the end of the same child;
part of it is the memory map of the shards, so `own` is the growth of memory that no file stands behind. Each row
also goes to FILE as a JSON line. Needs Linux and TensorFlow; grain is left out where it is not installed.

    python benchmarks/input.py [--out=FILE.jsonl] [--quick] [--rounds=3] [--batches=10000] [--tokens=20000000]

example: python benchmarks/input.py --rounds=5 --out=input.jsonl
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.turns import Table, describe_machine
from data_pipeline.batch import Data, open_data
from data_pipeline.config import AugmentConfig, DataConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.schema import UserError, run_main, split_flags

SEQ_LEN, ROWS = 1024, 32
MEAN_BYTES = {"one": 0, "pages": 1500, "notes": 80}  # documents of a corpus; 0: the whole corpus is one document
CASES = {  # name: (corpora, changes of the configuration)
    "plain": (("one",), {}),
    "packed": (("pages",), {}),
    "packed, short documents": (("notes",), {}),
    "one document a row": (("pages",), {"packing": "none"}),
    "mixture of three": (tuple(MEAN_BYTES), {}),
    "packed, both augmentations": (("pages",), {"augment": AugmentConfig(token_dropout=0.1, span_mask=0.15)}),
}
GRAIN_CASES = ENCRYPTED_CASES = ("plain", "packed")
ENCRYPTED, KEY = "ours, encrypted", "LM_INPUT_KEY"
WARM = 20  # batches before the clock starts


def write_corpus(path: Path, mean_bytes: int, total: int) -> None:
    """Writes about `total` bytes of random words as JSONL, in documents of exponentially distributed length."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3000)]
    with open(path, "w") as file:
        while total > 0:
            size = int(rng.expovariate(1 / mean_bytes)) + 6 if mean_bytes else total
            text = " ".join(rng.choices(words, k=max(size // 6, 1)))
            total -= len(text) + 1 if mean_bytes else total
            file.write(json.dumps({"text": text}) + "\n")


def make_config(folder: Path, case: str, reader: str = "ours") -> DataConfig:
    corpora, changes = CASES[case]
    weight = 1.0 if len(corpora) > 1 else 0.0
    sources = {name: SourceConfig(path=str(folder / f"{name}.jsonl"), weight=weight) for name in corpora}
    base = DataConfig(sources=sources, split=SplitConfig(validation=0.0, test=0.0), seq_len=SEQ_LEN, batch_size=ROWS,
                      tokenizer=TokenizerConfig(kind="bytes"), max_line_bytes=2**30,
                      cache_dir=str(folder / "cache"), encrypt_key_env=KEY if reader == ENCRYPTED else "")  # fmt: skip
    return replace(base, **changes)


def grain_batches(data: Data, case: str) -> Iterator[dict[str, np.ndarray]]:
    """The same shards through grain: shuffled rows, or shuffled chunks of documents that grain packs on the fly.

    Threads are off, as grain advises for data in memory. Plain rows become the five arrays a batch at a time.
    """
    grain = importlib.import_module("grain")
    reader = data.readers["train"][0][1]
    ids, start, length = reader.shard.ids, reader.chunks.start, reader.chunks.length

    class PlainRows:
        def __len__(self) -> int:
            return int((length == SEQ_LEN).sum())

        def __getitem__(self, index: int) -> np.ndarray:
            at = start[index]
            return ids[at : at + SEQ_LEN + 1]

    class Documents:
        def __len__(self) -> int:
            return len(start)

        def __getitem__(self, index: int) -> dict[str, np.ndarray]:
            at, end = start[index], start[index] + length[index]
            return {"tokens": ids[at:end].astype(np.int32), "targets": ids[at + 1 : end + 1].astype(np.int32)}

    def to_arrays(rows: np.ndarray) -> dict[str, np.ndarray]:
        ones = np.ones((ROWS, SEQ_LEN), np.int32)
        positions = np.broadcast_to(np.arange(SEQ_LEN, dtype=np.int32), ones.shape)
        return {"tokens": rows[:, :-1].astype(np.int32), "targets": rows[:, 1:].astype(np.int32), "segments": ones,
                "positions": positions, "weights": ones.astype(np.float32)}  # fmt: skip

    def rename(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        segments = batch["tokens_segment_ids"]
        return {"tokens": batch["tokens"], "targets": batch["targets"], "segments": segments,
                "positions": batch["tokens_positions"], "weights": (segments > 0).astype(np.float32)}  # fmt: skip

    source: Any = PlainRows() if case == "plain" else Documents()
    rows = grain.MapDataset.source(source).seed(0).shuffle().repeat()
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    if case == "plain":
        return iter(rows.batch(ROWS).map(to_arrays).to_iter_dataset(options))
    packed = grain.experimental.BestFitPackIterDataset(
        rows.to_iter_dataset(options),
        length_struct={"tokens": SEQ_LEN, "targets": SEQ_LEN},
        num_packing_bins=4 * ROWS,
    )
    return iter(packed.batch(ROWS).map(rename))


def memory() -> dict[str, float]:
    """Returns MB of this process: all of it, and what no file stands behind."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1024 for name, key in (("rss", "VmRSS"), ("own", "RssAnon"))}


def run_child(folder: Path, case: str, reader: str, batches: int) -> None:
    """Reads `batches` batches on one core and prints what it took as a JSON line."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    data = open_data(make_config(folder, case, reader), log=lambda text: None)
    stream: Any = grain_batches(data, case) if reader == "grain" else data.train_batches(0, (0, ROWS))
    filled = sum(int((next(stream)["segments"] > 0).sum()) for _ in range(WARM)) / WARM
    marks = [memory()]
    began, cpu_began = time.perf_counter(), time.process_time()
    for number in range(1, batches + 1):
        next(stream)
        if number in (batches // 10, batches):
            marks.append(memory())
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    print(
        json.dumps(
            {
                "tokens_per_sec": filled * batches / seconds,
                "tokens_per_cpu_sec": filled * batches / cpu_seconds,
                "fill": filled / (ROWS * SEQ_LEN),
                "memory": marks,
            }
        )
    )
    getattr(stream, "close", lambda: None)()


def spawn_child(folder: Path, case: str, reader: str, batches: int) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        f"--child={folder}",
        f"--case={case}",
        f"--reader={reader}",
        f"--batches={batches}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{reader}, {case}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "rounds": "3", "batches": "10000", "tokens": "20000000",
                "child": "", "case": "", "reader": ""}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    rounds, batches, tokens = (int(flags[name]) for name in ("rounds", "batches", "tokens"))
    if flags["child"]:
        return run_child(Path(flags["child"]), flags["case"], flags["reader"], batches)
    if flags["quick"] == "true":
        rounds, batches, tokens = 1, min(batches, 500), min(tokens, 2_000_000)
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("needs Linux: processes are pinned to one core with os.sched_setaffinity")
    if not importlib.util.find_spec("tensorflow"):
        raise UserError(
            "TensorFlow is not installed, and reading with it is what is measured: pip install tensorflow-cpu"
        )
    os.environ.setdefault(KEY, "of no use but to measure: 0123456789abcdef")
    has_grain = importlib.util.find_spec("grain") is not None
    if not has_grain:
        print("grain is not installed, so there is no row for it: pip install grain, in an environment of its own\n")
    runs = [
        (case, name)
        for case in CASES
        for name, cases in (("ours", CASES), (ENCRYPTED, ENCRYPTED_CASES), ("grain", GRAIN_CASES if has_grain else ()))
        if case in cases
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for corpus, mean_bytes in MEAN_BYTES.items():
            write_corpus(folder / f"{corpus}.jsonl", mean_bytes, tokens)
        for case, reader in runs:
            open_data(make_config(folder, case, reader), log=lambda text: None)
        results = {run: [] for run in runs}
        for _ in range(rounds):
            for run in runs:
                results[run].append(spawn_child(folder, *run, batches))
    machine = describe_machine()
    print(f"{batches:,} batches of {ROWS} x {SEQ_LEN}, {rounds} rounds, {machine['machine']}, pinned to one, "
          f"load {machine['load']:.1f}\n")  # fmt: skip
    columns = ["rows", "reader", "million tokens/s", "a CPU second", "spread", "full",
               "MB after 20, a tenth, all batches", "own MB, growth"]  # fmt: skip
    table = Table("input", columns, flags["out"])
    for (case, reader), measured in results.items():
        speeds, cpu_speeds = ([one[f"tokens_per_{unit}"] for one in measured] for unit in ("sec", "cpu_sec"))
        worst = max(measured, key=lambda one: one["memory"][-1]["own"] - one["memory"][1]["own"])["memory"]
        row = {
            "case": case, "reader": reader, "tokens_per_sec": statistics.median(speeds),
            "tokens_per_cpu_sec": statistics.median(cpu_speeds), "spread": max(cpu_speeds) / min(cpu_speeds) - 1,
            "fill": measured[0]["fill"], "rss_mb": [m["rss"] for m in worst],
            "own_growth_mb": worst[-1]["own"] - worst[1]["own"], "rows": ROWS, "seq_len": SEQ_LEN, "batches": batches,
            "rounds": rounds, "cores": 1,
        }  # fmt: skip
        rss = " / ".join(f"{mb:,.0f}" for mb in row["rss_mb"])
        table.add(row, [
            case, reader, f"{row['tokens_per_sec'] / 1e6:.1f}", f"{row['tokens_per_cpu_sec'] / 1e6:.1f}",
            f"{row['spread']:.0%}", f"{row['fill']:.1%}", rss, f"{row['own_growth_mb']:+.1f}",
        ])  # fmt: skip


if __name__ == "__main__":
    run_main(main)
