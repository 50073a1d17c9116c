"""How wrong were the predictions? Sums, never means: only the step divides, once, so no split of the batch matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Sums = dict[str, jax.Array]
LOGITS_BYTES = 256 * 2**20  # of float32 logits at a time, where the config does not say


def token_losses(
    logits_BTV: jax.Array, targets_BT: jax.Array, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> dict[str, jax.Array]:
    """Returns [B, T] arrays: `nll` (nats) and `objective` (what is minimised).

    objective = (1 - s) nll + s mean_v(-log p_v) + z log(Z)^2 (smoothing: arXiv:1512.00567; z-loss: arXiv:2204.02311).
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nll_BT = log_z_BT - jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)[..., 0]
    objective_BT = nll_BT
    if label_smoothing:
        spread_BT = log_z_BT - logits_BTV.mean(-1)
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * spread_BT
    if z_loss:
        objective_BT += z_loss * jnp.square(log_z_BT)
    return {"nll": nll_BT, "objective": objective_BT}


def sum_losses(losses: dict[str, jax.Array], weights_BT: jax.Array, axis: int | None = None) -> Sums:
    """Returns weighted sums of each loss and `weight`; over everything, or over `axis` (1: one sum a row)."""
    sums = {key: jnp.sum(value * weights_BT, axis=axis) for key, value in losses.items()}
    return {**sums, "weight": jnp.sum(weights_BT, axis=axis)}


def count_pieces(tokens: int, seq_len: int, vocab_size: int, chunk: int) -> int:
    """In how many pieces a device's `tokens` (of rows of `seq_len`) take their loss: the fewest that respect `chunk`.

    >>> count_pieces(8192, 8192, 128_256, 0), count_pieces(4096, 1024, 256, 0), count_pieces(48, 12, 32, 9)
    (16, 1, 6)
    """
    chunk = chunk or max(LOGITS_BYTES // (4 * vocab_size), 1)
    return next((n for n in range(1, seq_len) if seq_len % n == 0 and tokens // n <= chunk), seq_len)


def cut_places(x_BT: jax.Array, pieces: int) -> jax.Array:
    """[B, T, ...] -> [pieces, B, T / pieces, ...]; place t goes to piece t % pieces, so each lies on all devices."""
    B, T = x_BT.shape[:2]
    return jnp.moveaxis(x_BT.reshape(B, T // pieces, pieces, *x_BT.shape[2:]), 2, 0)


def join_places(x_PBT: jax.Array) -> jax.Array:
    """Undoes `cut_places`."""
    pieces, B, T = x_PBT.shape[:3]
    return jnp.moveaxis(x_PBT, 0, 2).reshape(B, T * pieces, *x_PBT.shape[3:])


def sum_in_pieces(
    loss: Callable[[jax.Array, jax.Array, Mapping[str, jax.Array]], Sums], head: jax.Array, x_BTD: jax.Array,
    batch: Mapping[str, jax.Array], pieces: int, head_trained: bool, constrain: Callable[[Any], Any] = lambda g: g,
) -> Sums:  # fmt: skip
    """Sums `loss(head, x, batch)` over pieces of the places, so that logits exist for one piece at a time.

    The gradient is taken in the forward, piece by piece, so that neither logits nor their gradient is kept or computed
    twice. Only `objective` has one. `constrain` shards the head's gradient, which is summed in float32.
    """

    @jax.custom_vjp
    def total(head: jax.Array, x_PBTD: jax.Array, batch_P: Mapping[str, jax.Array]) -> Sums:
        cast = head.astype(x_PBTD.dtype)
        parts = jax.lax.map(lambda part: loss(cast, *part), (x_PBTD, batch_P))
        return {key: value.sum(0) for key, value in parts.items()}

    def forward(head: jax.Array, x_PBTD: jax.Array, batch_P: Mapping[str, jax.Array]) -> tuple[Sums, Any]:
        cast = head.astype(x_PBTD.dtype)

        def one(head_grad: Any, part: Any) -> tuple[Any, tuple[Sums, jax.Array]]:
            def objective(cast: jax.Array, x_BTD: jax.Array) -> tuple[jax.Array, Sums]:
                sums = loss(cast, x_BTD, part[1])
                return sums["objective"], sums

            if not head_trained:
                x_grad, sums = jax.grad(objective, 1, has_aux=True)(cast, part[0])
                return head_grad, (sums, x_grad)
            (more, x_grad), sums = jax.grad(objective, (0, 1), has_aux=True)(cast, part[0])
            return constrain(head_grad + constrain(more)), (sums, x_grad)

        zeros = constrain(jnp.zeros(head.shape, jnp.float32)) if head_trained else None
        head_grad, (sums, x_grad) = jax.lax.scan(one, zeros, (x_PBTD, batch_P))
        return {key: value.sum(0) for key, value in sums.items()}, (head_grad, x_grad, head)

    def backward(kept: Any, cotangent: Sums) -> tuple[Any, Any, None]:
        head_grad, x_grad, head = kept
        scale = cotangent["objective"]
        to_head = jnp.zeros_like(head) if head_grad is None else (head_grad * scale).astype(head.dtype)
        return to_head, (x_grad * scale).astype(x_grad.dtype), None

    total.defvjp(forward, backward)
    return total(head, cut_places(x_BTD, pieces), {key: cut_places(leaf, pieces) for key, leaf in batch.items()})
