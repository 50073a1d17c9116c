"""What is known of every document that was read, kept or dropped, when its text is no longer at hand?

documents.parquet, a row a document in the order of reading:

source, file, line                 where it is from; line 0: the whole file
key                                16 bytes, equal where letters, digits and Han are; null: the row could not be read
chars, bytes                       of the cleaned text, with lines that `repeated_lines` takes out
language                           ISO 639 code, or the ISO 15924 code of its script where only that is known
flags                              MEASURED, WHOLE, EMPTY, FIXED (below)
splits                             bits of the splits it is in, or would be in were it not dropped
reason                             of its drop; "": it is kept
rules                              bits: the edit rules that changed it, by RULES
number, repeats                    its number among those that reading kept, and the number of the one that it repeats; -1
tokens, fallback, unknown          ids, of which stand for bytes or parts of characters, of which are unknown; -1: not encoded
chars ... repeated_10 (m_*)        what the rule `quality` counted; 0 where it is not MEASURED
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import sealed
from data_pipeline.clean import EDITS
from data_pipeline.config import PII_KINDS
from data_pipeline.rules.measures import Measures
from data_pipeline.rules.quality import BOUNDS
from data_pipeline.schema import UserError

AT_ONCE = 1 << 13  # rows that are read; 1 << 16 take 90 MB more, and no less time
DOCUMENTS = "documents.parquet"
MEASURED, WHOLE, EMPTY = (
    1,
    2,
    4,
)  # counted by `quality`; a pair or conversation, which it leaves alone; nothing is left of it
RULES = (
    *EDITS,
    *(f"pii_{kind}" for kind in PII_KINDS if kind != "name"),
    "repeated_lines",
    "pii_name",
)  # bits of older folders stay what they are
STEPS = ("row", "rule", "length", "words", "language", "quality", "evaluation", "duplicate", "near-duplicate", "lines")
STEP_OF = {
    "mojibake": "rule", "too short": "length", "too long": "length", "bad_words": "words", "language": "language",
    **{bound.name: "quality" for bound in BOUNDS}, "contaminated": "evaluation", "duplicate": "duplicate",
    "duplicate with another label": "duplicate", "near-duplicate": "near-duplicate", "only repeated lines": "lines",
}  # fmt: skip
NAMES = ("source", "file", "language", "reason")  # columns of texts, kept as numbers of a dictionary
READ = {
    "source": "string", "file": "string", "line": "int64", "key": "key", "chars": "int64", "bytes": "int64",
    "language": "string", "flags": "uint8", "splits": "uint8", "reason": "string", "rules": "uint32",
}  # fmt: skip
COUNTED = tuple(f"m_{name}" for name in Measures._fields)
ADDED = ("number", "repeats", "tokens", "fallback", "unknown")
Row = tuple[Any, ...]  # of READ, and the measures or None


def step_of(reason: str) -> str:
    """Returns at which step a document was dropped; "": it is kept.

    >>> step_of("max_top_2"), step_of("too short"), step_of("broken JSON"), step_of("")
    ('quality', 'length', 'row', '')
    """
    return STEP_OF.get(reason, "row") if reason else ""


def split_where(where: str) -> tuple[str, int | None]:
    """ "a.jsonl:12" -> ("a.jsonl", 12); of a file as a whole (the file, None)."""
    file, _, line = where.rpartition(":")
    return (file, int(line)) if file and line.isdecimal() else (where, None)


def _schema(names: Iterable[str]) -> Any:
    import pyarrow as pa

    types = {
        "string": pa.string(),
        "key": pa.binary(16),
        "int64": pa.int64(),
        "uint8": pa.uint8(),
        "uint32": pa.uint32(),
    }
    return pa.schema([(name, types[READ.get(name, "int64")]) for name in names])


class RowWriter:
    """Writes rows as they come, many at a time: what the first stage leaves of a part."""

    AT_A_TIME = 8192

    def __init__(self, file: Any):
        import pyarrow as pa

        self.names = (*READ, *COUNTED)
        self.schema = _schema(self.names)
        self.writer = pa.ipc.new_stream(pa.PythonFile(file, mode="w"), self.schema)
        self.rows: list[Row] = []
        self.measures: list[np.ndarray] = []

    def add(self, row: Row, measures: np.ndarray | None) -> None:
        """Adds a row of READ."""
        self.rows.append(row)
        self.measures.append(NOTHING if measures is None else measures)
        if len(self.rows) >= self.AT_A_TIME:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        counts = np.concatenate(self.measures).reshape(len(self.rows), -1).T.copy()
        columns = [*zip(*self.rows), *counts]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self.schema)]
        self.writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=self.schema))
        self.rows, self.measures = [], []

    def close(self) -> None:
        if self.rows:
            self._write()
        self.writer.close()


NOTHING = np.zeros(len(Measures._fields), np.int64)


def read_rows(path: Path) -> Iterator[Any]:
    """Yields what a RowWriter wrote, as record batches."""
    import pyarrow as pa

    with sealed.open_to_read(path) as file:
        yield from pa.ipc.open_stream(file)


@contextmanager
def documents_writer(path: Path) -> Iterator[Any]:
    """Gives a function (record batch of read rows, {added column: int64 array}) that appends rows to a documents.parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema((*READ, *ADDED, *COUNTED))
    with (
        sealed.open_to_write(path) as file,
        pq.ParquetWriter(pa.PythonFile(file, mode="w"), schema, compression="zstd", write_statistics=False) as writer,
    ):

        def add(batch: Any, changed: dict[str, Any]) -> None:
            columns = {name: batch.column(name) for name in (*READ, *COUNTED)} | changed
            arrays = [
                pa.array(columns[f.name], f.type) if isinstance(columns[f.name], np.ndarray) else columns[f.name]
                for f in schema
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))

        yield add


class Documents:
    """A documents.parquet, read a stretch of rows at a time."""

    def __init__(self, folder: Path):
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = folder / DOCUMENTS
        try:
            held = sealed.open_to_read(path)
            weakref.finalize(self, held.close)
            self.file = pq.ParquetFile(held, read_dictionary=list(NAMES))
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no {DOCUMENTS}; it was prepared by an older version, prepare it again"
            ) from None
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
        self.rows: int = self.file.metadata.num_rows

    def read(self, *names: str) -> Iterator[dict[str, Any]]:
        """Yields the columns `names` of a stretch of rows: arrays; texts as (names, numbers); keys as uint64 [n, 2], 0 for null."""
        for batch in self.file.iter_batches(AT_ONCE, columns=list(names)):
            yield {name: _to_numpy(name, batch.column(name)) for name in names}

    def measures(self) -> Iterator[Measures]:
        """Yields the counts of the same stretches."""
        for columns in self.read(*COUNTED):
            yield Measures(*columns.values())


def _to_numpy(name: str, column: Any) -> Any:
    if name in NAMES:
        return column.dictionary.to_pylist(), column.indices.to_numpy()
    if name == "key":
        filled = column.fill_null(b"\0" * 16)
        return np.frombuffer(b"".join(filled.to_pylist()), ">u8").reshape(-1, 2).astype(np.uint64)
    return column.to_numpy()
