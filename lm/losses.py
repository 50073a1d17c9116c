"""How wrong were the predictions? Sums, never means: only the step divides, once, so no split of the batch matters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import is_off

Sums = dict[str, jax.Array]
LOGITS_BYTES = 256 * 2**20  # of float32 logits at a time, where the config does not say
SKIP_BYTES = 64 * 2**20  # the same where pieces without a weight are left out: finer, so that more of them are


def token_losses(
    logits_BTV: jax.Array, targets_BT: jax.Array, label_smoothing: float = 0.0, z_loss: float = 0.0,
    focal_gamma: float = 0.0,
) -> dict[str, jax.Array]:  # fmt: skip
    """Returns [B, T] arrays: `nll` (nats) and `objective` (what is minimised).

    objective = (1 - p)^g ((1 - s) nll + s mean_v(-log p_v)) + z log(Z)^2, p the probability of the target (smoothing:
    arXiv:1512.00567; z-loss: arXiv:2204.02311; g, focal loss: arXiv:1708.02002).
    """
    logits_BTV = logits_BTV.astype(jnp.float32)
    log_z_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    nll_BT = log_z_BT - pick(logits_BTV, targets_BT)
    objective_BT = nll_BT
    if not is_off(label_smoothing):
        spread_BT = log_z_BT - logits_BTV.mean(-1)
        objective_BT = (1 - label_smoothing) * nll_BT + label_smoothing * spread_BT
    if not is_off(focal_gamma):
        missed_BT = -jnp.expm1(jnp.minimum(-nll_BT, -1e-7))  # 1 - p, never 0: a power below 1 has no gradient there
        objective_BT = missed_BT**focal_gamma * objective_BT
    if not is_off(z_loss):
        objective_BT += z_loss * jnp.square(log_z_BT)
    return {"nll": nll_BT, "objective": objective_BT}


@jax.custom_vjp
def pick(x_BTV: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """x[b, t, ids[b, t]]. Its gradient is a comparison, which XLA fuses with what else the logits get, and no scatter.

    On a GPU the scatter was a pass of its own over zeros as large as the logits, and two more to add it (docs/LOG.md).
    """
    return jnp.take_along_axis(x_BTV, ids_BT[..., None], axis=-1)[..., 0]


def _pick_forward(x_BTV: jax.Array, ids_BT: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return pick(x_BTV, ids_BT), (jnp.arange(x_BTV.shape[-1]), ids_BT)


def _pick_backward(kept: tuple[jax.Array, jax.Array], g_BT: jax.Array) -> tuple[jax.Array, None]:
    all_V, ids_BT = kept
    return jnp.where(all_V[None, None] == ids_BT[..., None], g_BT[..., None], 0), None


pick.defvjp(_pick_forward, _pick_backward)


def sum_losses(losses: dict[str, jax.Array], weights_BT: jax.Array, axis: int | None = None) -> Sums:
    """Returns weighted sums of each loss and `weight`; over everything, or over `axis` (1: one sum a row)."""
    sums = {key: jnp.sum(value * weights_BT, axis=axis) for key, value in losses.items()}
    return {**sums, "weight": jnp.sum(weights_BT, axis=axis)}


def count_pieces(tokens: int, seq_len: int, vocab_size: int, chunk: int, skip: bool = False) -> int:
    """In how many pieces a device's `tokens` (of rows of `seq_len`) take their loss: the fewest that respect `chunk`.

    `skip`: as in `sum_in_pieces`.

    >>> count_pieces(8192, 8192, 128_256, 0), count_pieces(4096, 1024, 256, 0), count_pieces(48, 12, 32, 9)
    (16, 1, 6)
    """
    chunk = chunk or max((SKIP_BYTES if skip else LOGITS_BYTES) // (4 * vocab_size), 1)
    return next((n for n in range(1, seq_len) if seq_len % n == 0 and tokens // n <= chunk), seq_len)


def cut_places(x_BT: jax.Array, pieces: int) -> jax.Array:
    """[B, T, ...] -> [pieces, B, T / pieces, ...]; place t goes to piece t % pieces, so each lies on all devices."""
    B, T = x_BT.shape[:2]
    return jnp.moveaxis(x_BT.reshape(B, T // pieces, pieces, *x_BT.shape[2:]), 2, 0)


def join_places(x_PBT: jax.Array) -> jax.Array:
    """Undoes `cut_places`."""
    pieces, B, T = x_PBT.shape[:3]
    return jnp.moveaxis(x_PBT, 0, 2).reshape(B, T * pieces, *x_PBT.shape[3:])


def sort_places(weights_BT: jax.Array, pieces: int) -> tuple[jax.Array, jax.Array]:
    """Where each place goes so that those with a weight fill the first pieces of `cut_places`, and the way back; [B, T]."""
    first_BT = jnp.argsort(weights_BT == 0, axis=1)  # stable
    order_BT = join_places(first_BT.reshape(len(first_BT), pieces, -1).swapaxes(0, 1))
    return order_BT, jnp.argsort(order_BT, axis=1)


def take_places(x_BT: jax.Array, order_BT: jax.Array) -> jax.Array:
    """x [B, T, ...] with each row's places in that order."""
    return jnp.take_along_axis(x_BT, order_BT.reshape(*order_BT.shape, *(1,) * (x_BT.ndim - 2)), axis=1)


def sum_in_pieces(
    loss: Callable[[jax.Array, jax.Array, Mapping[str, jax.Array]], Sums], head: jax.Array, x_BTD: jax.Array,
    batch: Mapping[str, jax.Array], pieces: int, head_trained: bool, constrain: Callable[[Any], Any] = lambda g: g,
    skip: bool = False,
) -> Sums:  # fmt: skip
    """Sums `loss(head, x, batch)` over pieces of the places, so that logits exist for one piece at a time.

    The gradient is taken in the forward, piece by piece, so that neither logits nor their gradient is kept or computed
    twice. Only `objective` has one. `constrain` shards the head's gradient, which is summed in float32. `skip`: sorts the
    places of each row and leaves out pieces without a weight, whose `loss` must be zeros.
    """

    def cut(leaf_BT: jax.Array, order_BT: jax.Array | None) -> jax.Array:
        return cut_places(leaf_BT if order_BT is None else take_places(leaf_BT, order_BT), pieces)

    def where(batch: Mapping[str, jax.Array]) -> tuple[jax.Array | None, jax.Array | None]:
        return sort_places(batch["weights"], pieces) if skip else (None, None)

    def unless_empty(one: Any, carry: Any, part: tuple[Any, Mapping[str, jax.Array]]) -> tuple[Any, Any]:
        if not skip:
            return one(carry, part)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(one, carry, part)[1])
        return jax.lax.cond(jnp.any(part[1]["weights"] != 0), one, lambda carry, part: (carry, empty), carry, part)

    @jax.custom_vjp
    def total(head: jax.Array, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
        cast, (order_BT, _) = head.astype(x_BTD.dtype), where(batch)
        parts = jax.tree.map(lambda leaf: cut(leaf, order_BT), (x_BTD, batch))
        _, sums = jax.lax.scan(partial(unless_empty, lambda _, part: (None, loss(cast, *part))), None, parts)
        return {key: value.sum(0) for key, value in sums.items()}

    def forward(head: jax.Array, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[Sums, Any]:
        cast, (order_BT, back_BT) = head.astype(x_BTD.dtype), where(batch)

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
        parts = jax.tree.map(lambda leaf: cut(leaf, order_BT), (x_BTD, batch))
        head_grad, (sums, x_grad) = jax.lax.scan(partial(unless_empty, one), zeros, parts)
        return {key: value.sum(0) for key, value in sums.items()}, (head_grad, x_grad, head, back_BT)

    def backward(kept: Any, cotangent: Sums) -> tuple[Any, Any, None]:
        head_grad, x_grad, head, back_BT = kept
        scale = cotangent["objective"]
        to_head = jnp.zeros_like(head) if head_grad is None else (head_grad * scale).astype(head.dtype)
        to_x_BTD = join_places((x_grad * scale).astype(x_grad.dtype))
        return to_head, to_x_BTD if back_BT is None else take_places(to_x_BTD, back_BT), None

    total.defvjp(forward, backward)
    return total(head, x_BTD, batch)
