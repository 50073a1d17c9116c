"""What is remembered of each document of a shard, so that no later stage reads all texts again?

A shard is any stretch of the corpus; documents are numbered through all shards in order. Beside its stem lie

    .docs   a row of DOC for each document
    .keys   sorted runs: first 8 bytes of the key -> place in the shard
    .nodes  the same for nodes
    .bands  sorted runs: BANDS hashes a document (`minhash`)
    .lines  sorted runs: hashes of long lines or paragraphs (`lines`); only where asked for

each a function of the shard's documents alone. `.docs` is written last: where it is there, the shard is done.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

import numpy as np

from data_pipeline.dedup.codes import BATCH_CHARS, BATCH_TEXTS
from data_pipeline.dedup.lines import LineRule, distinct_units
from data_pipeline.dedup.minhash import BANDS, band_hashes
from data_pipeline.dedup.runs import RunWriter, read_range, written_aside
from data_pipeline.sealed import open_array, size_of

# key: 16 bytes, equal where texts count as the same; node: what is dealt to splits, the key or a hash of the group;
# raw: hash of the text as it stands; size: its characters. NumPy drops zeros at the end of bytes: read keys with `whole`.
DOC = np.dtype([("key", "S16"), ("node", "S16"), ("raw", "<u8"), ("size", "<u8")])


def node_of(key: bytes, group: str) -> bytes:
    """Returns 16 bytes that stand for all documents which share a split from the outset: the group, or the text."""
    return hashlib.blake2b(b"group:" + group.encode(), digest_size=16).digest() if group else key


def whole(key: bytes) -> bytes:
    return key.ljust(16, b"\0")


def prefixes(keys: np.ndarray) -> np.ndarray:
    """Returns the first 8 bytes of S16 keys [N] as numbers in the same order, [N] uint64."""
    return np.ascontiguousarray(keys).view(">u8").reshape(-1, 2)[:, 0].astype(np.uint64)


class SignatureWriter:
    """Writes the files of one shard; use within `with`, which completes them, or leaves none where an error ends it."""

    def __init__(self, stem: Path, near: bool = True, lines: LineRule | None = None):
        self.stem, self.lines = stem, lines
        self.count = 0
        self._kinds = ("keys", "nodes", *(["bands"] if near else []), *(["lines"] if lines else []))
        self._rows: list[tuple[bytes, bytes, int, int]] = []
        self._texts: list[str] = []
        self._chars = 0

    def __enter__(self) -> SignatureWriter:
        self._stack = ExitStack()
        self._docs = self._stack.enter_context(written_aside(self.stem.with_name(self.stem.name + ".docs")))
        self._runs = {kind: self._stack.enter_context(RunWriter(shard_file(self.stem, kind))) for kind in self._kinds}
        return self

    def add(self, key: bytes, text: str, group: str = "") -> None:
        """Takes the next document: its `split.text_key`, its text, and its group if it has one."""
        if self._texts and (self._chars + len(text) > BATCH_CHARS or len(self._texts) == BATCH_TEXTS):
            self._flush()
        raw = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        self._rows.append((key, node_of(key, group), int.from_bytes(raw, "big"), len(text)))
        self._texts.append(text)
        self._chars += len(text)

    def _flush(self) -> None:
        rows = np.array(self._rows, DOC)
        places = np.arange(self.count, self.count + len(rows), dtype=np.uint64)
        self._docs.write(rows.tobytes())
        self._runs["keys"].add(prefixes(rows["key"]), places)
        self._runs["nodes"].add(prefixes(rows["node"]), places)
        if "bands" in self._runs:
            hashes, there = band_hashes(self._texts)
            self._runs["bands"].add(hashes[there].reshape(-1), np.repeat(places[there], BANDS))
        if self.lines:
            hashes, owners = distinct_units(self._texts, self.lines)
            self._runs["lines"].add(hashes, places[owners])
        self.count += len(rows)
        self._rows, self._texts, self._chars = [], [], 0

    def __exit__(self, *error) -> None:
        if error[0] is not None:
            self._stack.__exit__(*error)
            return
        with self._stack:
            if self._rows:
                self._flush()


def shard_file(stem: Path, kind: str) -> Path:
    return stem.with_name(f"{stem.name}.{kind}")


class Shards:
    """The shards of a corpus, in order: document numbers run through them."""

    def __init__(self, stems: Sequence[Path]):
        self.stems = list(stems)
        counts = [size_of(shard_file(stem, "docs")) // DOC.itemsize for stem in self.stems]
        self.bases = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @cached_property
    def total(self) -> int:
        return int(self.bases[-1])

    def span(self, shard: int) -> tuple[int, int]:
        """Returns the first document number of a shard and the one after its last."""
        return int(self.bases[shard]), int(self.bases[shard + 1])

    def files(self, kind: str) -> list[Path]:
        return [shard_file(stem, kind) for stem in self.stems]

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the rows [N] of DOC of document numbers [N]."""
        numbers = numbers.astype(np.int64)
        found = np.zeros(len(numbers), DOC)
        shard_of = np.searchsorted(self.bases, numbers, "right") - 1
        for shard in np.unique(shard_of).tolist():
            chosen = shard_of == shard
            docs = open_array(shard_file(self.stems[shard], "docs"), DOC)
            found[chosen] = docs[numbers[chosen] - self.bases[shard]]
        return found

    def gather(self, kind: str, low: int, high: int, dropped: Sequence[Path] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Returns (hashes, document numbers), [N] uint64 each, of a range of hashes, without documents that are dropped.

        `dropped` are run files: document number -> the one it repeats.
        """
        found = [(np.zeros(0, np.uint64), np.zeros(0, np.uint64))]
        for shard, path in enumerate(self.files(kind)):
            hashes, places = read_range(path, low, high)
            begin, end = self.span(shard)
            gone = np.zeros(end - begin, bool)
            for file in dropped:
                numbers, kept = read_range(file, begin, end)
                gone[(numbers[numbers != kept] - np.uint64(begin)).astype(np.int64)] = True
            there = ~gone[places.astype(np.int64)]
            found.append((hashes[there], places[there] + np.uint64(begin)))
        return np.concatenate([h for h, _ in found]), np.concatenate([n for _, n in found])


def order_to_keep(rows: np.ndarray, numbers: np.ndarray, *groups: np.ndarray) -> np.ndarray:
    """Sorts documents by `groups` (the last one first), and within them from the one to keep on: the longest, then the smallest
    key, the smallest hash of the text, the first in the corpus (which by then holds the very same text)."""
    return np.lexsort((numbers, rows["raw"], rows["key"], -rows["size"].astype(np.int64), *groups))
