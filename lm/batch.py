"""What is in a batch, who makes them, and is every id in it one that the model has?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from lm.config import ModelConfig, UserError

# name -> meaning; every array is [B, T]: int32, but weights float32. A batch is a plain dict of these.
BATCH_KEYS = {
    "tokens": "input ids",
    "targets": "the id to predict at each place",
    "weights": "how much each target counts; 0 on padding",
    "segments": "which document of the row a token belongs to; 0 is padding",
    "positions": "place of the token in its document",
}

Batch = Mapping[str, Any]


class Batches(Protocol):
    """What a training stream must do; `state()` is None when the step alone is the position."""

    def __next__(self) -> Mapping[str, np.ndarray]: ...
    def state(self) -> bytes | None: ...
    def close(self) -> None: ...


class Data(Protocol):
    """What training needs of the data; `data_pipeline.batch.Data` is one."""

    def has_split(self, split: str) -> bool: ...
    def train_batches(self, start_step: int, rows: tuple[int, int], state: bytes | None = None) -> Batches: ...
    def eval_batches(self, split: str, batch_size: int, rows: tuple[int, int]) -> Any: ...
    def summary(self, steps: int = 0) -> dict[str, Any]: ...


def check_batch(batch: Batch, model: ModelConfig, where: str) -> None:
    """Raises UserError unless `batch` has the five arrays, of one shape, with every id in the vocabulary of `model`.

    Targets are numbers of its classes where there are any.
    """
    missing = [key for key in BATCH_KEYS if key not in batch]
    if missing:
        raise UserError(f"{where}: the batch has no {', '.join(missing)}; it has {', '.join(batch)}")
    shape = batch["tokens"].shape
    for key in BATCH_KEYS:
        if batch[key].shape != shape:
            raise UserError(f"{where}: {key} has shape {batch[key].shape}, tokens have {shape}")
    for key, limit in (("tokens", model.vocab_size), ("targets", model.outputs)):
        low, high = int(batch[key].min()), int(batch[key].max())
        if low < 0 or high >= limit:
            bad, what = low if low < 0 else high, "classes" if key == "targets" and model.classes else "vocabulary"
            raise UserError(f"{where}: {key} holds id {bad}, outside the model's {what} of {limit}")
