"""What is attention, as a formula? softmax(QK^T / sqrt(d_k)) V, and who sees whom. All kernels are compared with this."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.model.products import einsum, einsum_f32

NEVER = -1e30  # score of a masked pair; finite, so that a row of padding gives no NaN


def attention_mask(
    q_segments_BT: jax.Array, k_segments_BS: jax.Array, q_positions_BT: jax.Array, k_positions_BS: jax.Array,
    first_slot: jax.Array | int, window: int,
) -> jax.Array:  # fmt: skip
    """Returns mask_BTS: True where query t may see key s.

    Same segment, key slot not after the query's (query t is in slot `first_slot` + t, one number or one a row), and, with
    a window, fewer than `window` positions back. Padding is segment 0 and sees only padding.
    """
    T, S = q_segments_BT.shape[1], k_segments_BS.shape[1]
    causal_BTS = jnp.arange(S)[None, None] <= jnp.reshape(first_slot, (-1, 1, 1)) + jnp.arange(T)[None, :, None]
    mask_BTS = causal_BTS & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])
    if window:
        mask_BTS &= q_positions_BT[:, :, None] - k_positions_BS[:, None, :] < window
    return mask_BTS


def slot_mask(q_segments_BT: jax.Array, k_segments_BS: jax.Array, first_slot: Any, window: int) -> jax.Array:
    """`attention_mask` where a document's tokens lie side by side, so that slots count as positions do."""
    T, S = q_segments_BT.shape[1], k_segments_BS.shape[1]
    slots = first_slot + jnp.arange(T)[None], jnp.arange(S)[None]
    return attention_mask(q_segments_BT, k_segments_BS, *slots, first_slot, window)


def softcap(x: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(x / cap) if cap else x


def attend(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, cap: float = 0.0,
    dropout: nn.Dropout | None = None,
) -> jax.Array:  # fmt: skip
    """Plain XLA attention, softmax(QK^T / sqrt(d_k)) V. Returns [B, T, K, G, H] in the dtype of `v`."""
    q_BTKGH = q_BTKGH / math.sqrt(q_BTKGH.shape[-1])
    scores_BKGTS: Any = einsum_f32("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH)
    weights_BKGTS = attention_weights(scores_BKGTS, mask_BTS, cap).astype(v_BSKH.dtype)
    if dropout is not None:
        weights_BKGTS = dropout(weights_BKGTS)
    return einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)


def attend_cache(
    q_BTKGH: jax.Array, k_NSH: jax.Array, v_NSH: jax.Array, mask_BTS: jax.Array, cap: float = 0.0
) -> jax.Array:
    """`attend` over a cache, whose keys and values of each row and head (N = B x K) lie side by side: products copy none."""
    B, T, K, G, H = q_BTKGH.shape
    q_NXH = jnp.moveaxis(q_BTKGH / math.sqrt(H), 1, 3).reshape(B * K, G * T, H)
    scores_NXS: Any = einsum_f32("NXH,NSH->NXS", q_NXH, k_NSH)
    weights_BKGTS = attention_weights(scores_NXS.reshape(B, K, G, T, -1), mask_BTS, cap).astype(v_NSH.dtype)
    y_NXH = einsum("NXS,NSH->NXH", weights_BKGTS.reshape(scores_NXS.shape), v_NSH)
    return jnp.moveaxis(y_NXH.reshape(B, K, G, T, H), 3, 1)


def attention_weights(scores_BKGTS: jax.Array, mask_BTS: jax.Array, cap: float) -> jax.Array:
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], softcap(scores_BKGTS, cap), NEVER)
    return jax.nn.softmax(scores_BKGTS, axis=-1)
