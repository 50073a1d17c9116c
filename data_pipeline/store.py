"""What is in a folder of prepared data, is it whole, and how is it written so that a crash leaves nothing half made?

00.train.ids.npy         ids of all documents of source 0, one after the other (uint16, or uint32 above 65,536 ids)
00.train.offsets.npy     where each document begins, and the end
00.train.loss_start.npy  ids before the completion, or -1 for a plain text, or -2 for a conversation
00.train.learned.npy     where there are conversations: 1 for each id that an assistant said
00.train.keys.npy        64 bits that name the document
00.train.origins.npy     which of the files in 00.train.files.json it is from, and its line there; no part of what batches are read from
00.train.places.npy      streaming, in place of ids: where each document lies in its source
00.train.sizes.npy       and its bytes of text; no part of what batches are read from
tokenizer/  ledger.jsonl  report.json  report.md
manifest.json            what made it, counts, size and sha256 of every other file, and its own sha256; written last
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from data_pipeline.lines import hash_file
from data_pipeline.schema import UserError
from data_pipeline.tokenizer import Tokenizer, load_tokenizer

MANIFEST = "manifest.json"
NPY_HEAD = 128  # bytes of the header that numpy writes for any one-dimensional array
BLOCK = 2**20  # bytes that are written at once
STALE_SECONDS = 86_400.0  # a temporary folder in which nothing was written for so long is a leftover of a killed run


@dataclass(frozen=True)
class Shard:
    """The documents of one source in one split; ids lie on disk and are read when used."""

    ids: np.ndarray
    offsets: np.ndarray
    loss_start: np.ndarray
    keys: np.ndarray
    learned: np.ndarray | None = None
    labels: np.ndarray | None = None  # of each document the number of its name in label_names


class Prepared:
    """An opened folder of prepared data."""

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.manifest = folder, manifest
        self.tokenizer: Tokenizer = load_tokenizer(folder / "tokenizer")
        self.sources: list[str] = [entry["name"] for entry in manifest["sources"]]

    def shard(self, source: int, split: str) -> Shard:
        stem = f"{source:02d}.{split}."
        ids = np.asarray(np.load(self.folder / f"{stem}ids.npy", mmap_mode="r"))  # a plain view slices faster
        offsets, starts, keys = (
            np.load(self.folder / f"{stem}{name}.npy") for name in ("offsets", "loss_start", "keys")
        )
        path = self.folder / f"{stem}learned.npy"
        learned = np.asarray(np.load(path, mmap_mode="r")) if path.exists() else None
        labels = np.load(self.folder / f"{stem}labels.npy") if self.label_names(source, split) else None
        return Shard(ids, offsets, starts, keys, learned, labels)

    def label_names(self, source: int, split: str) -> list[str]:
        """The names of the labels in a shard, in no order that means anything; none where its rows have no label."""
        path = self.folder / f"{source:02d}.{split}.labels.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else []

    def has_shard(self, source: int, split: str) -> bool:
        return f"{source:02d}.{split}.ids.npy" in self.manifest["files"]

    def origins(self, source: int, split: str) -> tuple[list[str], np.ndarray]:
        """Returns (files, [documents, 2]): of each document the number of its file and its line there, 0 for all of it."""
        stem = f"{source:02d}.{split}."
        files = json.loads((self.folder / f"{stem}files.json").read_text("utf-8"))
        return files, np.load(self.folder / f"{stem}origins.npy")

    def places(self, source: int, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns (places int64 [documents, 4], keys uint64, bytes of text int64, labels or None) of a source that is streamed."""
        stem = f"{source:02d}.{split}."
        places, keys, sizes = (np.load(self.folder / f"{stem}{name}.npy") for name in ("places", "keys", "sizes"))
        labels = np.load(self.folder / f"{stem}labels.npy") if self.label_names(source, split) else None
        return places, keys, sizes, labels

    def content_sha256(self) -> dict[str, str]:
        """Returns the hash of every file that batches are read from."""
        read = (
            name
            for name in self.manifest["files"]
            if name.endswith((".npy", ".labels.json")) and not name.endswith((".origins.npy", ".sizes.npy"))
        )
        return {name: self.manifest["files"][name]["sha256"] for name in read}


def ids_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Appends documents to the files of one source and split."""

    def __init__(self, folder: Path, source: int, split: str, vocab_size: int):
        self.stem, self.dtype = folder / f"{source:02d}.{split}", ids_dtype(vocab_size)
        self.file = open(f"{self.stem}.ids.npy", "wb")  # noqa: SIM115  closed by close()
        self.file.write(b"\0" * NPY_HEAD)
        self.learned: IO[bytes] | None = None
        self.tokens, self.unknown = 0, 0
        self.sizes, self.loss_start, self.keys, self.origins = [], [], [], []
        self.labels: list[np.ndarray] = []
        self.files: dict[str, int] = {}
        self.names: dict[str, int] = {}

    def add(
        self, ids: np.ndarray, sizes: np.ndarray, loss_start: np.ndarray, keys: np.ndarray, unknown: np.ndarray,
        files: np.ndarray, origins: np.ndarray, names: np.ndarray, labels: np.ndarray, learned: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Adds documents: their `ids` one after the other, of each its size, loss start, key, file and line, label."""
        self.file.write(ids.astype(self.dtype).tobytes())  # tofile would hide why a write fails
        if learned is not None and self.learned is None:  # the first conversation, perhaps after other documents
            self.learned = open(f"{self.stem}.learned.npy", "wb")  # noqa: SIM115  closed by close()
            self.learned.write(b"\0" * NPY_HEAD)
            for at in range(0, self.tokens, BLOCK):
                self.learned.write(b"\0" * min(BLOCK, self.tokens - at))
        if self.learned is not None:
            self.learned.write(bytes(len(ids)) if learned is None else learned.astype(np.uint8).tobytes())
        self.tokens += len(ids)
        self.unknown += int(unknown)
        numbers = np.array([self.files.setdefault(name, len(self.files)) for name in files.tolist()], np.int64)
        origins = np.stack([numbers[origins[:, 0]], origins[:, 1]], axis=1)
        numbers = np.array([self.names.setdefault(name, len(self.names)) for name in names.tolist()], np.int32)
        for held, new in (
            (self.sizes, sizes), (self.loss_start, loss_start), (self.keys, keys), (self.origins, origins),
            (self.labels, numbers[labels]),
        ):  # fmt: skip
            held.append(new)

    def close(self) -> dict[str, int]:
        """Completes the files; returns the counts for the manifest."""
        for file, dtype in ((self.file, self.dtype), (self.learned, np.dtype("u1"))):
            if file is not None:
                head = io.BytesIO()
                described = {"descr": dtype.str, "fortran_order": False, "shape": (self.tokens,)}
                np.lib.format.write_array_header_1_0(head, described)
                assert len(head.getvalue()) == NPY_HEAD
                file.seek(0)
                file.write(head.getvalue())
                file.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self.sizes))])
        np.save(f"{self.stem}.offsets.npy", offsets.astype(np.int64))
        np.save(f"{self.stem}.loss_start.npy", np.concatenate(self.loss_start).astype(np.int32))
        np.save(f"{self.stem}.keys.npy", np.concatenate(self.keys).astype(np.uint64))
        np.save(f"{self.stem}.origins.npy", np.concatenate(self.origins).astype(np.int64))
        write_text(Path(f"{self.stem}.files.json"), [json.dumps(list(self.files), indent=0)])
        _write_labels(str(self.stem), self.names, np.concatenate(self.labels))
        return {"documents": len(offsets) - 1, "tokens": self.tokens, "unknown": self.unknown}


class PlacesWriter:
    """Keeps where the documents of one source and split lie."""

    def __init__(self, folder: Path, source: int, split: str):
        self.stem, self.names = f"{folder}/{source:02d}.{split}", dict[str, int]()
        self.places, self.keys, self.sizes, self.labels = [], [], [], []

    def add(self, places: np.ndarray, keys: list[int], sizes: np.ndarray, labels: Iterable[str]) -> None:
        self.places.append(places)
        self.sizes.append(sizes)
        self.keys += keys
        self.labels += [self.names.setdefault(label, len(self.names)) for label in labels]

    def close(self) -> None:
        np.save(f"{self.stem}.places.npy", np.concatenate(self.places))
        np.save(f"{self.stem}.sizes.npy", np.concatenate(self.sizes))
        np.save(f"{self.stem}.keys.npy", np.array(self.keys, np.uint64))
        _write_labels(self.stem, self.names, np.array(self.labels, np.int32))


def _write_labels(stem: str, names: dict[str, int], labels: np.ndarray) -> None:
    if any(names):
        np.save(f"{stem}.labels.npy", labels)
        write_text(Path(f"{stem}.labels.json"), [json.dumps(list(names), ensure_ascii=False, indent=0)])


def open_prepared(folder: Path) -> Prepared | str:
    """Opens a folder after checking size and sha256 of every file; returns what is wrong with it otherwise."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        if manifest.pop("sha256") != _digest(manifest):
            return f"{MANIFEST} has changed (sha256)"
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read ({error})"
    for name, entry in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {entry['bytes']}"
        if hash_file(path) != entry["sha256"]:
            return f"{name} has changed (sha256)"
    return Prepared(folder, manifest)


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def make_temporary(cache_dir: Path, key: str) -> Path:
    """Makes a folder to write in, beside the final one; removes those that killed runs left behind long ago."""
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        for old in cache_dir.glob(".tmp-*"):
            with contextlib.suppress(FileNotFoundError):  # another process was first
                newest = max(path.stat().st_mtime for path in [old, *old.rglob("*")])
                if time.time() - newest > STALE_SECONDS:
                    shutil.rmtree(old, ignore_errors=True)
        return Path(tempfile.mkdtemp(prefix=f".tmp-{key}-", dir=cache_dir))
    except OSError as error:
        raise explain_write(f"config.data.cache_dir={str(cache_dir)!r}", error) from None


def explain_write(key: str, error: OSError) -> UserError:
    reason = "no space left on the disk" if error.errno == errno.ENOSPC else error.strerror or str(error)
    return UserError(f"{key}: cannot write prepared data: {reason}; name another folder")


def commit(temporary: Path, folder: Path, manifest: dict[str, Any]) -> Prepared:
    """Signs what lies in `temporary`, makes it durable and renames it to `folder`, or uses what another process put there."""
    names = sorted(str(path.relative_to(temporary)) for path in temporary.rglob("*") if path.is_file())
    manifest["files"] = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": hash_file(temporary / name)} for name in names
    }
    signed = {**manifest, "sha256": _digest(manifest)}
    write_text(temporary / MANIFEST, [json.dumps(signed, indent=1, ensure_ascii=False)])
    for path in [*(temporary / name for name in names), temporary / "tokenizer", temporary]:
        _sync(path)
    for _ in range(3):
        try:
            os.rename(temporary, folder)
            _sync(folder.parent)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            theirs = open_prepared(folder)
            if isinstance(theirs, Prepared):
                shutil.rmtree(temporary, ignore_errors=True)
                return theirs
            set_aside(folder)
    ours = open_prepared(folder)
    if isinstance(ours, str):
        raise UserError(f"{folder}: {ours} just after it was written; is the disk failing?")
    return ours


def set_aside(folder: Path) -> None:
    """Removes a damaged folder; the rename first makes sure that nobody reads a half-removed one."""
    aside = Path(tempfile.mkdtemp(prefix=".tmp-damaged-", dir=folder.parent))
    with contextlib.suppress(FileNotFoundError):  # another process was first
        os.rename(folder, aside / "old")
    shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, lines: Iterable[str]) -> None:
    # a file name that is not UTF-8 comes as lone surrogates, which JSON writes as backslashes too
    with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
        for line in lines:
            file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
