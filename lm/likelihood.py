"""How likely does the model find an answer after a prompt?

A prompt is read once, into a key/value cache that all of its answers share.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.config import UserError
from lm.generate import read_prompts
from lm.losses import Sums, count_pieces, sum_in_pieces, sum_losses, token_losses
from lm.model.transformer import Model
from lm.params import Params, to_host
from lm.sharding import put_batch, row_shards

Ids = tuple[int, ...]
PLACES = 2**14  # tokens that are in the caches of one call
MOST = 256  # sequences in one call


@functools.partial(jax.jit, static_argnames=("model", "length"))
def read_heads(
    model: Model, params: Params, batch: Mapping[str, jax.Array], *, length: int
) -> tuple[jax.Array, Any]:  # fmt: skip
    """Reads left-padded prompts; returns log-probabilities [B, V] of what follows, and a cache of `length` slots."""
    logits_BV, cache = read_prompts(model, params, batch["tokens"], batch["segments"], length)
    return jax.nn.log_softmax(logits_BV.astype(jnp.float32)), cache


@functools.partial(jax.jit, static_argnames=("model",))
def read_tails(
    model: Model, params: Params, log_p_BV: jax.Array, cache: Any, heads_S: jax.Array, batch: Mapping[str, jax.Array]
) -> jax.Array:
    """Returns the log-probability [S] of each answer after the prompt in row `heads` of a cache.

    `batch` has [S, T] arrays of which the first token follows the prompt, and `first` [S, 1] whether it counts.
    """
    K, (S, T) = model.config.n_kv_heads, batch["tokens"].shape

    def rows_of(leaf: jax.Array) -> jax.Array:  # [..., B x K, length, H] -> [..., S x K, length, H]
        by_row = leaf.reshape(*leaf.shape[:-3], -1, K, *leaf.shape[-2:])
        return jnp.take(by_row, heads_S, axis=-4).reshape(*leaf.shape[:-3], S * K, *leaf.shape[-2:])

    ids = {name: cache[name][heads_S] for name in ("segments", "positions")}
    kv = {name: tuple(map(rows_of, cache[name])) for name in ("k", "v")}
    inputs = (batch["tokens"], batch["positions"], batch["segments"])
    x_STD, _ = model.hidden(params, *inputs, cache={**kv, **ids, "index": cache["index"]})

    def sum_piece(head: jax.Array, x_BTD: jax.Array, part: Mapping[str, jax.Array]) -> Sums:
        return sum_losses(token_losses(model.unembed(head, x_BTD), part["targets"]), part["weights"], axis=1)

    mesh = model.mesh
    skip = mesh is None or mesh.shape["context"] == 1
    tokens = S * T // (1 if mesh is None else row_shards(mesh))
    targets = {name: batch[name] for name in ("targets", "weights")}
    pieces = count_pieces(tokens, T, model.config.vocab_size, 0, skip)
    sums = sum_in_pieces(sum_piece, params[model.head_path], x_STD, targets, pieces, False, skip=skip)
    return log_p_BV[heads_S, batch["tokens"][:, 0]] * batch["first"][:, 0] - sums["nll"]


def score(
    model: Model, params: Params, pairs: Sequence[tuple[Ids, Ids]], mesh: Mesh, places: int = PLACES,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:  # fmt: skip
    """Returns log p(answer | prompt) in nats, float64, of each (prompt ids, answer ids); neither may be empty.

    Equal prompts are read once, equal pairs scored once. Raises UserError for ids that the model lacks, and for more positions
    than a model with learned positions has.
    """
    check_pairs(model, pairs)
    tails: dict[
        Ids, dict[tuple[Ids, int], float]
    ] = {}  # prompt -> (ids behind it, how many of the last count) -> log p
    where = [_split(model, prompt, answer) for prompt, answer in pairs]
    for head, tail in where:
        tails.setdefault(head, {})[tail] = math.nan
    groups: dict[int, list[Ids]] = {}
    for head in tails:
        groups.setdefault(_power(len(head), 16), []).append(head)
    shards, done = row_shards(mesh), 0
    for width, heads in sorted(groups.items()):
        most = max(len(tail) for head in heads for tail, _ in tails[head])
        T = _power(most - 1, mesh.shape["context"])
        cap = _power(min(places // (width + T), MOST) // 2 + 1, 1)
        B = -(-min(cap, _power(len(heads), 1)) // shards) * shards
        for start in range(0, len(heads), B):
            block = heads[start : start + B]
            log_p_BV, cache = _read_heads(model, params, block, (B, width), mesh, width + T)
            jobs = [(row, tail) for row, head in enumerate(block) for tail in tails[head]]
            S = -(-min(cap, _power(len(jobs), 1)) // shards) * shards
            for first in range(0, len(jobs), S):
                some = jobs[first : first + S]
                lengths = [len(head) for head in block]
                heads_S, batch = _tail_batch(some, lengths, (S, T))
                found = read_tails(model, params, log_p_BV, cache, heads_S, put_batch(batch, mesh, S))
                for (row, tail), value in zip(some, to_host(found).astype(np.float64).tolist()):
                    tails[block[row]][tail] = value
                progress(done := done + len(some))
    return np.array([tails[head][tail] for head, tail in where])


def check_pairs(model: Model, pairs: Sequence[tuple[Ids, Ids]]) -> None:
    config = model.config
    longest = max((len(prompt) + len(answer) - 1 for prompt, answer in pairs), default=0)
    if config.position == "learned" and longest > config.max_len:
        raise UserError(f"a prompt and its answer have {longest} tokens, and this model has {config.max_len} positions")
    ids = {i for pair in set(pairs) for part in pair for i in part}
    if ids and not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise UserError(f"the prompts hold ids outside the model's vocabulary of {config.vocab_size}")
    assert all(prompt and answer for prompt, answer in pairs)


def _split(model: Model, prompt: Ids, answer: Ids) -> tuple[Ids, tuple[Ids, int]]:
    """What of a prompt is read into the cache; the ids behind that, and how many of these, the last ones, count.

    Where the length of a text decides how its keys are turned, an answer may change those of its prompt, but for the first,
    which never turns.
    """
    scaling = model.config.rope_scaling
    if scaling.kind in ("dynamic", "longrope") and len(prompt) + len(answer) - 1 > scaling.original_len:
        return prompt[:1], ((*prompt[1:], *answer), len(answer))
    return prompt, (answer, len(answer))


def _power(number: int, least: int) -> int:
    """The power of two times `least` that is not less: few shapes, few compilations."""
    while least < number:
        least *= 2
    return least


def _read_heads(
    model: Model, params: Params, heads: list[Ids], shape: tuple[int, int], mesh: Mesh, length: int
) -> tuple[jax.Array, Any]:
    tokens, segments = np.zeros((2, *shape), np.int32)
    for row, ids in enumerate(heads):
        tokens[row, shape[1] - len(ids) :] = ids
        segments[row, shape[1] - len(ids) :] = 1
    batch = put_batch({"tokens": tokens, "segments": segments}, mesh, shape[0])
    return read_heads(model, params, batch, length=length)


def _tail_batch(
    jobs: list[tuple[int, tuple[Ids, int]]], lengths: list[int], shape: tuple[int, int]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Inputs are all ids of an answer but its last, and targets all but its first, which the prompt predicts."""
    heads_S = np.zeros(shape[0], np.int32)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segments", "positions")}
    batch |= {"weights": np.zeros(shape, np.float32), "first": np.zeros(shape, np.float32)}
    for number, (row, (ids, count)) in enumerate(jobs):
        n = len(ids) - 1
        heads_S[number] = row
        batch["tokens"][number, : max(n, 1)] = ids[: max(n, 1)]
        batch["targets"][number, :n] = ids[1:]
        batch["segments"][number, :n] = 1
        batch["positions"][number, :n] = lengths[row] + np.arange(n)
        batch["weights"][number, max(n - count, 0) : n] = 1
        batch["first"][number] = count == len(ids)
    return heads_S, batch
