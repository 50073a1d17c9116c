"""What do gradients say of each block before anything is trained?

A few batches of the train split, each with its gradient at the start point; nothing moves. All of it is summed so that a second copy
of the gradient is the only memory that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.optim import make_optimizer, make_schedule
from lm.params import Params, join_stacks, layer_paths, split_stacks
from lm.parts import Parts, trained_paths
from lm.trials import make_gradient

Scores = dict[str, dict[str, float]]  # {probe: {block or part of one: score}}


@dataclass(frozen=True)
class Gradients:
    """Of the trained parameters: mean gradients of the even and of the odd batches; by per-layer path, squares and sizes."""

    even: Params
    odd: Params
    square: dict[str, float]  # mean over batches of the squared norm of a batch's mean gradient
    size: dict[str, int]
    batches: int


def measure_gradients(parts: Parts, params: Params, batches: Iterable[Mapping[str, jax.Array]]) -> Gradients:
    """Returns the gradients of the loss a token on `batches`, an even number of them, which lie on the devices."""
    trained = {p: leaf for p, leaf in params.items() if p in trained_paths(params, parts.treatment)}
    frozen = {p: leaf for p, leaf in params.items() if p not in trained}
    grad_fn = make_gradient(parts)

    @jax.jit
    def add(total: Params, trained: Params, frozen: Params, batch: Any) -> tuple[Params, Params]:
        grads, sums = grad_fn(trained, frozen, batch, jax.random.key(0))
        means = {p: g.astype(jnp.float32) / jnp.maximum(sums["weight"], 1.0) for p, g in grads.items()}
        squares = {p: jnp.square(leaf).sum() for p, leaf in split_stacks(means).items()}
        return {p: total[p] + leaf for p, leaf in means.items()}, squares

    totals = [{p: jnp.zeros(leaf.shape, jnp.float32) for p, leaf in trained.items()} for _ in range(2)]
    square: dict[str, float] = {}
    number = 0
    for number, batch in enumerate(batches, 1):
        totals[number % 2], squares = add(totals[number % 2], trained, frozen, batch)
        square = {p: square.get(p, 0.0) + float(value) for p, value in squares.items()}
    assert number % 2 == 0, number
    odd, even = ({p: leaf / (number / 2) for p, leaf in total.items()} for total in totals)
    size = {p: leaf.size // len(layer_paths(path)) for path, leaf in trained.items() for p in layer_paths(path)}
    return Gradients(even, odd, {p: value / number for p, value in square.items()}, size, number)


def first_update(parts: Parts, params: Params, grads: Params) -> Params:
    """Returns the optimizer's first step at the peak rate, as each block would take it if it were trained alone."""
    optim = parts.config.optim
    norms: dict[str, Any] = {}
    for path, leaf in split_stacks(grads).items():
        block = path.partition("/")[0]
        norms[block] = norms.get(block, 0.0) + jnp.square(leaf).sum()
    if optim.clip_norm:
        factor = {b: jnp.minimum(1.0, optim.clip_norm / jnp.sqrt(norm + 1e-30)) for b, norm in norms.items()}
        single = {p: g * factor[p.partition("/")[0]] for p, g in split_stacks(grads).items()}
        grads = join_stacks(single, list(grads))
    at_once = replace(optim, schedule="constant", warmup_steps=0, decay_steps=0, clip_norm=0.0)
    optimizer = make_optimizer(
        at_once,
        params,
        parts.treatment,
        make_schedule(at_once, parts.peak_lr, 1),
        width=parts.model.config.width_multiplier,
    )
    masked = {p: grads.get(p, optax.MaskedNode()) for p in params}
    updates: Any = optimizer.update(masked, optimizer.init(params), params, step=jnp.zeros((), jnp.int32), norm=1.0)[0]
    return {p: updates[p] for p in grads}


def measure_paths(parts: Parts, params: Params, gradients: Gradients) -> Scores:
    """Returns sums over each per-layer path: of g g, u u, w w and g u, each batch's g g, and how many numbers it has."""

    def measure(params: Params, even: Params, odd: Params) -> dict[str, dict[str, jax.Array]]:
        def dot(a: Params, b: Params) -> Params:
            return {p: leaf.sum() for p, leaf in split_stacks({p: a[p] * b[p] for p in even}).items()}

        u_even, u_odd = (first_update(parts, params, g) for g in (even, odd))
        mean = {p: (even[p] + odd[p]) / 2 for p in even}
        cross = jax.tree.map(lambda a, b: (a + b) / 2, dot(u_even, odd), dot(u_odd, even))
        update = jax.tree.map(lambda a, b: (a + b) / 2, dot(u_even, u_even), dot(u_odd, u_odd))
        return {"mean": dot(mean, mean), "update": update, "weight": dot(params, params), "cross": cross}

    found = jax.device_get(jax.jit(measure)(params, gradients.even, gradients.odd))
    sums = {name: {path: float(value) for path, value in values.items()} for name, values in found.items()}
    return {**sums, "square": gradients.square, "size": {p: float(n) for p, n in gradients.size.items()}}


def score(sums: Scores, batches: int, group: Callable[[str], str]) -> Scores:
    """Returns {probe: {group: score}} from what `measure_paths` found; `group(path)` names what a path is summed with.

    gain: -g u, the loss that the optimizer's first step u takes off to first order; g and u are of other batches.
    rgn: |E g| / |w|, the relative gradient norm (arXiv:2210.11466). fisher: mean squared gradient, a parameter.
    snr: |E g|^2 / trace of the covariance of g over batches, both without bias. update: |u| / |w|.
    """
    grouped: dict[str, dict[str, float]] = {}
    for name, values in sums.items():
        for path, value in values.items():
            entry = grouped.setdefault(group(path), dict.fromkeys(sums, 0.0))
            entry[name] += value
    table: Scores = {name: {} for name in ("gain", "rgn", "fisher", "snr", "update")}
    for name, s in grouped.items():
        signal = (batches * s["mean"] - s["square"]) / (batches - 1)  # |E g|^2
        noise = (s["square"] - s["mean"]) * batches / (batches - 1)
        weight = max(s["weight"], 1e-30)
        table["gain"][name] = -s["cross"]
        table["rgn"][name] = math.sqrt(max(signal, 0.0) / weight)
        table["fisher"][name] = s["square"] / s["size"]
        table["snr"][name] = signal / max(noise, 1e-30)
        table["update"][name] = math.sqrt(s["update"] / weight)
    return table
