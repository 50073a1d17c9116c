"""How do the documents of one source and split become the files that data_pipeline/store.py lists, a part after the other, without
being held in memory?"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from data_pipeline import sealed
from data_pipeline.store import write_text

COLUMNS = {
    "offsets": "<i8", "loss_start": "<i4", "keys": "<u8", "origins": "<i8", "labels": "<i4", "places": "<i8", "sizes": "<i8",
    "learned": "u1",
}  # fmt: skip


def ids_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class _Columns:
    """Arrays of one source and split that grow in their files; their shapes are known before."""

    def __init__(self, folder: Path, source: int, split: str, shapes: dict[str, tuple[int, ...]], **dtypes: np.dtype):
        self.stem, self.names = folder / f"{source:02d}.{split}", dict[str, int]()
        self.dtypes = {name: dtypes.get(name, np.dtype(COLUMNS.get(name, "u1"))) for name in shapes}
        self.left = {name: shape[0] for name, shape in shapes.items()}
        self.files = {name: self._open(name, shape) for name, shape in shapes.items()}

    def _open(self, name: str, shape: tuple[int, ...]) -> IO[bytes]:
        head = io.BytesIO()
        described = {"descr": self.dtypes[name].str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(head, described)
        file = sealed.open_to_write(f"{self.stem}.{name}.npy")  # closed by close()
        file.write(head.getvalue())
        return file

    def write(self, name: str, values: np.ndarray) -> None:
        self.files[name].write(
            np.ascontiguousarray(values, self.dtypes[name]).tobytes()
        )  # tofile would hide why it fails
        self.left[name] -= len(values)

    def write_labels(self, names: Sequence[str], labels: np.ndarray) -> None:
        """`labels` number `names`."""
        if "labels" in self.files:
            numbers = [self.names.setdefault(name, len(self.names)) for name in names]
            self.write("labels", np.array(numbers, np.int32)[labels])

    def close(self) -> None:
        assert not any(self.left.values()), self.left
        for file in self.files.values():
            file.close()
        if self.names:
            write_text(Path(f"{self.stem}.labels.json"), [json.dumps(list(self.names), ensure_ascii=False, indent=0)])


class ShardWriter:
    """Appends `documents` documents, of `tokens` ids in all, to the files of one source and split.

    `learned`: there are conversations; `labelled`: there are labels.
    """

    def __init__(
        self, folder: Path, source: int, split: str, vocab_size: int, documents: int, tokens: int, learned: bool, labelled: bool
    ):  # fmt: skip
        shapes = {"ids": (tokens,), **({"learned": (tokens,)} if learned else {}), "offsets": (documents + 1,)}
        shapes |= dict.fromkeys(("loss_start", "keys", *(["labels"] * labelled)), (documents,))
        self.columns = _Columns(folder, source, split, shapes | {"origins": (documents, 2)}, ids=ids_dtype(vocab_size))
        self.columns.write("offsets", np.zeros(1, np.int64))
        self.documents, self.tokens, self.unknown = 0, 0, 0
        self.files: dict[str, int] = {}

    def add(
        self, ids: np.ndarray, sizes: np.ndarray, loss_start: np.ndarray, keys: np.ndarray, unknown: np.ndarray,
        files: np.ndarray, origins: np.ndarray, names: np.ndarray, labels: np.ndarray, learned: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Adds documents: their `ids` one after the other, of each its size, loss start, key, file and line, label."""
        columns = self.columns
        columns.write("ids", ids)
        if "learned" in columns.files:
            columns.write("learned", np.zeros(len(ids), np.uint8) if learned is None else learned)
        columns.write("offsets", self.tokens + np.cumsum(sizes))
        columns.write("loss_start", loss_start)
        columns.write("keys", keys)
        numbers = np.array([self.files.setdefault(name, len(self.files)) for name in files.tolist()], np.int64)
        columns.write("origins", np.stack([numbers[origins[:, 0]], origins[:, 1]], axis=1))
        columns.write_labels(names.tolist(), labels)
        self.documents, self.tokens = self.documents + len(sizes), self.tokens + len(ids)
        self.unknown += int(unknown)

    def close(self) -> dict[str, int]:
        """Completes the files; returns the counts for the manifest."""
        self.columns.close()
        write_text(Path(f"{self.columns.stem}.files.json"), [json.dumps(list(self.files), indent=0)])
        return {"documents": self.documents, "tokens": self.tokens, "unknown": self.unknown}


class PlacesWriter:
    """Keeps where `documents` documents of one source and split lie."""

    def __init__(self, folder: Path, source: int, split: str, documents: int, labelled: bool):
        shapes = dict.fromkeys(("keys", "sizes", *(["labels"] * labelled)), (documents,))
        self.columns = _Columns(folder, source, split, {"places": (documents, 4), **shapes})

    def add(self, places: np.ndarray, keys: list[int], sizes: np.ndarray, labels: Sequence[str]) -> None:
        self.columns.write("places", places)
        self.columns.write("keys", np.array(keys, np.uint64))
        self.columns.write("sizes", sizes)
        self.columns.write_labels(labels, np.arange(len(labels)))

    def close(self) -> None:
        self.columns.close()
