"""Which earlier tokens does each token look at, and what does it take from them?

softmax(QK^T / sqrt(d_k)) V (arXiv:1706.03762, equation 1), with the softmax in float32 and grouped key/value heads
(arXiv:2305.13245).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.layers import init_matrix, init_out, normalise, rotate

Cache = dict[str, jax.Array]  # k, v: [L, B, S, K, H]; segments, positions: [B, S]; index: next free slot
NEVER = -1e30  # score of a masked pair; finite, so that a row of padding gives no NaN


def attention_mask(
    q_segments_BT: jax.Array, k_segments_BS: jax.Array, q_positions_BT: jax.Array, k_positions_BS: jax.Array,
    first_slot: jax.Array | int, window: int,
) -> jax.Array:  # fmt: skip
    """Returns mask_BTS: True where query t may see key s.

    Same segment, key slot not after the query's (query t is in slot `first_slot` + t), and, with a window, fewer than
    `window` positions back. Padding is segment 0 and sees only padding.
    """
    T, S = q_segments_BT.shape[1], k_segments_BS.shape[1]
    causal_TS = jnp.arange(S)[None, :] <= first_slot + jnp.arange(T)[:, None]
    mask_BTS = causal_TS[None] & (q_segments_BT[:, :, None] == k_segments_BS[:, None, :])
    if window:
        mask_BTS &= q_positions_BT[:, :, None] - k_positions_BS[:, None, :] < window
    return mask_BTS


def softcap(x: jax.Array, cap: float) -> jax.Array:
    return cap * jnp.tanh(x / cap) if cap else x


def attend(
    q_BTKGH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, mask_BTS: jax.Array, cap: float = 0.0,
    dropout: nn.Dropout | None = None,
) -> jax.Array:  # fmt: skip
    """Plain XLA attention. Returns [B, T, K, G, H] in the dtype of `v`."""
    q_BTKGH = q_BTKGH / math.sqrt(q_BTKGH.shape[-1])
    scores_BKGTS = jnp.einsum("BTKGH,BSKH->BKGTS", q_BTKGH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGTS = jnp.where(mask_BTS[:, None, None], softcap(scores_BKGTS, cap), NEVER)
    weights_BKGTS = jax.nn.softmax(scores_BKGTS, axis=-1).astype(v_BSKH.dtype)
    if dropout is not None:
        weights_BKGTS = dropout(weights_BKGTS)
    return jnp.einsum("BKGTS,BSKH->BTKGH", weights_BKGTS, v_BSKH)


class Attention(nn.Module):
    config: ModelConfig
    deterministic: bool = True

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, rope: tuple[jax.Array, jax.Array] | None, mask_BTS: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None, index: jax.Array | int,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:  # fmt: skip
        """Returns the output and this layer's (k, v) [B, S, K, H] with the new ones written at slot `index`."""
        config, dtype = self.config, x_BTD.dtype
        B, T, D = x_BTD.shape
        N, K, H = config.heads, config.n_kv_heads, config.q_head_dim

        def heads(name: str, count: int) -> jax.Array:
            y = x_BTD @ self.param(name, init_matrix(config), (D, count * H)).astype(dtype)
            if config.attn_bias:
                y += self.param(f"{name}_bias", nn.initializers.zeros, (count * H,)).astype(dtype)[None, None]
            return y.reshape(B, T, count, H)

        q_BTNH, k_BTKH, v_BTKH = heads("q", N), heads("k", K), heads("v", K)
        if config.qk_norm:  # arXiv:2302.05442
            q_BTNH = normalise(q_BTNH, self.param("q_scale", nn.initializers.ones, (H,)), None, config.norm_eps)
            k_BTKH = normalise(k_BTKH, self.param("k_scale", nn.initializers.ones, (H,)), None, config.norm_eps)
        if rope is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, *rope), rotate(k_BTKH, *rope)
        k_BSKH, v_BSKH = k_BTKH, v_BTKH
        if cache is not None:
            k_BSKH = jax.lax.dynamic_update_slice_in_dim(cache[0], k_BTKH, index, axis=1)
            v_BSKH = jax.lax.dynamic_update_slice_in_dim(cache[1], v_BTKH, index, axis=1)
            cache = (k_BSKH, v_BSKH)
        drops = config.dropout > 0 and not self.deterministic
        dropout = nn.Dropout(config.dropout, deterministic=False) if drops else None
        q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
        y_BTD = attend(q_BTKGH, k_BSKH, v_BSKH, mask_BTS, config.attn_softcap, dropout).reshape(B, T, N * H)
        y_BTD = y_BTD @ self.param("out", init_out(config), (N * H, D)).astype(dtype)
        if config.attn_out_bias:
            y_BTD += self.param("out_bias", nn.initializers.zeros, (D,)).astype(dtype)[None, None]
        return y_BTD, cache
