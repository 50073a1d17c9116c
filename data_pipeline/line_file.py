"""How are text, Markdown, JSON lines, CSV and TSV read as a file of rows?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from data_pipeline.config import SourceConfig
from data_pipeline.find_files import PACKED
from data_pipeline.lines import WHOLE, Span, SpanReader, cut_at_lines
from data_pipeline.parse import NO_HEAD, CsvHead, find_rows, is_by_line, parse_row, read_header
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row


class LineFile:
    def __init__(self, path: str, kind: str, config: SourceConfig, max_line_bytes: int):
        self.path, self.kind, self.config, self.max_line_bytes = path, kind, config, max_line_bytes
        below = " below the header" if kind == "csv" else ", only blank lines"
        self.nothing, self.reader = f"no rows in it{below}", SpanReader()
        self.head: CsvHead | None = None if kind == "csv" else NO_HEAD

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        size = Path(self.path).stat().st_size
        if not is_by_line(self.kind, self.config) or self.path.endswith(PACKED):
            return [(WHOLE, size)]
        spans = cut_at_lines(self.path, size, goal)
        return [(span, (span.stop if span.stop >= 0 else size) - span.start) for span in spans]

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        kind, config = self.kind, self.config
        for line, offset, length, content in find_rows(self.path, kind, config, self.max_line_bytes, span):
            record = content if isinstance(content, Bad) else parse_row(content, kind, config, self._head())
            yield Row(line, record, offset, length)

    def load(self, place: Place) -> Record | Bad:
        return parse_row(self.reader.read(self.path, place.offset, place.length), self.kind, self.config, self._head())

    def close(self) -> None:
        self.reader.close()

    def _head(self) -> CsvHead:
        if self.head is None:
            self.head = read_header(self.path, self.max_line_bytes)
        return self.head
