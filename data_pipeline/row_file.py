"""What can be done with one file, whatever its format: read its rows one after the other, or one again by its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from data_pipeline.lines import Span
from data_pipeline.records import Bad, Place, Record


class Row(NamedTuple):
    """A record, and where it lies: the last three find it again."""

    line: int  # for people: of a text the line, else the number of the row; from 1
    record: Record | Bad
    offset: int
    length: int
    item: int = 0


class RowFile(Protocol):
    """An opened file of a source."""

    path: str
    nothing: str  # what to say where it has no rows

    def read(self, span: Span) -> Iterator[Row]: ...
    def load(self, place: Place) -> Record | Bad: ...
    def spans(self, goal: int) -> list[tuple[Span, int]]: ...  # of about `goal` bytes, with their sizes; one: not cut
    def close(self) -> None: ...


def spans_of_rows(groups: Sequence[int], size: int, goal: int) -> list[tuple[Span, int]]:
    """Cuts a file of `size` bytes between groups of rows, into spans (which count rows) of at least about `goal` bytes but the last."""
    rows, start, end = max(sum(groups), 1), 0, 0
    spans: list[tuple[Span, int]] = []
    for group in groups:
        end += group
        if (end - start) * size >= goal * rows:
            spans.append((Span(start, end, start + 1), size * (end - start) // rows))
            start = end
    if start < end or not spans:
        spans.append((Span(start, end, start + 1), size * (end - start) // rows))
    return spans
