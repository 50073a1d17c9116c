"""How do documents become the files of one source and split, a part after the other, without being held in memory?"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import IO

import numpy as np

from data_pipeline import sealed
from data_pipeline.store import ids_dtype, write_text

COLUMNS = {"offsets": "<i8", "loss_start": "<i4", "keys": "<u8", "origins": "<i8", "labels": "<i4"}


class ShardWriter:
    """Appends `documents` documents, of `tokens` ids in all, to the files of one source and split.

    `learned`: there are conversations; `labelled`: there are labels.
    """

    def __init__(
        self, folder: Path, source: int, split: str, vocab_size: int, documents: int, tokens: int, learned: bool, labelled: bool
    ):  # fmt: skip
        self.stem, self.dtype = folder / f"{source:02d}.{split}", ids_dtype(vocab_size)
        self.expected, self.done, self.unknown = (documents, tokens), [0, 0], 0
        self.written: dict[str, IO[bytes]] = {"ids": self._open("ids", self.dtype, (tokens,))}
        if learned:
            self.written["learned"] = self._open("learned", np.dtype("u1"), (tokens,))
        shapes = {"offsets": (documents + 1,), "origins": (documents, 2)}
        for name, dtype in COLUMNS.items():
            if name != "labels" or labelled:
                self.written[name] = self._open(name, np.dtype(dtype), shapes.get(name, (documents,)))
        self._write("offsets", np.zeros(1, np.int64))
        self.files: dict[str, int] = {}
        self.names: dict[str, int] = {}

    def add(
        self, ids: np.ndarray, sizes: np.ndarray, loss_start: np.ndarray, keys: np.ndarray, unknown: np.ndarray,
        files: np.ndarray, origins: np.ndarray, names: np.ndarray, labels: np.ndarray, learned: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Adds documents: their `ids` one after the other, of each its size, loss start, key, file and line, label."""
        self.written["ids"].write(ids.astype(self.dtype).tobytes())  # tofile would hide why a write fails
        if "learned" in self.written:
            self.written["learned"].write(bytes(len(ids)) if learned is None else learned.astype(np.uint8).tobytes())
        self._write("offsets", self.done[1] + np.cumsum(sizes))
        self._write("loss_start", loss_start)
        self._write("keys", keys)
        numbers = np.array([self.files.setdefault(name, len(self.files)) for name in files.tolist()], np.int64)
        self._write("origins", np.stack([numbers[origins[:, 0]], origins[:, 1]], axis=1))
        if "labels" in self.written:
            numbers = np.array([self.names.setdefault(name, len(self.names)) for name in names.tolist()], np.int32)
            self._write("labels", numbers[labels])
        self.done = [self.done[0] + len(sizes), self.done[1] + len(ids)]
        self.unknown += int(unknown)

    def close(self) -> dict[str, int]:
        """Completes the files; returns the counts for the manifest."""
        assert tuple(self.done) == self.expected
        for file in self.written.values():
            file.close()
        write_text(Path(f"{self.stem}.files.json"), [json.dumps(list(self.files), indent=0)])
        if self.names:
            write_text(Path(f"{self.stem}.labels.json"), [json.dumps(list(self.names), ensure_ascii=False, indent=0)])
        return {"documents": self.done[0], "tokens": self.done[1], "unknown": self.unknown}

    def _write(self, name: str, values: np.ndarray) -> None:
        self.written[name].write(np.ascontiguousarray(values, COLUMNS[name]).tobytes())

    def _open(self, kind: str, dtype: np.dtype, shape: tuple[int, ...]) -> IO[bytes]:
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        file = sealed.open_to_write(f"{self.stem}.{kind}.npy")  # closed by close()
        file.write(head.getvalue())
        return file
