"""How wrong were the predictions? Sums, never means: only the step divides, once, so no split of the batch matters."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Sums = dict[str, jax.Array]


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
