"""What happens in one training step?

A pure function (state, batch, key) -> (state, metrics). It knows no model: `loss` gives sums, and the one division by
the summed weight happens here, so the result does not depend on how the batch was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.losses import Sums
from lm.optim import Schedule, plateau_state
from lm.params import Params

Batch = Mapping[str, jax.Array]
Loss = Callable[[Params, Batch, jax.Array | None], tuple[jax.Array, Sums]]  # -> (sum to minimise, sums)
GradFn = Callable[[Params, Params, Batch, jax.Array], tuple[Params, Sums]]  # trained, frozen, batch, key


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    step: jax.Array  # steps done; also the position in the data
    params: Params
    opt_state: Any


def make_grad_fn(loss: Loss, micro_batches: int) -> GradFn:
    """Returns a function giving the summed gradient over the trained leaves, and the sums, of a whole batch."""

    def grad_fn(trained: Params, frozen: Params, batch: Batch, key: jax.Array) -> tuple[Params, Sums]:
        def objective(trained: Params, micro: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
            return loss({**frozen, **trained}, micro, key)

        def gradient(micro: Batch, key: jax.Array) -> tuple[Params, Sums]:
            grads, sums = jax.grad(objective, has_aux=True)(trained, micro, key)
            return grads, sums

        if micro_batches == 1:
            return gradient(batch, key)
        # Row r goes to part r % micro_batches, so every part keeps its rows on the devices that hold them.
        parts = {k: v.reshape(-1, micro_batches, *v.shape[1:]).swapaxes(0, 1) for k, v in batch.items()}

        def add(carry: tuple[Params, Sums], part: tuple[Batch, jax.Array]) -> tuple[tuple[Params, Sums], None]:
            return jax.tree.map(jnp.add, carry, gradient(*part)), None

        keys = jax.random.split(key, micro_batches)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts), key),
        )
        return jax.lax.scan(add, zeros, (parts, keys))[0]

    return grad_fn


def make_train_step(
    grad_fn: GradFn, optimizer: optax.GradientTransformationExtraArgs, schedule: Schedule, trained_paths: frozenset[str]
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the step. One with a loss or gradient that is not finite, or with no target, only counts."""

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        trained = {p: leaf for p, leaf in state.params.items() if p in trained_paths}
        frozen = {p: leaf for p, leaf in state.params.items() if p not in trained_paths}
        grads, sums = grad_fn(trained, frozen, batch, jax.random.fold_in(key, state.step))
        weight = jnp.where(sums["weight"] > 0, sums["weight"], 1.0)
        loss, norm = sums["nll"] / weight, optax.tree.norm(grads) / weight
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)

        def move() -> tuple[Params, Any]:
            means = {p: optax.MaskedNode() if p in frozen else grads[p] / weight for p in state.params}
            updates: Any
            updates, opt_state = optimizer.update(means, state.opt_state, state.params, step=state.step, norm=norm)
            return {p: (leaf + updates[p]).astype(leaf.dtype) for p, leaf in trained.items()}, opt_state

        def stay() -> tuple[Params, Any]:
            return trained, state.opt_state

        moved, opt_state = jax.lax.cond(finite & (sums["weight"] > 0), move, stay)
        plateau = plateau_state(state.opt_state)
        metrics = {
            "train/loss": loss,
            "train/objective": sums["objective"] / weight,
            "targets": sums["weight"],
            "tokens": sums["tokens"],
            "grad_norm": norm,
            "lr": schedule(state.step) * (1.0 if plateau is None else plateau.scale),
            "skipped": 1.0 - finite.astype(jnp.float32),
        }
        if "balance" in sums:
            metrics["train/balance"] = sums["balance"] / weight
        return TrainState(state.step + 1, {**frozen, **moved}, opt_state), metrics

    return train_step
