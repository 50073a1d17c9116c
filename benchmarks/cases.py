"""Which model and which batch does a name such as `4x128/64x12` stand for?

MODEL/SEQ_LENxROWS. MODEL is LAYERSxWIDTH, a GPT-2 of that size over 65 characters, or a name of configs/models.py
(gpt2, llama-3.2-1b, ...). Needs no jax, so that a peer's process can read it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from configs import base, models
from data_pipeline.schema import ConfigError, from_mapping
from lm.config import Config

CHARACTERS = 65  # of tiny Shakespeare


def make_config(
    case: str, dtype: str = "float32", train: Sequence[Sequence[Any]] = ((".*", True),), scan: bool = False,
    changes: Mapping[str, Any] | None = None, mesh: Mapping[str, int] | None = None, lora_rank: int = 0,
) -> Config:  # fmt: skip
    """Returns the config of a case, with AdamW and a clip at 1.0. `changes` are of the model, `mesh` of the mesh, by key.

    >>> config = make_config("6x384/256x16")
    >>> config.model.layers, config.model.heads, config.model.vocab_size, config.data.seq_len, config.data.batch_size
    (6, 6, 65, 256, 16)
    """
    found = re.fullmatch(r"([^/]+)/(\d+)x(\d+)", case)
    size = found and re.fullmatch(r"(\d+)x(\d+)", found[1])
    if not found or not (size or found[1] in models.MODELS):
        raise ConfigError(f"no case {case!r}: write LAYERSxWIDTH/SEQ_LENxROWS, or one of {', '.join(models.MODELS)} "
                          "before the slash: 6x384/256x16, gpt2/256x4")  # fmt: skip
    c: Any = base.get_config()
    if size:
        models.use_gpt2_blocks(c.model)
        layers, width = int(size[1]), int(size[2])
        c.model.update({"layers": layers, "dim": width, "heads": max(width // 64, 4), "vocab_size": CHARACTERS})
    else:
        models.MODELS[found[1]](c.model)
    c.model.dtype, c.model.scan = dtype, scan or c.model.scan
    c.model.update(dict(changes or {}))
    c.mesh.update(dict(mesh or {}))
    c.data.path, c.data.seq_len, c.data.batch_size = "-", int(found[2]), int(found[3])
    c.lora.rank = lora_rank
    c.optim.train = tuple((pattern, on) for pattern, on in train)
    c.optim.schedule, c.optim.peak_lr = "constant", 1e-4
    config = from_mapping(Config, c)
    if config.model.position == "learned" and config.model.max_len and config.model.max_len < config.data.seq_len:
        raise ConfigError(f"{case}: {found[1]} has {config.model.max_len} positions, shorter than {found[2]}")
    return config
