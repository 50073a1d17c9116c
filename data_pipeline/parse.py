"""Which stretches of a file are its rows, and what record does each hold? Text, Markdown, JSON lines, CSV and TSV.

Files of other formats have readers of their own (data_pipeline/row_file.py says what such a reader does).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import NamedTuple

from data_pipeline.config import SourceConfig
from data_pipeline.forms import record_from_fields
from data_pipeline.lines import BOM, WHOLE, Line, Span, read_lines
from data_pipeline.records import Bad, Record
from data_pipeline.schema import UserError

MAX_NUL = 0.01  # share of a text's characters
MAX_FILE_DOCUMENT = 2**28  # bytes: a file that is one document is held in memory whole, as text and as ids


class CsvHead(NamedTuple):
    delimiter: str
    names: tuple[str, ...]


NO_HEAD = CsvHead(",", ())


class RawRow(NamedTuple):
    line: int
    offset: int
    length: int
    content: bytes | Bad


def is_by_line(kind: str, config: SourceConfig) -> bool:
    """Says whether each line of a file is a row, so that it may be read in spans."""
    return kind == "jsonl" or (kind != "csv" and config.document == "line")


def find_rows(path: str, kind: str, config: SourceConfig, max_line_bytes: int, span: Span = WHOLE) -> Iterator[RawRow]:
    """Yields the stretches of bytes that hold one row each; blank lines are no rows."""
    if kind == "csv":
        yield from _csv_rows(path, max_line_bytes)
    elif is_by_line(kind, config):
        for line in read_lines(path, max_line_bytes, span):
            if line.raw is None or not _is_blank(line.raw):
                yield RawRow(line.number, line.offset, line.length, _bounded(line, max_line_bytes))
    else:
        yield from _text_rows(path, config.document == "paragraph", max_line_bytes)


def parse_row(raw: bytes, kind: str, config: SourceConfig, head: CsvHead = NO_HEAD) -> Record | Bad:
    """Reads one row; what is wrong with it comes back as Bad."""
    if kind == "csv":
        return _parse_csv(raw, config, head)
    try:
        text = raw.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start)
        byte = error.start - (raw.rfind(b"\n", 0, error.start) + 1)
        ahead = f"{line} lines further on: " if line else ""
        return Bad("not UTF-8", f"{ahead}not UTF-8 at byte {byte}")
    if kind != "jsonl":
        if "\0" in text and text.count("\0") > MAX_NUL * len(text):
            return Bad("not text", "not text: NUL bytes; a binary file, or UTF-16 without its mark?")
        return Record(text) if text.strip() else Bad("empty text", "the document is blank")
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        return Bad("not valid JSON", f"not valid JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except RecursionError:
        return Bad("not valid JSON", "not valid JSON: nested too deep")
    except ValueError:
        return Bad("not valid JSON", "not valid JSON: a number has too many digits")
    if not isinstance(row, dict):
        return Bad("not an object", f"the line holds a JSON {type(row).__name__}, expected an object")
    return record_from_fields(row, config)


def read_header(path: str, max_line_bytes: int) -> CsvHead:
    """Returns the delimiter and the column names of a CSV or TSV file."""
    delimiter = _delimiter(path)
    for row in _csv_records(path, max_line_bytes):
        if isinstance(row.content, bytes):
            text = row.content.removeprefix(BOM).decode(errors="replace")
            return CsvHead(delimiter, tuple(_split_csv(text, delimiter)))
    return CsvHead(delimiter, ())


def _is_blank(raw: bytes) -> bool:
    """Says whether a line holds only white space, the ideographic space of Chinese text too."""
    if b"!" <= raw[:1] <= b"~":
        return False  # as rows of JSON begin: the rest need not be looked at
    return not raw.strip() or (not raw.isascii() and not raw.removeprefix(BOM).decode(errors="replace").strip())


def _bounded(line: Line, limit: int) -> bytes | Bad:
    message = f"line longer than {limit} bytes; raise config.data.max_line_bytes if it is meant"
    return Bad("line too long", message) if line.raw is None else line.raw


def _text_rows(path: str, paragraphs: bool, max_line_bytes: int) -> Iterator[RawRow]:
    parts: list[bytes] = []
    bad: Bad | None = None
    start = Line(1, 0, 0, b"")
    size = 0

    def row() -> RawRow:
        return RawRow(start.number, start.offset, size, bad or b"".join(parts))

    for line in read_lines(path, max_line_bytes):
        blank = line.raw is not None and _is_blank(line.raw)
        if paragraphs and blank:
            if size:
                yield row()
            parts, bad, size = [], None, 0
            continue
        if not size:
            start = line
        size += line.length
        if line.raw is None:
            bad = Bad("line too long", f"line {line.number} is longer than {max_line_bytes} bytes; raise "
                                       "config.data.max_line_bytes if it is meant")  # fmt: skip
        elif size > MAX_FILE_DOCUMENT:
            raise UserError(f"{path}: a document of over 256 MiB; set the source's document='paragraph' or 'line'")
        else:
            parts.append(line.raw)
    if size:
        yield row()


def _csv_rows(path: str, max_line_bytes: int) -> Iterator[RawRow]:
    rows = _csv_records(path, max_line_bytes)
    head = next(rows, None)
    if head and isinstance(head.content, Bad):
        raise UserError(f"{path}:{head.line}: the header is {head.content.message}")
    yield from rows


def _csv_records(path: str, max_line_bytes: int) -> Iterator[RawRow]:
    """Groups physical lines into CSV records (a quoted field may hold line ends), as Python's csv module sees them."""
    pending: list[Line] = []

    def feed() -> Iterator[str]:
        for line in read_lines(path, max_line_bytes):
            pending.append(line)
            if line.raw is None or line.offset + line.length - pending[0].offset > max_line_bytes:
                what = "is longer" if len(pending) == 1 else "opens a quote that does not close, or is longer"
                raise UserError(
                    f"{path}:{pending[0].number}: the row {what} than {max_line_bytes} bytes; raise "
                    "config.data.max_line_bytes if it is meant"
                )
            yield line.raw.decode(errors="surrogateescape")

    csv.field_size_limit(max(max_line_bytes, 131072))
    # strict: a lax reader drops the quotes of `"a" b` and takes a quote that never closes as all the rest of the file
    reader = csv.reader(feed(), delimiter=_delimiter(path), strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UserError(f"{path}:{pending[0].number}: the row opens a quote that does not close") from None
            bad = Bad("not valid CSV", f"not valid CSV: {error}")
            yield RawRow(pending[0].number, pending[0].offset, sum(p.length for p in pending), bad)
            pending.clear()
            continue
        first, size = pending[0], sum(line.length for line in pending)
        raw = b"".join(line.raw or b"" for line in pending)
        pending.clear()
        if fields:
            yield RawRow(first.number, first.offset, size, raw)


def _delimiter(path: str) -> str:
    return "\t" if ".tsv" in path.lower() else ","


def _split_csv(text: str, delimiter: str) -> list[str]:
    # str.splitlines would also cut at U+2028 and other characters that are part of a field
    lines = [line + "\n" for line in text.removesuffix("\n").split("\n")]
    return next(csv.reader(lines, delimiter=delimiter, strict=True))


def _parse_csv(raw: bytes, config: SourceConfig, head: CsvHead) -> Record | Bad:
    try:
        fields = _split_csv(raw.decode(), head.delimiter)
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"not UTF-8 at byte {error.start}")
    if len(fields) != len(head.names):
        return Bad("wrong number of fields", f"the row has {len(fields)} fields, the header {len(head.names)}")
    return record_from_fields(dict(zip(head.names, fields)), config)
