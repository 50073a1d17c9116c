"""How are the rows of a Parquet file read one after the other, or one by its number? As the JSON lines that they would be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.forms import CHAT_FIELDS
from data_pipeline.lines import WHOLE, Span
from data_pipeline.schema import UserError

AT_ONCE = 1000  # rows that are held as Python objects


class ParquetFile:
    """An opened file; only columns that a source can use are read."""

    def __init__(self, path: str, config: SourceConfig):
        import pyarrow
        import pyarrow.parquet

        self.path, self.errors = path, (pyarrow.ArrowException, OSError)
        named = [
            config.text_field,
            config.prompt_field,
            config.completion_field,
            config.group_field,
            config.label_field,
            *CHAT_FIELDS,
        ]
        try:
            self.file: Any = pyarrow.parquet.ParquetFile(path)
        except self.errors as error:
            raise self._explain(error) from None
        self.columns = [name for name in self.file.schema_arrow.names if name in named]
        self.groups = [self.file.metadata.row_group(i).num_rows for i in range(self.file.metadata.num_row_groups)]
        self.rows = sum(self.groups)
        self.held: tuple[int, int, list[bytes]] = (0, 0, [])  # rows from, to, and they

    def read(self, span: Span = WHOLE) -> Iterator[tuple[int, bytes]]:
        """Yields (number from 0, JSON) of the rows of a span, which counts rows."""
        first = 0
        for group, rows in enumerate(self.groups):
            if first >= span.start and (span.stop < 0 or first < span.stop):
                yield from enumerate(self._group(group), first)
            first += rows

    def row(self, number: int) -> bytes:
        """One row; going forwards reads each group of rows once."""
        if not self.held[0] <= number < self.held[1]:
            first = 0
            for group, rows in enumerate(self.groups):
                if first <= number < first + rows:
                    self.held = (first, first + rows, list(self._group(group)))
                    break
                first += rows
            else:
                raise UserError(f"{self.path}: has become shorter since it was indexed; run again to index it anew")
        return self.held[2][number - self.held[0]]

    def spans(self, size: int, goal: int) -> list[Span]:
        """Cuts the file between groups of rows, into spans of at least about `goal` bytes but the last."""
        spans, start, end = [], 0, 0
        for rows in self.groups:
            end += rows
            if (end - start) * size >= goal * max(self.rows, 1):
                spans.append(Span(start, end, start + 1))
                start = end
        return [*spans, Span(start, end, start + 1)] if start < end or not spans else spans

    def _group(self, group: int) -> Iterator[bytes]:
        if not self.columns:  # every row lacks what is asked for, which its reader says
            yield from (b"{}" for _ in range(self.groups[group]))
            return
        try:
            for batch in self.file.iter_batches(AT_ONCE, row_groups=[group], columns=self.columns):
                yield from (json.dumps(_present(row), default=_plain).encode() for row in batch.to_pylist())
        except self.errors as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> UserError:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        return UserError(f"{self.path}: is not a Parquet file, or damaged: {words}")


def _present(row: dict[str, Any]) -> dict[str, Any]:
    """A missing value of a column that only some rows use is as if the field were not there."""
    return {name: value for name, value in row.items() if value is not None}


def _plain(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
