"""How is one web page read as a file of rows? It is one."""

from __future__ import annotations

from collections.abc import Iterator

from data_pipeline.lines import WHOLE, Span, open_bytes
from data_pipeline.page import PageReader
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row


class HtmlFile:
    nothing = "no page in it"

    def __init__(self, path: str, max_bytes: int, pages: PageReader):
        self.path, self.max_bytes, self.pages = path, max_bytes, pages

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        return [(WHOLE, 0)]

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        raw = self._bytes()
        if raw:
            yield Row(1, self.pages.read(raw, self.max_bytes), 0, len(raw))

    def load(self, place: Place) -> Record | Bad:
        return self.pages.read(self._bytes(), self.max_bytes)

    def close(self) -> None:
        pass

    def _bytes(self) -> bytes:
        """The page, or one byte more than is allowed of it."""
        with open_bytes(self.path) as stream:
            return stream.read(self.max_bytes + 1)
