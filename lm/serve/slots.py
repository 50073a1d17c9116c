"""How do several texts go on at once, each of its own length, in the rows of one cache?

A prompt is read into its row chunk by chunk; one step then draws the next token of every row, or of the only one that goes on.
Shapes are few, and compiled before the first request: two sizes of chunks, two of steps, and a cache that is no longer than
the longest text in it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from lm.model.attention import Cache
from lm.model.transformer import Model
from lm.params import Params
from lm.sampling import Sampling, pick

CHUNKS = (32, 256)  # tokens of a prompt that are read at once; every length of a cache is a multiple of the last
HELD = ("k", "v", "segments", "positions")  # where the next slot is, each row has for itself


def draw(logits_BV: jax.Array, sampling: Sampling, seeds_B: jax.Array, numbers_B: jax.Array) -> jax.Array:
    """Draws id number `numbers` of texts with these seeds, as `lm.generate` does for a prompt alone."""

    def key(seed: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), 0), number)

    return pick(logits_BV, None, jax.vmap(key)(seeds_B, numbers_B), sampling)


def take_row(leaf: jax.Array, row: int, rows: int) -> jax.Array:
    """Returns one row's part of [rows x K, S, ...]: K heads, or the row itself."""
    heads = len(leaf) // rows
    return jax.lax.dynamic_slice_in_dim(leaf, row * heads, heads)


def put_row(leaf: jax.Array, mine: jax.Array, row: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(leaf, mine, row * len(mine), axis=0)


def read_chunk(
    model: Model, params: Params, cache: Cache, row: int, tokens_T: jax.Array, start: int, count: int,
    sampling: Sampling, seed_1: jax.Array, number_1: jax.Array,
) -> tuple[jax.Array, Cache]:  # fmt: skip
    """Reads the first `count` of `tokens` into a row from slot `start` on; returns (id `number` of the text, the cache)."""
    part = jax.tree.map(lambda leaf: take_row(leaf, row, len(cache["segments"])), cache)
    place_T = jnp.arange(len(tokens_T))
    real_T = place_T < count
    positions_BT = jnp.where(real_T, start + place_T, 0)[None]
    index = jnp.asarray(start, jnp.int32)
    x_BTD, new = model.hidden(
        params, tokens_T[None], positions_BT, real_T.astype(jnp.int32)[None], cache={**part, "index": index}
    )
    assert new is not None
    logits_BTV = model.unembed(params[model.head_path], jax.lax.dynamic_slice_in_dim(x_BTD, count - 1, 1, 1))
    cache = jax.tree.map(lambda leaf, mine: put_row(leaf, mine, row), cache, {name: new[name] for name in HELD})
    return draw(logits_BTV[:, 0], sampling, seed_1, number_1)[0], cache


def step(
    model: Model, params: Params, cache: Cache, ids_B: jax.Array, lengths_B: jax.Array, sampling: Sampling,
    seeds_B: jax.Array, numbers_B: jax.Array,
) -> tuple[jax.Array, Cache]:  # fmt: skip
    """Writes each row's last id into slot `lengths`, after what the row holds; returns (the ids drawn next, the cache)."""
    x_BTD, new = model.hidden(
        params, ids_B[:, None], lengths_B[:, None], jnp.ones_like(ids_B)[:, None], cache={**cache, "index": lengths_B}
    )
    assert new is not None
    logits_BTV = model.unembed(params[model.head_path], x_BTD)
    return draw(logits_BTV[:, 0], sampling, seeds_B, numbers_B), {name: new[name] for name in cache}


def resize(model: Model, cache: Cache | None, rows: int, length: int) -> Cache:
    """Returns a cache of `length` slots a row that holds what the given one does, up to there."""
    fresh = {name: leaf for name, leaf in model.init_cache(rows, length).items() if name in HELD}

    def fill(new: jax.Array, old: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(new, old[tuple(map(slice, new.shape))], (0,) * new.ndim)

    return fresh if cache is None else jax.tree.map(fill, fresh, cache)


class Slots:
    """`count` rows of up to `places` tokens each. What is in which row, and how much of it, the caller knows."""

    def __init__(self, model: Model, params: Params, count: int, places: int):
        self.model, self.params = replace(model, mesh=None, kernels=None), jax.tree.map(jnp.asarray, params)
        where = next(iter(self.params.values())).sharding
        if isinstance(where, NamedSharding):
            where = NamedSharding(where.mesh, PartitionSpec())  # the cache is whole on each device
        jit = functools.partial(jax.jit, out_shardings=where)
        self._read = jit(functools.partial(read_chunk, self.model), donate_argnames="cache")
        self._step = jit(functools.partial(step, self.model), donate_argnames="cache")
        self._resize = jit(functools.partial(resize, self.model), static_argnames=("rows", "length"))
        self.count, self.places = count, places
        most = -(-places // CHUNKS[-1]) * CHUNKS[-1]
        doubled = [CHUNKS[-1] << n for n in range(most.bit_length()) if CHUNKS[-1] << n < most]
        self.lengths = [*doubled, most]
        self.cache: Cache = {}
        self.clear()

    def clear(self) -> None:
        """Forgets everything."""
        self.cache = {}  # freed before the new one is made
        self.cache = self._resize(None, rows=self.count, length=self.lengths[0])

    def bytes(self) -> int:
        """Of the longest cache."""
        shapes = jax.eval_shape(lambda: self.model.init_cache(self.count, self.lengths[-1]))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def room(self, start: int, prompt: int) -> int:
        """Returns how long a cache the next chunk (what fills it up included) and a step need where a row holds `start` ids."""
        if start >= prompt:
            return start + 1
        end = min(start + CHUNKS[-1], prompt)
        return max(start + next(n for n in CHUNKS if n >= end - start), end + 1)

    def fit(self, longest: int) -> None:
        """Gives the cache the least length that has room for `longest` ids."""
        length = next(n for n in self.lengths if n >= longest)
        if length != self.cache["segments"].shape[1]:
            self.cache = self._resize(self.cache, rows=self.count, length=length)

    def read(self, row: int, ids: Sequence[int], start: int, sampling: Sampling, seed: int) -> tuple[int, int | None]:
        """Reads the next chunk of a prompt, of which `start` ids are in the row; returns (ids there now, the next if all are)."""
        part = ids[start : start + CHUNKS[-1]]
        tokens = np.zeros(next(n for n in CHUNKS if n >= len(part)), np.int32)
        tokens[: len(part)] = part
        token = self._read_tokens(row, tokens, start, len(part), sampling, seed, 0)
        end = start + len(part)
        return end, token if end == len(ids) else None

    def step_one(self, row: int, last: int, length: int, sampling: Sampling, seed: int, number: int) -> int:
        """Draws the next id of one row; the others cost nothing."""
        return self._read_tokens(row, np.array([last], np.int32), length, 1, sampling, seed, number)

    def _read_tokens(
        self, row: int, tokens: np.ndarray, start: int, count: int, sampling: Sampling, seed: int, number: int
    ) -> int:
        drawn, self.cache = self._read(
            self.params, self.cache, row, tokens, start, count, sampling,
            np.array([seed], np.uint32), np.array([number], np.uint32),
        )  # fmt: skip
        return int(drawn)

    def step(
        self, ids: Sequence[int], lengths: Sequence[int], sampling: Sequence[Sampling], seeds: Sequence[int],
        numbers: Sequence[int],
    ) -> list[int]:  # fmt: skip
        """Draws the next id of every row. A row without a text writes to slot `lengths`, where the next one begins or goes on."""
        drawn, self.cache = self._step(
            self.params, self.cache, np.array(ids, np.int32), np.array(lengths, np.int32), stack(sampling),
            np.array(seeds, np.uint32), np.array(numbers, np.uint32),
        )  # fmt: skip
        return np.asarray(drawn).tolist()

    def compile(self, log: Callable[[str], None]) -> None:
        """Runs every program once, so that no request waits for the compiler."""
        blank = [0] * self.count
        for length in self.lengths:
            log(f"compiling for texts of up to {length:,} tokens")
            self.fit(length)
            for size in CHUNKS:
                self.read(0, [0] * size, 0, as_arrays(Sampling()), 0)
            self.step_one(0, 0, 0, as_arrays(Sampling()), 0, 0)
            self.step(blank, blank, [as_arrays(Sampling())] * self.count, blank, blank)
        self.clear()


def as_arrays(sampling: Sampling) -> Sampling:
    """One row's sampling in the types that the programs are compiled for."""
    return Sampling(1.0, np.float32(sampling.temperature), np.int32(sampling.top_k), np.float32(sampling.top_p))  # pyright: ignore


def stack(rows: Sequence[Sampling]) -> Sampling:
    names = ("temperature", "top_k", "top_p")
    return Sampling(1.0, *(np.stack([getattr(row, name) for row in rows]) for name in names))  # pyright: ignore
