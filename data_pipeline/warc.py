"""Which pages does a web archive hold? WARC files, plain or packed record by record, and the text files (WET) made of them.

The records are framed here and not by FastWARC or warcio: both take a file that is cut short for a shorter one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit

from data_pipeline.config import SourceConfig
from data_pipeline.http_message import MAX_HEADER, Headers, join_chunks, parse_headers, parse_response, unpack
from data_pipeline.lines import WHOLE, Span, check_looks
from data_pipeline.packed import PackedReader
from data_pipeline.page import PageReader
from data_pipeline.page_encoding import decode_page
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row
from data_pipeline.schema import UserError

VERSION = re.compile(rb"WARC/\d+\.\d+\s*$")
MAX_DICTIONARY = 2**26  # bytes
TEXTUAL = ("response", "resource", "conversion")  # other records are about these, and are no documents
HTML = ("text/html", "application/xhtml+xml", "application/vnd.wap.xhtml+xml")
GROUPS = ("url", "host")  # what group_field may name
DICTIONARY = 0x184D2A5D  # begins the frame of a .zst with the dictionary of all others


class Block(NamedTuple):
    """One record as it is framed; `content` is None where it was passed over, a Bad where the frame is wrong."""

    headers: Headers
    content: bytes | Bad | None
    offset: int  # of its member in the file
    within: int  # of the member, unpacked
    length: int


class PlainReader:
    """What PackedReader does, for a file that is not packed: one that each record begins a member of."""

    def __init__(self, raw: IO[bytes]):
        self.raw, self.readline, self.read_in_member = raw, raw.readline, raw.read

    def place(self) -> tuple[int, int]:
        return self.raw.tell(), 0

    def seek_member(self, start: int, within: int) -> None:
        self.raw.seek(start + within)

    def pass_over(self, size: int) -> int:
        passed = min(size, os.fstat(self.raw.fileno()).st_size - self.raw.tell())
        self.raw.seek(passed, os.SEEK_CUR)
        return passed


class WarcFile:
    nothing = "no responses, resources or conversions in it"

    def __init__(self, path: str, config: SourceConfig, max_bytes: int, pages: PageReader):
        self.path, self.config, self.max_bytes, self.pages = path, config, max_bytes, pages
        self.group_field = config.group_field
        self.held: Any = None  # what `load` reads from

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        return [(WHOLE, 0)]

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        number = 0
        with self._open() as stream:
            try:
                for number, block in enumerate(self._blocks(stream), 1):
                    record = self._record(block)
                    if record is not None:
                        yield Row(number, record, block.offset, block.length, block.within)
            except UserError as error:
                raise UserError(f"{error}; record {number + 1}") from None

    def load(self, place: Place) -> Record | Bad:
        if self.held is None:
            self.held = self._open()
            self.stream = self.held.__enter__()
        self.stream.seek_member(place.offset, place.item)
        block = self._block(self.stream, self.stream.place())
        record = self._record(block) if block else None
        return record or Bad("gone", "no record there")

    def close(self) -> None:
        if self.held:
            self.held.__exit__(None, None, None)
        self.held = None

    @contextmanager
    def _open(self) -> Iterator[Any]:
        suffix = next((suffix for suffix in (".gz", ".zst") if self.path.lower().endswith(suffix)), "")
        try:
            with open(self.path, "rb") as raw:
                if not suffix:
                    yield PlainReader(raw)
                else:
                    yield PackedReader(raw, suffix, _dictionary(raw) if suffix == ".zst" else None)
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}") from None

    def _blocks(self, stream: Any) -> Iterator[Block]:
        """Every record; after a frame that is wrong it goes on with the next that looks like a record's beginning."""
        first = True
        while True:
            place, line = _next_line(stream)
            if not line:
                return
            if first:
                check_looks(self.path, line)
            if first and not line.startswith(b"WARC/"):
                raise UserError(f"{self.path}: is not a WARC file: it begins with {line[:20]!r}")
            first = False
            stream.seek_member(*place)
            block = self._block(stream, place)
            if block is None:
                return
            yield block
            if isinstance(block.content, Bad) and block.content.reason == "bad WARC record":
                stream.seek_member(*place)
                stream.readline(MAX_HEADER)
                while True:
                    place, line = _next_line(stream)
                    if not line or VERSION.match(line):
                        break
                stream.seek_member(*place)

    def _block(self, stream: Any, place: tuple[int, int]) -> Block | None:
        """The record that begins at the next byte; None at the end of the file."""
        version = stream.readline(MAX_HEADER)
        lines, size = [], len(version)
        while size < MAX_HEADER and (line := stream.readline(MAX_HEADER)).strip():
            lines.append(line)
            size += len(line)
        headers = parse_headers(b"".join(lines))

        def wrong(message: str) -> Block:
            return Block(headers, Bad("bad WARC record", message), *place, size)

        if not VERSION.match(version):
            return wrong(f"expected the line WARC/1.0 or WARC/1.1, found {version[:20]!r}")
        said = headers.get("content-length", "")
        if not (said.isascii() and said.isdecimal()) or len(said) > 18:
            return wrong(f"its Content-Length is {said[:40]!r}" if said else "it has no Content-Length")
        length = int(said)
        wanted = headers.get("warc-type", "").lower() in TEXTUAL and length <= self.max_bytes + MAX_HEADER
        content: bytes | None = stream.read_in_member(length) if wanted else None
        found = stream.pass_over(length) if content is None else len(content)
        if found < length:
            return wrong(f"its Content-Length is {length}, but only {found} bytes follow")
        place_after, line = _next_line(stream)
        if line and not line.startswith(b"WARC/"):
            return wrong(f"its Content-Length is {length}, but no record begins behind that")
        stream.seek_member(*place_after)
        return Block(headers, content, *place, size + length)

    def _record(self, block: Block) -> Record | Bad | None:
        """The record of a block; None where it is not about a text of its own."""
        headers, content = block.headers, block.content
        kind, url = headers.get("warc-type", "").lower(), headers.get("warc-target-uri", "").strip("<>")
        if isinstance(content, Bad):
            return content
        if kind == "continuation" or (kind in TEXTUAL and "warc-segment-number" in headers):
            return Bad("segmented record", f"{url}: one part of a record in several, which are not joined", fatal=False)
        if kind not in TEXTUAL:
            return None
        if content is None:
            message = f"{url}: longer than {self.max_bytes} bytes; raise config.data.max_line_bytes if it is meant"
            return Bad("page too long", message, fatal=False)
        found = self._text(kind, headers, content)
        if isinstance(found, Bad):
            return replace(found, message=f"{url}: {found.message}")
        if self.group_field and self.group_field not in GROUPS:
            return Bad("missing group", f"group_field is {self.group_field!r}; of web archives it may be url or host")
        group = {"url": url, "host": _host(url)}.get(self.group_field, "")
        return replace(found, group=group)

    def _text(self, kind: str, headers: Headers, content: bytes) -> Record | Bad:
        if not _fits(headers.get("warc-block-digest", ""), [content]):
            return Bad("digest mismatch", "its bytes do not fit its WARC-Block-Digest: the archive is damaged")
        http, body, bodies = headers, content, [content]
        if kind == "response":
            response = parse_response(content)
            if response is None:
                return Bad("not HTML or text", "a response that is not HTTP", fatal=False)
            if response.status != 200:
                return Bad("HTTP status is not 200", f"HTTP status {response.status}", fatal=False)
            http, body = response.headers, response.body
            bodies = [body]
            if "chunked" in http.get("transfer-encoding", "").lower():
                try:
                    body = join_chunks(body) or body
                except EOFError:
                    return Bad("page cut short", "the last of its chunks are missing", fatal=False)
                bodies.append(body)
        media = http.media_type() or ("text/html" if re.match(rb"\s*<(!doctype|html)", body, re.IGNORECASE) else "")
        if media not in HTML and media != "text/plain":
            return Bad("not HTML or text", f"its type is {media or 'not said'}", fatal=False)
        unpacked = unpack(body, http.get("content-encoding", "") if kind == "response" else "", self.max_bytes)
        if unpacked is None:
            packing = http.get("content-encoding", "")
            return Bad("bad Content-Encoding", f"its Content-Encoding {packing!r} cannot be undone", fatal=False)
        if "warc-truncated" not in headers and not _fits(headers.get("warc-payload-digest", ""), [*bodies, unpacked]):
            return Bad("digest mismatch", "its bytes do not fit its WARC-Payload-Digest: the archive is damaged")
        if media == "text/plain":
            found = _plain(unpacked, self.max_bytes, http.charset())
        else:
            found = self.pages.read(unpacked, self.max_bytes, http.charset())
        return (
            replace(found, fatal=False) if isinstance(found, Bad) else found
        )  # strangers made it, and nobody can mend it


def _next_line(stream: Any) -> tuple[tuple[int, int], bytes]:
    """The next line that is not empty, with its place; the last is b"" """
    while True:
        place = stream.place()
        line = stream.readline(MAX_HEADER)
        if not line or line.strip():
            return place, line


def _fits(digest: str, contents: list[bytes]) -> bool:
    """Says whether a digest, as sha1:BASE32 or sha256:hex, is that of one of the contents; one of an unknown kind fits."""
    name, _, value = digest.strip().partition(":")
    name = name.lower().replace("-", "")
    if name not in ("sha1", "sha256", "md5") or not value:
        return True
    for content in contents:
        made = hashlib.new(name, content, usedforsecurity=False)
        if value.strip().lower().rstrip("=") in (
            base64.b32encode(made.digest()).decode().lower().rstrip("="),
            made.hexdigest(),
        ):
            return True
    return False


def _plain(raw: bytes, max_bytes: int, named: str) -> Record | Bad:
    if len(raw) > max_bytes:
        message = f"text longer than {max_bytes} bytes; raise config.data.max_line_bytes if it is meant"
        return Bad("page too long", message)
    text = decode_page(raw, named)
    if text is None:
        return Bad("unknown encoding", "in no known encoding, or not text")
    return Record(text) if text.strip() else Bad("empty text", "the text is blank")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _dictionary(raw: IO[bytes]) -> Any:
    """The dictionary with which the frames of a .warc.zst are packed, which its first frame holds, or None."""
    import zstandard

    head = raw.read(8)
    magic, size = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
    if magic != DICTIONARY:
        return None
    if size > MAX_DICTIONARY:
        raise UserError(f"{raw.name}: its dictionary is {size} bytes long")
    content = raw.read(size)
    try:
        if content.startswith(b"\x28\xb5\x2f\xfd"):
            content = zstandard.ZstdDecompressor().decompress(content, max_output_size=MAX_DICTIONARY)
        return zstandard.ZstdCompressionDict(content)
    except zstandard.ZstdError as error:
        raise UserError(f"{raw.name}: its dictionary is damaged ({error})") from None
