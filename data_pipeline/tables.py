"""How are the rows of a Parquet or an Arrow file read one after the other, or one by its number? As the JSON lines they would be."""

from __future__ import annotations

import abc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.forms import fields_of
from data_pipeline.lines import WHOLE, Span, check_looks, open_bytes
from data_pipeline.parse import parse_row
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row, spans_of_rows
from data_pipeline.schema import UserError

AT_ONCE = 1000  # rows that are held as Python objects


class TableFile(abc.ABC):
    """An opened file of groups of rows; only columns that a source can use are read."""

    kind, nothing = "", "no rows in it"

    def __init__(self, path: str, config: SourceConfig):
        import pyarrow

        self.path, self.config, self.errors = path, config, (pyarrow.ArrowException, OSError, EOFError)
        named = fields_of(config)
        try:
            names, self.groups = self._open()
        except self.errors as error:
            raise self._explain(error) from None
        self.columns = [name for name in names if name in named]
        self.rows = sum(self.groups)
        self.held: tuple[int, int, list[bytes]] = (0, 0, [])  # rows from, to, and they

    @abc.abstractmethod
    def _open(self) -> tuple[list[str], list[int]]:
        """Opens the file; returns the names of its columns and how many rows each group has."""

    @abc.abstractmethod
    def _batches(self, group: int) -> Iterator[Any]:
        """A group as record batches of the columns that are used."""

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        """Yields the rows of a span, which counts rows and is cut between groups."""
        first, length = 0, Path(self.path).stat().st_size // max(self.rows, 1)
        for group, rows in enumerate(self.groups):
            if first >= span.start and (span.stop < 0 or first < span.stop):
                for number, raw in enumerate(self._group(group), first):
                    yield Row(number + 1, self._parse(raw), number, length)
            first += rows

    def load(self, place: Place) -> Record | Bad:
        """One row; going forwards reads each group of rows once."""
        number = place.offset
        if not self.held[0] <= number < self.held[1]:
            first = 0
            for group, rows in enumerate(self.groups):
                if first <= number < first + rows:
                    self.held = (first, first + rows, list(self._group(group)))
                    break
                first += rows
            else:
                raise UserError(f"{self.path}: has become shorter since it was indexed; run again to index it anew")
        return self._parse(self.held[2][number - self.held[0]])

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        return spans_of_rows(self.groups, Path(self.path).stat().st_size, goal)

    def close(self) -> None:
        self.held = (0, 0, [])

    def _parse(self, raw: bytes) -> Record | Bad:
        return parse_row(raw, "jsonl", self.config)

    def _group(self, group: int) -> Iterator[bytes]:
        if not self.columns:  # every row lacks what is asked for, which its reader says
            yield from (b"{}" for _ in range(self.groups[group]))
            return
        try:
            for batch in self._batches(group):
                rows = _checked(batch).to_pylist()
                yield from (json.dumps(_present(row), default=_plain).encode() for row in rows)
        except (*self.errors, UnicodeDecodeError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> UserError:
        with open_bytes(self.path) as file:
            head = file.read(64)
        if not head.startswith((b"PAR1", b"ARROW1")):
            check_looks(self.path, head)
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UserError(f"{self.path}: is not {self.kind} file, or damaged: {words}")


class ParquetFile(TableFile):
    kind = "a Parquet"

    def _open(self) -> tuple[list[str], list[int]]:
        import pyarrow.parquet

        self.file: Any = pyarrow.parquet.ParquetFile(self.path)
        metadata = self.file.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        return self.file.schema_arrow.names, groups

    def _batches(self, group: int) -> Iterator[Any]:
        return self.file.iter_batches(AT_ONCE, row_groups=[group], columns=self.columns)


class ArrowFile(TableFile):
    """An Arrow stream, as `datasets` saves them, or an Arrow (Feather) file: its record batches are the groups."""

    kind = "an Arrow"

    def _open(self) -> tuple[list[str], list[int]]:
        import pyarrow
        import pyarrow.ipc

        self.ipc = pyarrow.ipc
        self.mapped = pyarrow.memory_map(self.path)
        self.random: Any = None
        if self.mapped.read(6) == b"ARROW1":
            self.random = pyarrow.ipc.open_file(self.mapped)
            batches = (self.random.get_batch(i) for i in range(self.random.num_record_batches))
            return self.random.schema.names, [batch.num_rows for batch in batches]
        self.at, self.stream = -1, self._restart()
        groups = [batch.num_rows for batch in self.stream]
        # a stream may end without its mark, also where it is cut short between two batches: `datasets` always writes one
        self.mapped.seek(max(self.mapped.size() - 8, 0))
        if self.mapped.read(8) != b"\xff\xff\xff\xff\0\0\0\0":
            raise EOFError("the stream has no end")
        self.at, self.stream = -1, self._restart()
        return self.stream.schema.names, groups

    def _restart(self) -> Any:
        self.mapped.seek(0)
        return self.ipc.open_stream(self.mapped)

    def _batches(self, group: int) -> Iterator[Any]:
        if self.random is not None:
            batch = self.random.get_batch(group)
        else:
            if group <= self.at:
                self.at, self.stream = -1, self._restart()
            while self.at < group:
                batch = self.stream.read_next_batch()
                self.at += 1
        used = batch.select(self.columns)
        return (used.slice(start, AT_ONCE) for start in range(0, used.num_rows, AT_ONCE))


def _checked(batch: Any) -> Any:
    """Looks whether a batch is what it says, and makes bytes of its texts, so that one that is not UTF-8 is one bad row."""
    import pyarrow

    types, columns = pyarrow.types, []
    for column in batch.columns:
        if types.is_string(column.type) or types.is_string_view(column.type):
            column = column.cast(pyarrow.binary())
        elif types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())
        columns.append(column)
    checked = pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)
    checked.validate(full=True)
    return checked


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """A missing value of a column that only some rows use is as if the field were not there."""
    return {
        name: _plain(value) if isinstance(value, bytes) else value for name, value in row.items() if value is not None
    }


def _plain(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
