"""Which named fields do the bytes of one record hold? A tf.train.Example, an object of JSON, or a text; told by the first of a file.

The message is read here: it is small, and TensorFlow takes seconds to import.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from data_pipeline.config import SourceConfig
from data_pipeline.forms import fields_of, record_from_fields
from data_pipeline.parse import parse_row
from data_pipeline.records import Bad, Record


class NotExample(ValueError):
    pass


def form_of_bytes(raw: bytes) -> str:
    """Returns "example", "jsonl" or "text": what the bytes of a record are.

    >>> form_of_bytes(b'{"text": "a"}'), form_of_bytes("好".encode()), form_of_bytes(bytes.fromhex("0a0b0a090a017412040a020a00"))
    ('jsonl', 'text', 'example')
    """
    if raw.lstrip().startswith(b"{"):
        try:
            return "jsonl" if isinstance(json.loads(raw), dict) else "text"
        except (ValueError, RecursionError):
            pass
    try:
        return "example" if parse_example(raw) else "text"
    except NotExample:
        return "text"


def record_from_bytes(raw: bytes, form: str, config: SourceConfig) -> Record | Bad:
    """Returns the record of one row; `form` is what `form_of_bytes` said of the first."""
    if form != "example":
        return parse_row(raw, form, config)
    named = fields_of(config)
    try:
        fields = parse_example(raw)
    except NotExample as error:
        return Bad("not an Example", f"not a tf.train.Example: {error}")
    try:  # a field that is not asked for may hold bytes of any kind
        row = {name: _plain(values) if name in named else values for name, values in fields.items()}
    except UnicodeDecodeError as error:
        return Bad("not UTF-8", f"not UTF-8 at byte {error.start}")
    return record_from_fields(row, config)


def parse_example(raw: bytes) -> dict[str, list[Any]]:
    """Reads Example{features{feature: map<string, bytes_list | float_list | int64_list>}}; NotExample where it is none."""
    features: dict[str, list[Any]] = {}
    for number, message in _fields(raw):
        for inner, entry in _fields(_bytes(message)) if number == 1 else ():
            if inner == 1:
                parts = dict(_fields(_bytes(entry)))
                try:
                    name = _bytes(parts.get(1, b"")).decode()
                except UnicodeDecodeError:
                    raise NotExample("the name of a feature is not UTF-8") from None
                features[name] = _values(_bytes(parts.get(2, b"")))
        if number != 1:
            raise NotExample(f"it has a field {number}")
    return features


def _values(feature: bytes) -> list[Any]:
    """The values of one feature, of whichever kind of list."""
    values: list[Any] = []
    for kind, content in _fields(feature):
        for number, value in _fields(_bytes(content)):
            if number != 1 or kind not in (1, 2, 3):
                raise NotExample("a feature that is no list of bytes, floats or integers")
            if kind == 1:
                values.append(_bytes(value))
            elif kind == 2:
                floats = _bytes(value)
                if len(floats) % 4:
                    raise NotExample("a list of floats that is cut short")
                values += struct.unpack(f"<{len(floats) // 4}f", floats)
            elif isinstance(value, int):
                values.append(_signed(value))
            else:
                at = 0
                while at < len(value):
                    one, at = _varint(value, at)
                    values.append(_signed(one))
    return values


def _fields(raw: bytes) -> Iterator[tuple[int, bytes | int]]:
    """The fields of a protocol buffer message: number, and bytes (32 bits too) or an integer."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise NotExample(f"wire type {wire}")
        if not number or at + size > len(raw):
            raise NotExample("it is cut short")
        yield number, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(raw) or shift > 63:
            raise NotExample("it is cut short")
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _bytes(value: bytes | int) -> bytes:
    if isinstance(value, int):
        raise NotExample("an integer where a message should be")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _plain(values: list[Any]) -> Any:
    """One value as itself, several as a list; text as text."""
    plain = [value.decode() if isinstance(value, bytes) else value for value in values]
    return plain[0] if len(plain) == 1 else plain
