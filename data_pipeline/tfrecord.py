"""How are the records of a TFRecord file read one after the other, or one by its place, every checksum checked?

Without TensorFlow: the frame is a length and two checksums, and its reader gives no places.
"""

from __future__ import annotations

import importlib
import importlib.util
import struct
from collections.abc import Iterator
from typing import IO, Any

from data_pipeline.config import SourceConfig
from data_pipeline.example import form_of_bytes, record_from_bytes
from data_pipeline.lines import WHOLE, Span, SpanReader, check_looks, open_bytes
from data_pipeline.records import Bad, Place, Record
from data_pipeline.row_file import Row
from data_pipeline.schema import ConfigError, UserError

HEAD = struct.Struct("<QI")  # length of the record, checksum of these eight bytes
CHECKSUM = struct.Struct("<I")
AT_ONCE = 2**20  # bytes that are read together


def import_crc32c() -> Any:
    if importlib.util.find_spec("google_crc32c") is None:
        raise ConfigError('reading TFRecord files needs the package google-crc32c: pip install "lm[corpus]"')
    return importlib.import_module("google_crc32c").value


class TFRecordFile:
    nothing = "no records in it"

    def __init__(self, path: str, config: SourceConfig, max_bytes: int):
        self.path, self.config, self.max_bytes, self.form = path, config, max_bytes, ""
        self.crc32c, self.reader = import_crc32c(), SpanReader()

    def spans(self, goal: int) -> list[tuple[Span, int]]:
        return [(WHOLE, 0)]

    def read(self, span: Span = WHOLE) -> Iterator[Row]:
        offset = 0
        with open_bytes(self.path) as stream:
            number = 0
            while head := stream.read(HEAD.size):
                number += 1
                length, said = HEAD.unpack(head) if len(head) == HEAD.size else (0, 0)
                if len(head) < HEAD.size or self._checksum(head[:8]) != said:
                    check_looks(self.path, head)
                    raise UserError(f"{self.path}: is not a TFRecord file, or damaged or cut short at record {number}")
                record = self._record(self._content(stream, length, number))
                yield Row(number, record, offset + HEAD.size, length)
                offset += HEAD.size + length + CHECKSUM.size

    def load(self, place: Place) -> Record | Bad:
        if not self.form:
            next(self.read(), None)
        return self._parse(self.reader.read(self.path, place.offset, place.length))

    def close(self) -> None:
        self.reader.close()

    def _content(self, stream: IO[bytes], length: int, number: int) -> bytes | None:
        """The bytes of a record and its checksum; None where they are too many."""
        left, parts = length + CHECKSUM.size, []
        while left:
            part = stream.read(min(left, AT_ONCE))
            if not part:
                raise UserError(f"{self.path}: is damaged or cut short in record {number}")
            left -= len(part)
            if length <= self.max_bytes:
                parts.append(part)
        return b"".join(parts) if parts else None

    def _record(self, content: bytes | None) -> Record | Bad:
        if content is None:
            message = f"record longer than {self.max_bytes} bytes; raise config.data.max_line_bytes if it is meant"
            return Bad("line too long", message)
        raw = content[: -CHECKSUM.size]
        if self._checksum(raw) != CHECKSUM.unpack(content[-CHECKSUM.size :])[0]:
            return Bad("wrong checksum", "its bytes do not fit its checksum: the file is damaged")
        return self._parse(raw)

    def _parse(self, raw: bytes) -> Record | Bad:
        self.form = self.form or form_of_bytes(raw)
        return record_from_bytes(raw, self.form, self.config)

    def _checksum(self, raw: bytes) -> int:
        """CRC-32C, turned and moved, so that it is no checksum of data with checksums in it."""
        crc = self.crc32c(raw)
        return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
