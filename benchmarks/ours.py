"""Our side: the real train step of a case, with its batch on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from benchmarks.cases import make_config
from lm.batch import BATCH_KEYS
from lm.build import start_state
from lm.config import Config
from lm.metrics import peak_flops
from lm.params import count
from lm.parts import Parts, make_parts, param_shapes
from lm.sharding import put_batch


def random_batch(config: Config, vocab_size: int) -> dict[str, np.ndarray]:
    """Random ids in one document a row; targets are random too."""
    rng, shape = np.random.default_rng(0), (config.data.batch_size, config.data.seq_len)
    tokens, targets = (rng.integers(0, vocab_size, shape, dtype=np.int32) for _ in range(2))
    ones = np.ones(shape, np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return dict(zip(BATCH_KEYS, (tokens, targets, ones.astype(np.float32), ones, places)))


def matrix_numbers(parts: Parts) -> int:
    """N of 6N: the numbers of all matrices that multiply (a tied head once; no positions, no look-up)."""
    model = parts.model.config
    idle = {"positions"} | (set() if model.tie_embeddings else {"embed"})
    shapes = {p: leaf for p, leaf in param_shapes(type(parts.model)(model)).items() if p not in idle}
    return count({p: leaf for p, leaf in shapes.items() if len(leaf.shape) > 1})


class Steps:
    """The step of a spec {case, dtype, train, scan, model, warm}; run once, so compiled, unless `warm` is False."""

    def __init__(self, spec: Mapping[str, Any]):
        config = make_config(
            spec["case"],
            spec.get("dtype", "float32"),
            spec.get("train", [[".*", True]]),
            spec.get("scan", False),
            spec.get("model"),
        )
        self.parts = make_parts(config, config.model.vocab_size, 1e-4)
        self.batch = put_batch(random_batch(config, config.model.vocab_size), self.parts.mesh, config.data.batch_size)
        self.key = jax.random.key(0)
        self.state = start_state(self.parts)
        if spec.get("warm", True):
            self.run(1)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, metrics = self.parts.train_step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    def facts(self) -> dict[str, Any]:
        peak, source = peak_flops(0.0)
        return {
            "attention": self.parts.attention,
            "params": count(param_shapes(self.parts.model)),
            "matrix_numbers": matrix_numbers(self.parts),
            "peak_flops": peak * self.parts.mesh.size,
            "peak_source": source,
        }


def device(spec: Mapping[str, Any]) -> dict[str, str]:
    """Where jax runs here."""
    del spec
    return {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}
