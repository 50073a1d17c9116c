"""What do batches depend on? Runs of the same fingerprint read the same ids in the same order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import cast

from data_pipeline.augment.check import augment_identity
from data_pipeline.config import DataConfig
from data_pipeline.records import Named, Source
from data_pipeline.store import Prepared

VERSION = 1  # raise it when the same prepared data gives other batches
# These decide what is prepared, and its content is hashed; or nothing of what is read.
LEFT_OUT = (
    "path", "train_path", "validation_path", "test_path", "sources", "prepared", "split", "tokenizer", "cache_dir", "encrypt_key_env", "on_bad", "max_bad_fraction",
    "max_line_bytes", "allow_leak", "min_completion_kept", "buffer_bytes",
)  # fmt: skip
LATER = (
    "mixture",
    "temperature",
    "label_shares",
    "task",
    "labels",
    "class_weights",
    "replay",
)  # keys that came later: unused, they leave no trace


def hash_data(config: DataConfig, prepared: Prepared, sources: Sequence[Named]) -> str:
    """Returns the fingerprint of opened data."""
    keys, default = asdict(config), DataConfig()
    for key in (*LEFT_OUT, *(key for key in LATER if getattr(config, key) == getattr(default, key))):
        del keys[key]
    del keys["clean"]["count_languages"]
    if not config.streaming:  # which cleans while it reads, so its text is not in what is prepared
        del keys["shuffle_documents"], keys["clean"], keys["chat"]
    keys["augment"] = augment_identity(config.augment)
    if keys["augment"] is None:
        del keys["augment"]
    shares = [[source.config.epochs, source.config.max_epochs] for source in sources]
    if not any(map(any, shares)):
        shares = [[] for _ in sources]
    weights = [[source.name, source.config.weight, *share] for source, share in zip(sources, shares)]
    identity = [cast(Source, source).identity() for source in sources] if config.streaming else []
    what = [VERSION, keys, weights, identity, prepared.content_sha256(), prepared.tokenizer.sha256]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
