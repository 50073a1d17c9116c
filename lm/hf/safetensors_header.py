"""Where do the tensors of one safetensors file lie, and is its header what the format asks for?"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from lm.config import UserError

DTYPES = {
    "F64": np.dtype(np.float64), "F32": np.dtype(np.float32), "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16), "BOOL": np.dtype(np.bool_),
    "I64": np.dtype(np.int64), "I32": np.dtype(np.int32), "I16": np.dtype(np.int16), "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64), "U32": np.dtype(np.uint32), "U16": np.dtype(np.uint16), "U8": np.dtype(np.uint8),
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER = 2**25  # bytes: some 300,000 tensors in one file (the format allows 100 MB, which takes a GB to parse)
MAX_DIM, MAX_ELEMENTS, MAX_NAME = 2**40, 2**56, 512
AGAIN = "download the file again"

Shape = tuple[int, ...]


def read_bytes(file: BinaryIO, offset: int, size: int, where: str) -> np.ndarray:
    """Returns `size` bytes from `offset` on, as uint8; any thread may call it."""
    content = np.empty(size, np.uint8)
    done = 0
    try:
        while done < size:
            read = os.preadv(file.fileno(), [content[done:].data], offset + done)
            if not read:
                raise UserError(
                    f"{where}: the file ends at byte {offset + done}; it was cut short. {AGAIN.capitalize()}"
                )
            done += read
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    return content


def parse_json(content: bytes) -> Any:
    """Parses JSON in which no key comes twice; ValueError says what is wrong."""

    def to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            seen: set[str] = set()
            twice = [key for key, _ in pairs if key in seen or seen.add(key)]
            raise ValueError(f"the key {twice[0][:MAX_NAME]!r} comes twice")
        return value

    try:
        return json.loads(content.decode(), object_pairs_hook=to_dict)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error})") from None
    except RecursionError:
        raise ValueError("JSON nested too deep") from None


def read_header(path: Path, file: BinaryIO) -> dict[str, tuple[np.dtype, Shape, int]]:
    """Returns dtype, shape and place of every tensor; any header against the format is refused."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise UserError(f"{path}: has {size} bytes, which is no safetensors file; {AGAIN}")
    length = int(read_bytes(file, 0, 8, str(path)).view("<u8")[0])
    if length > min(size - 8, MAX_HEADER):
        raise UserError(
            f"{path}: says that its header has {length:,} bytes; the file has {size:,}, and a header at most {MAX_HEADER:,}. "
            f"It is cut short or no safetensors file: {AGAIN}"
        )
    try:
        header = parse_json(read_bytes(file, 8, length, str(path)).tobytes())
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"{path}: header: {error}; {AGAIN}") from None
    if not isinstance(header, dict):
        raise UserError(f"{path}: header: a JSON {type(header).__name__}, expected an object; {AGAIN}")
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise UserError(f"{path}: header: __metadata__ is not an object; {AGAIN}")
    found, spans = {}, []
    for name, entry in header.items():
        if len(name) > MAX_NAME:
            raise UserError(f"{path}: header: a tensor's name has {len(name):,} characters ({name[:40]!r}...); {AGAIN}")
        dtype, shape, begin, end = _read_entry(entry, f"{path}: tensor {name!r}")
        found[name] = (dtype, shape, 8 + length + begin)
        spans.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise UserError(
                f"{path}: tensor {name!r}: its data begin at byte {begin}, but those before it end at {at}; {AGAIN}"
            )
        at = end
    if at != size - 8 - length:
        raise UserError(
            f"{path}: the header describes {at:,} bytes of data, and the file has {size - 8 - length:,}; {AGAIN}"
        )
    return found


def _read_entry(entry: Any, where: str) -> tuple[np.dtype, Shape, int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise UserError(f"{where}: its header entry is not dtype, shape and data_offsets; {AGAIN}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise UserError(
            f"{where}: dtype {code!r} is not read (known: {', '.join(DTYPES)}). Quantised weights mean nothing without "
            "their scales: take the float16 or bfloat16 version of this model"
        )
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if len(numbers) != len(shape) + 2 or any(type(n) is not int or n < 0 for n in numbers):
        raise UserError(f"{where}: shape {shape!r}, data_offsets {offsets!r}: expected whole numbers; {AGAIN}")
    if max(shape, default=0) > MAX_DIM or math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
        raise UserError(f"{where}: shape {shape} is beyond any model; {AGAIN}")
    size = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != size:
        raise UserError(
            f"{where}: {code} of shape {shape} takes {size:,} bytes, but its data_offsets {offsets} span "
            f"{offsets[1] - offsets[0]:,}; {AGAIN}"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]
