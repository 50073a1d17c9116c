"""How do the documents of one source and split become the files that data_pipeline/store.py lists?"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from data_pipeline import sealed
from data_pipeline.store import save_array, write_text

NPY_HEAD = 128  # bytes of the header that numpy writes for any one-dimensional array


def ids_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class ShardWriter:
    """Appends documents, of `tokens` ids in all, to the files of one source and split; `any_learned`: with conversations."""

    def __init__(self, folder: Path, source: int, split: str, vocab_size: int, tokens: int, any_learned: bool):
        self.stem, self.dtype = folder / f"{source:02d}.{split}", ids_dtype(vocab_size)
        self.file = self._open("ids", self.dtype, tokens)
        self.learned = self._open("learned", np.dtype("u1"), tokens) if any_learned else None
        self.expected, self.tokens, self.unknown = tokens, 0, 0
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
        assert self.tokens == self.expected
        for file in (self.file, self.learned):
            if file is not None:
                file.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(self.sizes))])
        save_array(f"{self.stem}.offsets.npy", offsets.astype(np.int64))
        save_array(f"{self.stem}.loss_start.npy", np.concatenate(self.loss_start).astype(np.int32))
        save_array(f"{self.stem}.keys.npy", np.concatenate(self.keys).astype(np.uint64))
        save_array(f"{self.stem}.origins.npy", np.concatenate(self.origins).astype(np.int64))
        write_text(Path(f"{self.stem}.files.json"), [json.dumps(list(self.files), indent=0)])
        _write_labels(str(self.stem), self.names, np.concatenate(self.labels))
        return {"documents": len(offsets) - 1, "tokens": self.tokens, "unknown": self.unknown}

    def _open(self, kind: str, dtype: np.dtype, tokens: int) -> IO[bytes]:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": dtype.str, "fortran_order": False, "shape": (tokens,)})
        assert len(head.getvalue()) == NPY_HEAD
        file = sealed.open_to_write(f"{self.stem}.{kind}.npy")  # closed by close()
        file.write(head.getvalue())
        return file


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
        save_array(f"{self.stem}.places.npy", np.concatenate(self.places))
        save_array(f"{self.stem}.sizes.npy", np.concatenate(self.sizes))
        save_array(f"{self.stem}.keys.npy", np.array(self.keys, np.uint64))
        _write_labels(self.stem, self.names, np.array(self.labels, np.int32))


def _write_labels(stem: str, names: dict[str, int], labels: np.ndarray) -> None:
    if any(names):
        save_array(f"{stem}.labels.npy", labels)
        write_text(Path(f"{stem}.labels.json"), [json.dumps(list(names), ensure_ascii=False, indent=0)])
