"""How are batches read from prepared rows, beginning at any step?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipeline.augment.check import is_on
from data_pipeline.buffers import Buffers, plan_prefetch
from data_pipeline.config import DataConfig
from data_pipeline.feed import Calls, TrainBatches
from data_pipeline.mix import FOREVER, Mixture
from data_pipeline.quiet_tf import import_tf
from data_pipeline.rows import BATCH_DTYPES, ORIGIN_DTYPES, RowReader, read_rows

ENDED = "every source has been read as often as its max_epochs allows"
PREFETCH = 4  # batches read ahead, where config.data.buffer_bytes has room for them
LOCATED = 4096  # rows whose places are computed at once: one batch alone takes as long, nearly all of it calls of numpy


def prepared_batches(
    config: DataConfig, mixture: Mixture, readers: Sequence[RowReader], epoch_keys: Callable[[np.ndarray], np.ndarray],
    augment: Callable[[Any], Any], start_step: int, rows: tuple[int, int],
) -> TrainBatches:  # fmt: skip
    """Returns the batches from `start_step` on: rows `rows[0]` to `rows[1]` of each, of the parts that `readers` read."""
    tf = import_tf()
    origins, calls, buffers = is_on(config.augment), Calls(), Buffers(config.buffer_bytes)
    ahead, held = plan_prefetch(config, rows[1] - rows[0], PREFETCH, origins)
    buffers.add("batches read ahead", "config.data.batch_size or seq_len", held)
    dtypes = BATCH_DTYPES | (ORIGIN_DTYPES if origins else {})
    local = np.arange(*rows)
    steps, end = max(LOCATED // max(len(local), 1), 1), mixture.end // config.batch_size

    @lru_cache(maxsize=2)
    def locate(block: int) -> list[np.ndarray]:
        step = np.arange(block * steps, min((block + 1) * steps, end))
        places = step[:, None] * config.batch_size + local
        return [array.reshape(places.shape) for array in mixture.locate(places.reshape(-1))]

    def read(step: np.ndarray) -> list[np.ndarray]:
        block, nth = divmod(int(step), steps)
        part, epoch, row = (array[nth] for array in locate(block))
        buffers.check()
        batch = read_rows(readers, part, row, epoch_keys(epoch) if origins else None)
        return [batch[name] for name in dtypes]

    def to_batch(step: Any) -> dict[str, Any]:
        shape: list[int | None] = [rows[1] - rows[0], config.seq_len]
        arrays = calls.tensors(read, (step,), list(dtypes.values()), [shape] * len(dtypes))
        batch = dict(zip(dtypes, arrays))
        return augment(batch) if origins else batch

    dataset = tf.data.Dataset.counter(start=start_step).map(to_batch)
    if mixture.end < FOREVER:
        dataset = dataset.take(max(end - start_step, 0))
    return TrainBatches(dataset.prefetch(ahead), calls, f"after {end:,} steps {ENDED}")
