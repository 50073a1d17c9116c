"""How do several trials train side by side in one compiled program?

Trials that differ in dials only (numbers that the step takes as arguments, not as constants) share the step that a run takes
(lm/step.py), under `vmap` over (state, key, dials) with the same batch for all. Frozen weights that are the same in all trials
lie there once. A single trial runs the same step without vmap. All that lies on one device, unless a sweep trains one trial at a
time: then it is spread over the mesh, as a run is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipeline.machine import memory_left
from lm.aot import memory_limit
from lm.config import Config, ConfigError, MeshConfig, is_off, to_json
from lm.evaluate import EvalStep, make_eval_step
from lm.parts import Parts, abstract_batch, make_parts, make_step_of, trained_paths
from lm.sharding import batch_sharding, replicated
from lm.start import find_peak_lr, load_params, make_starts, start_state
from lm.step import TrainState

Log = Callable[[str], None]
DIALS = (
    "optim.peak_lr", "optim.warmup_steps", "optim.end_lr_ratio", "optim.weight_decay", "optim.clip_norm", "optim.b1",
    "optim.b2", "optim.eps", "optim.momentum", "train.label_smoothing", "train.z_loss", "train.balance_loss",
)  # fmt: skip
SHARE = 0.6  # of the memory that there is, for the trials that train side by side


def value_of(config: Config, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), config)


def dials_of(config: Config, keys: Iterable[str]) -> dict[str, float]:
    """The values of those searched keys that are arguments; one that is switched off by 0, or is "auto", stays a constant."""
    found = {key: value_of(config, key) for key in keys if key in DIALS}
    return {key: float(value) for key, value in found.items() if not (is_off(value) or isinstance(value, str))}


def with_dials(config: Config, dials: Mapping[str, Any]) -> Config:
    for key, value in dials.items():
        section, name = key.split(".")
        changed = dataclasses.replace(getattr(config, section), **{name: value})
        config = dataclasses.replace(config, **{section: changed})
    return config


def program_key(config: Config, keys: Iterable[str]) -> str:
    """Names the program that a trial's config runs: equal for trials that differ in dials and the training seed only."""
    dials = dials_of(config, keys)
    mapping = to_json(with_dials(config, dict.fromkeys(dials, None)))
    mapping["train"].pop("seed")
    return json.dumps(mapping, sort_keys=True)


class Program:
    """The compiled step of `count` trials. `alike`: they begin with the same weights; `spread`: over the devices of config.mesh."""

    def __init__(
        self, config: Config, keys: Iterable[str], vocab_size: int, count: int, alike: bool, log: Log, spread: bool = False
    ):  # fmt: skip
        self.keys, self.count, self.log = tuple(keys), count, log
        peak_lr = find_peak_lr(config, log)
        if peak_lr is None:
            raise ConfigError(
                "config.optim.peak_lr='auto': a sweep does not run the range test; search the rate, or name one"
            )
        assert count == 1 or not spread
        config = config if spread else dataclasses.replace(config, mesh=MeshConfig())
        self.parts: Parts = make_parts(config, vocab_size, peak_lr, None if spread else jax.devices()[:1])
        self.dials = dials_of(config, self.keys)
        self.eval_steps: dict[str, EvalStep] = {}
        trained = trained_paths(self.parts.state.params, self.parts.treatment)
        first: Any = 0
        self.axes: Any = TrainState(
            first, {path: None if alike and path not in trained else 0 for path in self.parts.state.params}, 0
        )
        self.alike, self.trained_params = alike, _count_trained(self.parts, trained)
        self.step: Callable[..., Any]
        if count > 1:
            vmapped = jax.vmap(self._step, in_axes=(self.axes, 0, 0, None), out_axes=(self.axes, 0))
            self.step = jax.jit(vmapped, donate_argnums=0)
        else:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, self.parts.state)
            whole = replicated(self.parts.mesh)
            self.step = jax.jit(
                self._step, in_shardings=(shardings, whole, whole, batch_sharding(self.parts.mesh)),
                out_shardings=(shardings, whole), donate_argnums=0,
            )  # fmt: skip

    def _step(self, state: TrainState, key: jax.Array, dials: Mapping[str, jax.Array], batch: Any) -> Any:
        config = with_dials(self.parts.config, dials)
        rate: Any = dials.get("optim.peak_lr", self.parts.peak_lr)
        make = make_step_of(config, rate)
        return make(self.parts.model, self.parts.treatment)[0](state, batch, key)

    def arguments(self, configs: Sequence[Config]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The keys and dials of the trials, as the step takes them."""
        keys = [jax.random.key(config.train.seed) for config in configs]
        dials = [dials_of(config, self.keys) for config in configs]
        if self.count == 1:
            return keys[0], {key: jnp.float32(value) for key, value in dials[0].items()}
        return jnp.stack(keys), {key: jnp.asarray([d[key] for d in dials], jnp.float32) for key in self.dials}

    def start(self, configs: Sequence[Config], tokenizer_sha256: str) -> TrainState:
        """The state that the trials begin with, each as its own run would."""
        seeded = [dataclasses.replace(self.parts, config=config) for config in configs]
        if self.count == 1 or self.alike:
            one = self._start_one(seeded[0], tokenizer_sha256)
            return one if self.count == 1 else jax.jit(self._repeat)(one)
        if self.parts.config.init.source:
            states = [self._start_one(parts, tokenizer_sha256) for parts in seeded]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        _, draw = make_starts(self.parts)
        return jax.jit(jax.vmap(draw))(self.arguments(configs)[0])

    def _start_one(self, parts: Parts, tokenizer_sha256: str) -> TrainState:
        if parts.config.init.source:
            return start_state(parts, load_params(parts, tokenizer_sha256, self.log))
        return start_state(parts)

    def _repeat(self, one: TrainState) -> TrainState:
        def repeat(leaf: jax.Array) -> jax.Array:
            return jnp.broadcast_to(leaf[None], (self.count, *leaf.shape))

        params = {p: leaf if self.axes.params[p] is None else repeat(leaf) for p, leaf in one.params.items()}
        return TrainState(repeat(one.step), params, jax.tree.map(repeat, one.opt_state))

    def eval_step(self, token_bytes: np.ndarray) -> EvalStep:
        """(params of all trials, batch) -> sums [trials, rows], or [rows] of one trial."""
        name = hashlib.sha256(token_bytes.tobytes()).hexdigest()
        if name not in self.eval_steps:
            step = make_eval_step(self.parts.model, token_bytes, self.parts.config.train.loss_chunk)
            several = self.count > 1
            self.eval_steps[name] = jax.jit(jax.vmap(step, in_axes=(self.axes.params, None))) if several else step
        return self.eval_steps[name]

    def needed_bytes(self) -> int:
        """Memory that the compiled step needs on one device, by XLA's own account."""
        state = self.parts.state
        if self.count > 1:
            state = jax.eval_shape(self._repeat, state)
        keys, dials = jax.eval_shape(lambda: self.arguments([self.parts.config] * self.count))
        size = self.step.lower(state, keys, dials, abstract_batch(self.parts.config)).compile().memory_analysis()  # pyright: ignore[reportFunctionMemberAccess]
        parts = (size.argument_size_in_bytes, size.output_size_in_bytes, size.temp_size_in_bytes)
        return sum(parts) - size.alias_size_in_bytes


def _count_trained(parts: Parts, trained: frozenset[str]) -> int:
    return sum(leaf.size for path, leaf in parts.state.params.items() if path in trained)


def fit(config: Config, keys: Iterable[str], vocab_size: int, most: int, log: Log) -> int:
    """How many trials of this config, up to `most`, train side by side in the memory that there is."""
    limit = memory_limit(jax.devices()[0])
    free = memory_left()[0] if jax.default_backend() == "cpu" else limit
    budget = SHARE * min(limit or free or 0, free or limit or 0)
    count = most
    while count > 1 and Program(config, keys, vocab_size, count, False, lambda text: None).needed_bytes() > budget:
        count //= 2
    return count
