"""What does a GGUF file say about itself: its metadata, and where which tensor lies in which encoding?

Read here and not with the gguf package's reader, which makes an array of every string: 8 s and 550 MiB for the
vocabulary of Qwen2, against a third of a second, and which trusts what it reads. The package knows the encodings.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lm.config import UserError
from lm.hf.safetensors_header import AGAIN, MAX_DIM, MAX_ELEMENTS, Shape

MAX_DEPTH = 2  # of arrays in arrays
MAX_COUNT, MAX_VALUE = 2**24, 2**28  # elements of an array; bytes of a text or of an array of numbers
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
PLAIN = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2)}  # number of an encoding -> name, values, bytes a block
NEEDS_PACKAGE = "needs the gguf package: pip install 'lm[gguf]'"


@dataclass(frozen=True)
class StoredTensor:
    kind: int  # number of its encoding
    shape: Shape  # as numpy has it: slowest dimension first
    offset: int  # of its first byte in the file
    size: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    path: Path
    fields: dict[str, Any]
    tensors: dict[str, StoredTensor]


def read_gguf_header(path: Path, files: ExitStack) -> tuple[GgufHeader, BinaryIO]:
    """Reads and checks all that stands before the data; `files` closes the file."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; name the GGUF file itself")
    try:
        file = files.enter_context(path.open("rb"))
        return _Reader(path, file).header(), file
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except _MalformedError as error:
        raise UserError(f"{path}: not a whole GGUF file: {error}. {AGAIN.capitalize()}") from None


@cache
def find_encoding(kind: int) -> tuple[str, int, int]:
    """Returns name, values a block and bytes a block of an encoding; KeyError where there is none that can be read."""
    if kind in PLAIN:
        return PLAIN[kind]
    gguf = import_gguf()
    try:
        encoding = gguf.GGMLQuantizationType(kind)
        values, size = gguf.GGML_QUANT_SIZES[encoding]
        gguf.dequantize(np.zeros((1, size), np.uint8), encoding)
    except (ValueError, KeyError, NotImplementedError):
        raise KeyError(kind) from None
    return encoding.name, values, size


def import_gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise UserError(f"reading quantised GGUF tensors {NEEDS_PACKAGE}") from None
    return gguf


class _MalformedError(ValueError):
    """What makes the file no GGUF file."""


class _Reader:
    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.left = self.total = os.fstat(file.fileno()).st_size

    def header(self) -> GgufHeader:
        self._check_start()
        count, pairs = self._number("<u8"), self._number("<u8")
        self._check_count("metadata keys", pairs, 13)
        fields: dict[str, Any] = {}
        for _ in range(pairs):
            key = self._string("the name of a metadata key")
            if key in fields:
                raise _MalformedError(f"the metadata key {key[:80]!r} comes twice")
            fields[key] = self._value(self._number("<u4"), key)
        return GgufHeader(self.path, fields, self._tensors(count, fields.get("general.alignment", 32)))

    def _check_start(self) -> None:
        start = self._take(8, "its first 8 bytes")
        if start[:4] != b"GGUF":
            raise UserError(f"{self.path}: begins with {start[:4]!r}, so it is no GGUF file")
        (version,) = struct.unpack("<I", start[4:])
        if version & 0xFFFF == 0:
            raise UserError(f"{self.path}: a big-endian GGUF file, which is not read; take the usual little-endian one")
        if version not in (2, 3):
            raise UserError(
                f"{self.path}: GGUF version {version}; versions 2 and 3 are read. Take a newer conversion of this model"
            )

    def _tensors(self, count: int, alignment: Any) -> dict[str, StoredTensor]:
        self._check_count("tensors", count, 24)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise _MalformedError(f"general.alignment is {alignment!r}, expected a power of two")
        entries = [self._tensor() for _ in range(count)]
        start = -(-(self.total - self.left) // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        spans = []
        for name, shape, kind, offset in entries:
            if name in tensors:
                raise _MalformedError(f"tensor {name[:80]!r} comes twice")
            size = self._size(name, shape, kind)
            if offset % alignment or start + offset + size > self.total:
                raise _MalformedError(
                    f"tensor {name!r}: its {size:,} bytes should begin {offset:,} bytes into the data, which are "
                    f"{max(self.total - start, 0):,} bytes long in steps of {alignment}"
                )
            tensors[name] = StoredTensor(kind, shape, start + offset, size)
            spans.append((offset, offset + size, name))
        spans.sort()
        for (_, end, first), (begin, _, second) in itertools.pairwise(spans):
            if begin < end:
                raise _MalformedError(f"the data of tensors {first!r} and {second!r} overlap")
        return tensors

    def _tensor(self) -> tuple[str, Shape, int, int]:
        name = self._string("the name of a tensor")
        dims = self._number("<u4")
        if not name or len(name) > 256 or dims > 4:
            raise _MalformedError(f"tensor {name[:80]!r}: has a name of {len(name):,} characters and {dims} dimensions")
        shape = tuple(self._number("<u8") for _ in range(dims))[::-1]
        if max(shape, default=0) > MAX_DIM or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
            raise _MalformedError(f"tensor {name!r}: shape {shape} is beyond any model")
        return name, shape, self._number("<u4"), self._number("<u8")

    def _size(self, name: str, shape: Shape, kind: int) -> int:
        try:
            encoding, values, size = find_encoding(kind)
        except KeyError:
            raise UserError(
                f"{self.path}: tensor {name!r}: its encoding, number {kind}, is not one that can be read here; take "
                "another quantisation of this model (F16, BF16, Q8_0, Q6_K and Q4_K can be read)"
            ) from None
        except UserError as error:
            raise UserError(f"{self.path}: tensor {name!r}: {error}") from None
        row = shape[-1] if shape else 1
        if row % values:
            raise _MalformedError(f"tensor {name!r}: rows of {row} values are no whole blocks of {encoding} ({values})")
        return math.prod(shape) // values * size

    def _value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self._string(f"the value of {key[:80]!r}")
        if kind in NUMBERS:
            return _to_python(np.frombuffer(self._take(np.dtype(NUMBERS[kind]).itemsize, key), NUMBERS[kind])[0])
        if kind != ARRAY or depth == MAX_DEPTH:
            raise _MalformedError(f"the value of {key[:80]!r} has type {kind}, which there is not")
        inner, count = self._number("<u4"), self._number("<u8")
        if inner in NUMBERS:
            dtype = np.dtype(NUMBERS[inner])
            self._check_count(f"elements of {key[:80]!r}", count, dtype.itemsize)
            return np.frombuffer(self._take(count * dtype.itemsize, key), dtype)
        self._check_count(f"elements of {key[:80]!r}", count, 8)
        return [self._value(inner, key, depth + 1) for _ in range(count)]

    def _string(self, what: str) -> str:
        content = self._take(self._number("<u8"), what)
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise _MalformedError(f"{what} is not UTF-8: {content[:40]!r}") from None

    def _number(self, dtype: str) -> int:
        size = int(dtype[-1])
        return int.from_bytes(self._take(size, f"a number at byte {self.total - self.left:,}"), "little")

    def _check_count(self, what: str, count: int, size: int) -> None:
        if count > MAX_COUNT:
            raise _MalformedError(f"{count:,} {what} are beyond any model")
        if count * size > self.left:
            raise _MalformedError(f"{count:,} {what}, for which the {self.left:,} bytes that follow are too few")

    def _take(self, size: int, what: str) -> bytes:
        if size > min(self.left, MAX_VALUE):
            raise _MalformedError(f"{what} should take {size:,} bytes, and {self.left:,} are left")
        content = self.file.read(size)
        if len(content) < size:
            raise _MalformedError(f"it was cut short while being read, in {what}")
        self.left -= size
        return content


def _to_python(number: Any) -> Any:
    """Returns a float32 as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    return float(str(number)) if isinstance(number, np.floating) else number.item()
