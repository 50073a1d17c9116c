"""How are the records of an ArrayRecord file read one after the other, or one by its number?"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.example import form_of_bytes, record_from_bytes
from data_pipeline.lines import WHOLE, Span
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row, spans_of_rows
from data_pipeline.schema import UserError

AT_ONCE = 256  # records that are read together


class ArrayRecordFile:
    nothing = "no records in it"

    def __init__(self, path: str, config: SourceConfig, max_bytes: int):
        module: Any = importlib.import_module("array_record.python.array_record_module")
        self.path, self.config, self.max_bytes, self.form = path, config, max_bytes, ""
        self.reader: Any = module.ArrayRecordReader(path, "readahead_buffer_size:0,max_parallelism:0")
        if not self.reader.ok():
            raise UserError(f"{path}: is not an ArrayRecord file, or damaged or cut short")
        self.rows = self.reader.num_records()
        self.size = Path(path).stat().st_size

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        whole, rest = divmod(self.rows, AT_ONCE)
        return spans_of_rows([*[AT_ONCE] * whole, *([rest] if rest else [])], self.size, goal)

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        end = self.rows if span.stop < 0 else span.stop
        for first in range(span.start, end, AT_ONCE):
            for number, raw in enumerate(self._records(first, min(first + AT_ONCE, end)), first):
                yield Row(number + 1, self._parse(raw), number, self.size // self.rows)

    def load(self, place: Place) -> Record | Bad:
        if place.offset >= self.rows:
            raise UserError(f"{self.path}: has become shorter since it was indexed; run again to index it anew")
        return self._parse(self._records(place.offset, place.offset + 1)[0])

    def close(self) -> None:
        self.reader.close()

    def _records(self, first: int, end: int) -> list[bytes]:
        try:
            found = self.reader.read(first, end)
        except (RuntimeError, IndexError, ValueError) as error:
            raise UserError(f"{self.path}: damaged near record {first + 1}: {str(error).splitlines()[0]}") from None
        if len(found) != end - first:
            raise UserError(f"{self.path}: damaged or cut short near record {first + 1}")
        return found

    def _parse(self, raw: bytes) -> Record | Bad:
        if not self.form:
            self.form = form_of_bytes(self._records(0, 1)[0])
        if len(raw) > self.max_bytes:
            message = f"record longer than {self.max_bytes} bytes; raise config.data.max_line_bytes if it is meant"
            return Bad("line too long", message)
        return record_from_bytes(raw, self.form, self.config)
