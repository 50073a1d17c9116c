"""Which tensors does a Hugging Face folder hold, and how are they read and written one at a time?

The format (a length, a JSON header, the bytes) is small enough to stand here: the safetensors package has no writer
that streams, and its messages do not name the way out. Tensors are read, not memory-mapped: under a map, a file that
gets shorter or a network drive that fails kills the process instead of raising.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data_pipeline.machine import sync
from lm.config import UserError
from lm.hf.safetensors_header import AGAIN, CODES, Shape, parse_json, read_bytes, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_LISTED = 8
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")

Shapes = dict[str, tuple[np.dtype, Shape]]


class Tensors:
    """The tensors of a model by their Hugging Face names; `shapes` says the stored dtype and the shape of each."""

    def __init__(self, name: str, shapes: Shapes, read: Callable[[str], np.ndarray], files: ExitStack):
        self.name, self.shapes = name, shapes
        self._read, self._files = read, files

    def read(self, name: str) -> np.ndarray:
        """Reads one whole tensor; no other is in memory."""
        return self._read(name)

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_folder(folder: str | Path) -> Tensors:
    """Opens the safetensors of a folder, whose headers are checked whole before any tensor is read."""
    folder = Path(folder)
    return _open(str(folder), _find_shards(folder), folder / INDEX)


def open_tensors(path: str | Path) -> Tensors:
    """Opens one safetensors file, whatever its name."""
    return _open(str(path), {Path(path): None}, Path(path))


def write_tensors(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes one safetensors file."""
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    _write_file(Path(path), shapes, tensors.__getitem__)


def _open(name: str, shards: Mapping[Path, set[str] | None], index: Path) -> Tensors:
    shapes: Shapes = {}
    places: dict[str, tuple[Path, BinaryIO, int]] = {}
    with ExitStack() as files:
        for path, expected in shards.items():
            file = open_file(path, files)
            found = read_header(path, file)
            if expected is not None:
                _check_shard(index, path.name, expected, found)
            for name, (dtype, shape, offset) in found.items():
                shapes[name], places[name] = (dtype, shape), (path, file, offset)
        kept = files.pop_all()

    def read(name: str) -> np.ndarray:
        (dtype, shape), (path, file, offset) = shapes[name], places[name]
        size = math.prod(shape) * dtype.itemsize
        return read_bytes(file, offset, size, f"{path}: tensor {name!r}").view(dtype).reshape(shape)

    return Tensors(name, shapes, read, kept)


def open_file(path: Path, files: ExitStack) -> BinaryIO:
    """Opens a file for `read_bytes`; `files` closes it."""
    try:
        return files.enter_context(path.open("rb", buffering=0))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def list_some(names: Iterable[str]) -> str:
    """Writes out the first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(map(repr, names[:MAX_LISTED])) + more


def _find_shards(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the files to read, and which tensors each must hold (None: whatever it has)."""
    try:
        present = sorted(path.name for path in folder.iterdir())
        if (folder / SINGLE).is_file():
            return {folder / SINGLE: None}
        indexed = (folder / INDEX).is_file()
    except OSError as error:
        raise UserError(f"{folder}: not a folder that can be read ({error.strerror})") from None
    if not indexed:
        raise UserError(f"{folder}: {_say_what_is_there(folder, present)}")
    shards = _read_index(folder / INDEX)
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} of {len(shards)} files of {INDEX} are missing: {', '.join(missing)}. Download them"
        )
    return {folder / name: tensors for name, tensors in shards.items()}


def _say_what_is_there(folder: Path, present: list[str]) -> str:
    wanted = f"holds neither {SINGLE} nor {INDEX}"
    if not present:
        return "is empty"
    if "adapter_model.safetensors" in present:
        return f"{wanted}, but adapter_model.safetensors: an adapter, which needs the model that it was trained on"
    if any(re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) for name in present):
        return f"{wanted}, but parts of a model: download {INDEX} too"
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if pickled:
        return (
            f"{wanted}, but {list_some(pickled)}. Reading such a file can run any code that its author put there, so it "
            "is not read. Many models have safetensors in another revision (refs/pr/N, or a branch that says so); or, in "
            "an environment that holds nothing of value, convert it: transformers' from_pretrained(FOLDER), then "
            "save_pretrained(OUT, safe_serialization=True)"
        )
    gguf = sorted(name for name in present if name.endswith(".gguf"))
    if gguf:
        return f"{wanted}; name its GGUF file instead: gguf:{folder / gguf[0]}"
    return f"{wanted}; it holds {list_some(present)}"


def _read_index(path: Path) -> dict[str, set[str]]:
    """Returns the names of the shards -> the tensors that the index puts there."""
    try:
        index = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}; {AGAIN}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: has no 'weight_map' from tensor to file; {AGAIN}")
    shards: dict[str, set[str]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*\.safetensors", name, re.ASCII):
            raise UserError(
                f"{path}: puts tensor {tensor!r} in {name!r}, which is not the name of a .safetensors file in this folder"
            )
        shards.setdefault(name, set()).add(tensor)
    return dict(sorted(shards.items()))


def _check_shard(index: Path, name: str, expected: set[str], found: Mapping[str, Any]) -> None:
    """Each tensor is where the index says and nowhere else; so none is in two files."""
    if missing := expected - found.keys():
        raise UserError(
            f"{index}: puts tensors in {name} that it does not hold: {list_some(missing)}. {AGAIN.capitalize()}"
        )
    if extra := found.keys() - expected:
        raise UserError(
            f"{index}: {name} holds tensors that the index does not put there: {list_some(extra)}. {AGAIN.capitalize()}"
        )


def write_folder(
    folder: str | Path,
    shapes: Mapping[str, tuple[Any, Shape]],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int = 5_000_000_000,
) -> list[str]:
    """Writes a model as transformers does, in one file or, past `max_shard_bytes`, in several with an index.

    `read(name)` is called once for each tensor, in order, and may hand over memory that it uses again. Files appear
    when all are complete. A folder that holds a model already is refused. Returns the names of the files.
    """
    folder = Path(folder)
    sizes = {name: math.prod(shape) * np.dtype(dtype).itemsize for name, (dtype, shape) in shapes.items()}
    shards = _split(sizes, max_shard_bytes)
    width = len(shards)
    names = [SINGLE] if width == 1 else [f"model-{i:05d}-of-{width:05d}.safetensors" for i in range(1, width + 1)]
    parts: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = sorted(path.name for path in folder.glob("model*.safetensors*") if path.suffix != ".part")
        if there:
            raise UserError(f"{folder}: holds a model already ({list_some(there)}); name another folder, or delete it")
        for name, shard in zip(names, shards):
            parts.append(folder / f"{name}.part")
            _write_file(parts[-1], {tensor: shapes[tensor] for tensor in shard}, read)
        if width > 1:
            weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
            index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
            names.append(INDEX)  # the last to appear: without it, the shards are no model
            parts.append(folder / f"{INDEX}.part")
            with parts[-1].open("wb") as file:
                file.write(json.dumps(index, indent=2, sort_keys=True).encode() + b"\n")
                _sync(file)
        for part in parts:
            part.replace(part.with_suffix(""))
        sync(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return names


def _split(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Fills file after file; a tensor larger than the limit has one to itself."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_file(path: Path, shapes: Mapping[str, tuple[Any, Shape]], read: Callable[[str], np.ndarray]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(shapes, key=lambda n: -np.dtype(shapes[n][0]).itemsize):  # so that every tensor is aligned
        dtype, shape = np.dtype(shapes[name][0]), shapes[name][1]
        end = at + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, (dtype, shape) in shapes.items():
            array = read(name)
            if (array.dtype, array.shape) != (np.dtype(dtype), tuple(shape)):
                raise ValueError(f"tensor {name!r}: {array.dtype} {array.shape}, but {dtype} {shape} was promised")
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
