"""How are bytes read from plain, gzip and zstandard files so that no damage passes silently?

tf.data reads a truncated .gz as a shorter file without an error; everything here goes through readers that notice.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

from data_pipeline.packed import PackedReader
from data_pipeline.schema import UserError

BOM = b"\xef\xbb\xbf"
LOOKS_LIKE = (
    (b"\x1f\x8b", "a gzip file; name it .gz"),
    (b"\x28\xb5\x2f\xfd", "a zstandard file; name it .zst"),
    (b"PK\x03\x04", "a zip archive (or an Office file); unpack it first"),
    (b"PAR1", "a Parquet file; name it .parquet, or give it a source with kind='parquet'"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"%PDF", "a PDF; extract its text first"),
    (b"\xff\xfe", "UTF-16 text (UTF-16 byte-order mark); convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text (UTF-16 byte-order mark); convert it to UTF-8"),
    (b"version https://git-lfs", "a git-lfs pointer; fetch the file itself with `git lfs pull`"),
    (b"<!doctype html", "an HTML page; was the download refused?"),
    (b"<html", "an HTML page; was the download refused?"),
)


class Line(NamedTuple):
    number: int  # from 1
    offset: int
    length: int
    raw: bytes | None  # None where the line is longer than allowed


class Span(NamedTuple):
    """A part of a file that begins and ends at the ends of lines."""

    start: int = 0  # bytes, in the unpacked file
    stop: int = -1  # -1: to the end
    line: int = 1  # number of the first line


WHOLE = Span()


@contextmanager
def open_bytes(path: str) -> Iterator[IO[bytes]]:
    """Opens a file, unpacking .gz and .zst; raises UserError for what is missing, unreadable, damaged or cut short."""
    try:
        with open(path, "rb") as raw:
            if path.endswith(".gz"):
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(IO[bytes], unpacked)
            elif path.endswith(".zst"):
                yield cast(IO[bytes], PackedReader(raw, ".zst"))
            else:
                yield raw
    except gzip.BadGzipFile as error:
        reason = "is not a gzip file" if "Not a gzipped" in str(error) else "gzip stream is damaged or cut short"
        raise UserError(f"{path}: {reason} ({error})") from None
    except (EOFError, zlib.error) as error:
        raise UserError(f"{path}: gzip stream is damaged or cut short ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def read_lines(path: str, max_line_bytes: int, span: Span = WHOLE) -> Iterator[Line]:
    """Yields every line with its number and place; memory stays within a few times `max_line_bytes`."""
    with open_bytes(path) as stream:
        number, offset = span.line - 1, span.start
        if offset:
            stream.seek(offset)
        blank_so_far = offset == 0
        while (span.stop < 0 or offset < span.stop) and (raw := stream.readline(max_line_bytes + 1)):
            number += 1
            if blank_so_far:
                check_looks(path, raw)
                blank_so_far = not raw.strip()
            length = len(raw)
            too_long = length > max_line_bytes
            if too_long:
                last = raw
                while not last.endswith(b"\n") and (last := stream.readline(1 << 20)):
                    length += len(last)
            yield Line(number, offset, length, None if too_long else raw)
            offset += length


def cut_at_lines(path: str, size: int, goal: int) -> list[Span]:
    """Cuts a file that is not packed into spans of at least `goal` bytes (but the last) that end with a line."""
    spans, start, line = [], 0, 1
    with open_bytes(path) as stream:
        while size - start > goal:
            block = stream.read(goal)
            lines, end = block.count(b"\n"), start + len(block)
            while not block.endswith(b"\n") and (block := stream.readline(1 << 20)):
                lines, end = lines + block.count(b"\n"), end + len(block)
            spans.append(Span(start, end, line))
            start, line = end, line + lines
    return [*spans, Span(start, -1, line)] if start < size or not spans else spans


def hash_file(path: str | Path) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


def check_looks(path: str, head: bytes) -> None:
    """Raises UserError when the first bytes are those of another file format."""
    start = head[:64].lstrip().lower()
    for magic, name in LOOKS_LIKE:
        if head.startswith(magic) or (magic.isascii() and magic.islower() and start.startswith(magic)):
            raise UserError(f"{path}: looks like {name}")


class SpanReader:
    """Reads (offset, length) again from files that `read_lines` went through; forward reading is cheap in any format."""

    def __init__(self) -> None:
        self.path, self.context, self.stream = "", None, cast(IO[bytes], None)

    def read(self, path: str, offset: int, length: int) -> bytes:
        if path != self.path:
            self.close()
            self.context = open_bytes(path)
            self.stream, self.path = self.context.__enter__(), path
        try:
            self.stream.seek(offset)
            raw = self.stream.read(length)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{path}: cannot be read any more ({error})") from None
        if len(raw) != length:
            raise UserError(f"{path}: has become shorter since it was indexed; run again to index it anew")
        return raw

    def close(self) -> None:
        if self.context:
            self.context.__exit__(None, None, None)
        self.path, self.context = "", None
