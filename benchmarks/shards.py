"""In which files should token ids lie: memory-mapped arrays, the same encrypted, or ArrayRecord, which TFDS and Grain read?

The same documents (lengths exponential about --mean tokens, ids by Zipf's law below 32,768, 16 bits each) are written in every layout and
read at random, 32 documents a batch. Every layout is read in a child process of its own, pinned to one core, layouts in turn and
several rounds; the table has medians. "Cold" are the first 64 batches after the kernel was asked to drop the files' pages (a disk's own
cache stays), "warm" is the rest. RSS counts mapped pages of the files, `own` does not. Needs Linux; ArrayRecord comes with tensorflow-datasets.

    python benchmarks/shards.py [--out=FILE.jsonl] [--quick] [--rounds=3] [--tokens=50000000] [--mean=600]

example: python benchmarks/shards.py --rounds=5 --out=shards.jsonl
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.input import memory
from benchmarks.turns import Table, describe_machine
from data_pipeline import sealed
from data_pipeline.prepare.write import ShardWriter
from data_pipeline.schema import UserError, run_main, split_flags
from data_pipeline.store import load_array

VOCAB, BATCH = 2**15, 32
COLD, WARM_SECONDS = 64, 3.0  # batches, seconds
KEY = "LM_SHARDS_KEY"
# Options of the writer. One record a group is what TFDS writes and what random access wants; reading ahead is off for the same reason.
RECORDS = {"ArrayRecord": "group_size:1", "ArrayRecord, not compressed": "group_size:1,uncompressed",
           "ArrayRecord, 64 a group": "group_size:64"}  # fmt: skip
LAYOUTS = ("memory map", "memory map, encrypted", *RECORDS, "TFDS, ArrayRecord")
Reader = Callable[[np.ndarray], list[np.ndarray]]


def make_documents(tokens: int, mean: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (ids uint16 [tokens], offsets [documents + 1])."""
    rng = np.random.default_rng(0)
    sizes = rng.exponential(mean, max(2 * tokens // mean, BATCH)).astype(np.int64) + 8
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    offsets = offsets[: max(int(np.searchsorted(offsets, tokens)), BATCH + 1)]
    return (rng.zipf(1.2, int(offsets[-1])) % VOCAB).astype(np.uint16), offsets


def prepare_layout(layout: str, folder: Path) -> None:
    """Makes what `write` and `open_layout` need of a process: the key, TensorFlow Datasets."""
    if layout.endswith("encrypted"):
        sealed.seal(folder, sealed.Vault(KEY))
    elif layout.startswith("TFDS"):
        importlib.import_module("tensorflow_datasets")


def write(layout: str, folder: Path, ids: np.ndarray, offsets: np.ndarray) -> None:
    sizes = np.diff(offsets)
    if layout.startswith("memory map"):
        writer = ShardWriter(folder, 0, "train", VOCAB, len(sizes), len(ids), False, False)
        step = 4096
        for at in range(0, len(sizes), step):
            some = sizes[at : at + step]
            part = ids[offsets[at] : offsets[min(at + step, len(sizes))]]
            zeros = np.zeros(len(some), np.int64)
            origins, name = np.stack([zeros, zeros], 1), np.array(["a.jsonl"])
            writer.add(part, some, zeros - 1, zeros, np.array(0), name, origins, np.array([""]), zeros)
        writer.close()
    elif layout in RECORDS:
        writer = importlib.import_module("array_record.python.array_record_module").ArrayRecordWriter(
            str(folder / "ids.array_record"), RECORDS[layout]
        )
        for begin, end in zip(offsets.tolist(), offsets[1:].tolist()):
            writer.write(ids[begin:end].tobytes())
        writer.close()
    else:
        write_tfds(folder, ids, offsets)


def write_tfds(folder: Path, ids: np.ndarray, offsets: np.ndarray) -> None:
    tfds: Any = importlib.import_module("tensorflow_datasets")
    features = tfds.features.FeaturesDict({"ids": tfds.features.Tensor(shape=(None,), dtype=np.int32)})
    adapter = tfds.core.file_adapters.ADAPTER_FOR_FORMAT[tfds.core.FileFormat.ARRAY_RECORD]
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name="shards", filetype_suffix="array_record")
    path = template.replace(split="train").sharded_filepath(shard_index=0, num_shards=1)
    stretches = zip(offsets.tolist(), offsets[1:].tolist())
    rows = ((n, features.serialize_example({"ids": ids[a:b].astype(np.int32)})) for n, (a, b) in enumerate(stretches))
    adapter.write_examples(path, rows)
    split = tfds.core.SplitInfo(name="train", shard_lengths=[len(offsets) - 1], num_bytes=1, filename_template=template)
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=[split], check_data=False)


def open_layout(layout: str, folder: Path) -> tuple[int, Reader]:
    """Returns (documents, a function that reads those with the given numbers)."""
    if layout.startswith("memory map"):
        offsets, ids = load_array(folder / "00.train.offsets.npy"), sealed.open_npy(folder / "00.train.ids.npy")
        return len(offsets) - 1, lambda numbers: [
            np.array(ids[a:b]) for a, b in zip(offsets[numbers].tolist(), offsets[numbers + 1].tolist())
        ]
    if layout in RECORDS:
        reader = importlib.import_module("array_record.python.array_record_module").ArrayRecordReader(
            str(folder / "ids.array_record"), "readahead_buffer_size:0,max_parallelism:0"
        )
        return reader.num_records(), lambda numbers: [
            np.frombuffer(record, np.uint16) for record in reader.read(numbers.tolist())
        ]
    source = importlib.import_module("tensorflow_datasets").builder_from_directory(folder).as_data_source("train")
    return len(source), lambda numbers: [row["ids"] for row in source.__getitems__(numbers.tolist())]


def drop_pages(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def run_child(layout: str, folder: Path, documents: Path, writing: bool) -> dict[str, Any]:
    """Writes a layout, or reads it at random; returns what that took."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    prepare_layout(layout, folder)
    if writing:
        with np.load(documents) as held:
            ids, offsets = held["ids"], held["offsets"]
        began, cpu = time.perf_counter(), time.process_time()
        write(layout, folder, ids, offsets)
        for path in folder.rglob("*"):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return {
            "write_seconds": time.perf_counter() - began,
            "write_cpu_seconds": time.process_time() - cpu,
            "bytes": written,
        }
    drop_pages(folder)
    before, began = memory(), time.perf_counter()
    count, read = open_layout(layout, folder)
    row: dict[str, Any] = {"open_seconds": time.perf_counter() - began, "opened": memory()}
    rng = np.random.default_rng(1)
    began = time.perf_counter()
    for _ in range(COLD):
        read(rng.integers(0, count, BATCH))
    row["cold_per_sec"] = COLD * BATCH / (time.perf_counter() - began)
    for numbers in np.array_split(np.arange(count), max(count // 1000, 1)):  # all pages come into the cache
        read(numbers)
    began, cpu, done, tokens, total = time.perf_counter(), time.process_time(), 0, 0, 0
    while time.perf_counter() - began < WARM_SECONDS:
        rows = read(rng.integers(0, count, BATCH))
        done, tokens, total = done + BATCH, tokens + sum(map(len, rows)), total + int(rows[0][0])
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    row |= {
        "warm_per_sec": done / seconds,
        "tokens_per_sec": tokens / seconds,
        "tokens_per_cpu_sec": tokens / cpu_seconds,
    }
    after = memory()
    check = int(sum(int(one.astype(np.int64).sum()) for one in read(np.arange(0, count, max(count // 500, 1)))))
    return row | {"rss_mb": after["rss"] - before["rss"], "own_mb": after["own"] - before["own"], "check": check}


def spawn(layout: str, folder: Path, documents: Path, writing: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, f"--child={layout}", f"--folder={folder}", f"--documents={documents}"]
    done = subprocess.run([*command, f"--writing={writing}"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{layout}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "rounds": "3", "tokens": "50000000", "mean": "600",
                "child": "", "folder": "", "documents": "", "writing": ""}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    os.environ.setdefault(KEY, "of no use but to measure: 0123456789abcdef")
    if flags["child"]:
        found = run_child(flags["child"], Path(flags["folder"]), Path(flags["documents"]), flags["writing"] == "True")
        return print(json.dumps(found))
    rounds, tokens, mean = (int(flags[name]) for name in ("rounds", "tokens", "mean"))
    if flags["quick"] == "true":
        rounds, tokens = 1, min(tokens, 1_000_000)
    if not hasattr(os, "sched_setaffinity"):
        raise UserError("needs Linux: processes are pinned to one core with os.sched_setaffinity")
    with tempfile.TemporaryDirectory() as name:
        documents = Path(name) / "documents.npz"
        ids, offsets = make_documents(tokens, mean)
        np.savez(documents, ids=ids, offsets=offsets)
        results: dict[str, list[dict[str, Any]]] = {layout: [] for layout in LAYOUTS}
        for _ in range(rounds):
            for number, layout in enumerate(LAYOUTS):
                folder = Path(name) / str(number)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                one = spawn(layout, folder, documents, True)
                results[layout].append(one | spawn(layout, folder, documents, False))
    if len({one["check"] for measured in results.values() for one in measured}) > 1:
        raise UserError("the layouts do not hold the same documents")
    machine = describe_machine()
    print(f"{len(ids):,} tokens in {len(offsets) - 1:,} documents, batches of {BATCH} documents, {rounds} rounds, "
          f"{machine['machine']}, pinned to one, load {machine['load']:.1f}\n")  # fmt: skip
    columns = ["layout", "MB", "written, million tokens/s (CPU)", "open, ms", "cold, documents/s", "warm, documents/s",
               "million tokens/s", "a CPU second", "RSS, own MB"]  # fmt: skip
    table = Table("shards", columns, flags["out"])
    for layout, measured in results.items():
        keys = [key for key, value in measured[0].items() if isinstance(value, float | int)]
        row = {key: statistics.median(one[key] for one in measured) for key in keys}
        row["write_per_cpu_sec"] = len(ids) / row["write_cpu_seconds"]
        table.add({"layout": layout, "tokens": len(ids), "documents": len(offsets) - 1, "rounds": rounds, **row}, [
            layout, f"{row['bytes'] / 1e6:,.1f}",
            f"{len(ids) / row['write_seconds'] / 1e6:.1f} ({row['write_per_cpu_sec'] / 1e6:.1f})", f"{row['open_seconds'] * 1e3:,.1f}",
            f"{row['cold_per_sec']:,.0f}", f"{row['warm_per_sec']:,.0f}", f"{row['tokens_per_sec'] / 1e6:.1f}",
            f"{row['tokens_per_cpu_sec'] / 1e6:.1f}", f"{row['rss_mb']:,.0f}, {row['own_mb']:,.0f}",
        ])  # fmt: skip


if __name__ == "__main__":
    run_main(main)
