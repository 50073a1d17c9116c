"""Which bytes does an HTTP response carry, as a crawler wrote it down? Chunks joined, packing undone, never more than is asked for."""

from __future__ import annotations

import io
import re
import zlib
from typing import NamedTuple

from data_pipeline.packed import PackedReader
from data_pipeline.schema import UserError

MAX_HEADER = 65_536  # bytes
STATUS = re.compile(rb"HTTP/\d(?:\.\d)? +(\d{3})")
CHARSET = re.compile(r"""charset\s*=\s*["']?([\w.:+-]{2,40})""", re.IGNORECASE)
CHUNK = re.compile(rb"\s*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\n]{0,200})?\r?\n")


class Headers(dict[str, str]):
    """Lower-case names to values; of a name that is there twice the first counts."""

    def media_type(self) -> str:
        return self.get("content-type", "").split(";")[0].strip().lower()

    def charset(self) -> str:
        found = CHARSET.search(self.get("content-type", ""))
        return found[1] if found else ""


class Response(NamedTuple):
    status: int
    headers: Headers
    body: bytes  # as it was sent


def parse_headers(block: bytes) -> Headers:
    """Reads `name: value` lines; those without a colon are passed over, those that begin with a space go on from the last."""
    headers, name = Headers(), ""
    for line in block.decode("utf-8", "replace").split("\n"):
        if line[:1] in (" ", "\t") and name:
            headers[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower() if colon else ""
        if name:
            headers.setdefault(name, value.strip())
    return headers


def split_header(content: bytes) -> tuple[bytes, bytes] | None:
    """Cuts at the first empty line; None where there is none within MAX_HEADER."""
    ends = [(at, len(mark)) for mark in (b"\r\n\r\n", b"\n\n") if (at := content.find(mark, 0, MAX_HEADER)) >= 0]
    if not ends:
        return None
    at, size = min(ends)
    return content[:at], content[at + size :]


def parse_response(content: bytes) -> Response | None:
    """Reads a response, or None where the bytes are none."""
    found, parts = STATUS.match(content), split_header(content)
    if not found or parts is None:
        return None
    return Response(int(found[1]), parse_headers(parts[0].partition(b"\n")[2]), parts[1])


def join_chunks(body: bytes) -> bytes | None:
    """Joins what was sent in chunks; None where it was not, as in archives whose crawler has joined them already.

    Raises EOFError where the last chunks are missing.
    """
    parts: list[bytes] = []
    at = 0
    while found := CHUNK.match(body, at):
        size = int(found[1], 16)
        if not size:
            return b"".join(parts)
        at = found.end() + size
        if body[at : at + 1] not in (b"\r", b"\n"):
            break
        parts.append(body[found.end() : at])
    if parts:
        raise EOFError
    return None


def unpack(body: bytes, encoding: str, limit: int) -> bytes | None:
    """Undoes a Content-Encoding, up to `limit` + 1 bytes; None where it is not known or the bytes are damaged.

    Bytes that are not packed come back as they are: many crawlers unpack and leave the header.
    """
    for name in reversed([part.strip().lower() for part in encoding.split(",")]):
        if name in ("", "identity", "none", "utf-8"):
            continue
        unpacked = _unpack_once(body, name, limit)
        if unpacked is None:
            return None
        body = unpacked
    return body


def _unpack_once(body: bytes, name: str, limit: int) -> bytes | None:
    unpack_one = UNPACKERS.get(name)
    if unpack_one is None:
        return None
    try:
        return unpack_one(body, limit)
    except (zlib.error, UserError):
        return body if _is_text(body) else None


def _gunzip(body: bytes, limit: int) -> bytes:
    return _inflate(body, 31, limit)


def _deflate(body: bytes, limit: int) -> bytes:
    return _inflate(body, 15 if body.startswith(b"\x78") else -15, limit)  # servers send both kinds by this name


def _inflate(body: bytes, window: int, limit: int) -> bytes:
    unpacker = zlib.decompressobj(window)
    made = unpacker.decompress(body, limit + 1)
    if not unpacker.eof and len(made) <= limit:
        raise zlib.error("cut short")
    return made


def _unzstd(body: bytes, limit: int) -> bytes:
    raw = io.BytesIO(body)
    raw.name = "body"  # type: ignore[attr-defined]
    return PackedReader(raw, ".zst").read(limit + 1)


def _unbrotli(body: bytes, limit: int) -> bytes:
    import brotli

    unpacker, parts, made, fed = brotli.Decompressor(), [], 0, body
    while made <= limit and not unpacker.is_finished():
        try:
            part = unpacker.process(fed, output_buffer_limit=65_536)
        except brotli.error:
            raise zlib.error("damaged") from None
        if not part:
            raise zlib.error("cut short")
        parts.append(part)
        made, fed = made + len(part), b""
    return b"".join(parts)


UNPACKERS = {
    "gzip": _gunzip, "x-gzip": _gunzip, "deflate": _deflate, "br": _unbrotli, "zstd": _unzstd,
}  # fmt: skip


def _is_text(body: bytes) -> bool:
    """Says whether bytes that claim to be packed are a page all the same."""
    return body[:512].lstrip()[:1] == b"<" and b"\0" not in body[:512]
