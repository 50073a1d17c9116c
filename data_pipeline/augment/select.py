"""Which documents does augmentation change, by their epoch and their class?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipeline.config import AugmentConfig


def is_selective(config: AugmentConfig) -> bool:
    """Says whether some documents are left as they are."""
    return config.only_repeats or bool(config.labels)


def changes(config: AugmentConfig, epochs: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """Says of each document, by its epoch and its class, whether it is augmented."""
    chosen = (epochs > 0) | (not config.only_repeats)
    return chosen & np.isin(np.array(labels, str), config.labels) if config.labels else chosen
