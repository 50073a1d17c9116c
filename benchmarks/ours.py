"""What do we measure of ours? The real train step of a case: run with its batch on the device, compiled, or planned."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import jax

from benchmarks.cases import make_config
from lm.aot import memory_limit, topology_devices
from lm.config import Config
from lm.memory import keep_memory, release_memory
from lm.metrics import peak_flops
from lm.params import count
from lm.parts import Parts, abstract_batch, make_parts, param_shapes
from lm.plan import compile_step, random_batch
from lm.receipt import xla_flops
from lm.sharding import put_batch
from lm.start import start_state


def matrix_numbers(parts: Parts) -> int:
    """N of 6N: the numbers of all matrices that multiply (a tied head once; no positions, no look-up)."""
    model = parts.model.config
    idle = {"positions"} | (set() if model.tie_embeddings else {"embed"})
    shapes = {p: leaf for p, leaf in param_shapes(type(parts.model)(model)).items() if p not in idle}
    return count({p: leaf for p, leaf in shapes.items() if len(leaf.shape) > 1})


def read_spec(spec: Mapping[str, Any]) -> Config:
    """The config of a spec {case, dtype, train, scan, model, mesh, lora_rank}; all but the case may be left out."""
    train, dtype = spec.get("train", [[".*", True]]), spec.get("dtype", "float32")
    others = {name: spec[name] for name in ("mesh", "lora_rank") if name in spec}
    return make_config(spec["case"], dtype, train, spec.get("scan", False), spec.get("model"), **others)


class Steps:
    """The step of a spec; run once, so compiled, unless its `warm` is False. With `plan`, the facts say what it costs."""

    def __init__(self, spec: Mapping[str, Any]):
        keep_memory()
        config = read_spec(spec)
        self.planned = spec.get("plan", False)
        self.parts = make_parts(config, config.model.vocab_size, 1e-4)
        batch = random_batch(config, config.model.vocab_size)
        self.batch = put_batch(batch, self.parts.mesh, config.data.batch_size)
        self.key = jax.random.key(0)
        self.state = start_state(self.parts)
        if spec.get("warm", True):
            self.run(1)
            release_memory()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.state, metrics = self.parts.train_step(self.state, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))

    def facts(self) -> dict[str, Any]:
        peak, source = peak_flops(0.0, dtype=self.parts.model.config.dtype)
        facts = {
            "attention": self.parts.attention,
            "params": count(param_shapes(self.parts.model)),
            "matrix_numbers": matrix_numbers(self.parts),
            "peak_flops": peak * self.parts.mesh.size,
            "peak_source": source,
        }
        return {**facts, **self.costs()} if self.planned else facts

    def costs(self) -> dict[str, Any]:
        """FLOPs of a step and what the device holds during one, bytes: by XLA, and on a GPU as counted there."""
        parts, treatment = self.parts, self.parts.treatment
        held = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        flops = xla_flops(parts.make_step, parts.model, treatment, abstract_batch(parts.config))
        return {"flops": flops, "xla_bytes": compile_step(parts).memory["total"], "device_bytes": held}


def device(spec: Mapping[str, Any]) -> dict[str, str]:
    """Where jax runs here."""
    del spec
    return {"backend": jax.default_backend(), "device": jax.devices()[0].device_kind}


def compile_once(spec: Mapping[str, Any]) -> dict[str, float]:
    """Seconds to trace and lower the step of a spec, and to compile it; and CPU seconds of both."""
    config = read_spec(spec)
    parts = make_parts(config, config.model.vocab_size, 1e-4)
    batch, key = abstract_batch(config), jax.eval_shape(lambda: jax.random.key(0))
    began, cpu_began = time.perf_counter(), time.process_time()
    lowered = parts.train_step.lower(parts.state, batch, key)
    lowered_at = time.perf_counter()
    lowered.compile()
    return {
        "lower_seconds": lowered_at - began,
        "compile_seconds": time.perf_counter() - lowered_at,
        "cpu_seconds": time.process_time() - cpu_began,
    }


def plan_step(spec: Mapping[str, Any]) -> dict[str, Any]:
    """What one device holds and sends in a step of a spec on all devices here, or on those of its `topology`."""
    config, name = read_spec(spec), spec.get("topology")
    devices = topology_devices(name) if name else jax.devices()
    parts = make_parts(config, config.model.vocab_size, 1e-4, devices)
    program = compile_step(parts)
    return {
        "devices": len(devices), "device": devices[0].device_kind, "mesh": dict(parts.mesh.shape),
        "params": count(param_shapes(parts.model)), "attention": parts.attention, "memory": program.memory,
        "limit_bytes": memory_limit(devices[0]), "refused": program.refused, "collectives": program.collectives,
        "compile_seconds": program.seconds,
    }  # fmt: skip
