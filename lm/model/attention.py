"""Which earlier tokens does each token look at, and what does it take from them?

softmax(QK^T / sqrt(d_k)) V (arXiv:1706.03762, equation 1), with the softmax in float32 and grouped key/value heads
(arXiv:2305.13245). `lm/model/kernels.py` has the programs that compute it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.model.formula import attend, attend_cache
from lm.model.kernels import Kernel
from lm.model.layers import dense, init_matrix, init_out, norm_scale, normalise
from lm.model.rope import Rope, rotate

# k, v: [B x K, S, H] of each layer, with the layers before it for a run of them; segments, positions: [B, S]; index: next
# free slot, one number, or [B] where rows differ in it. A layer's keys are never joined with another's: that would copy all.
Cache = dict[str, Any]


class View(NamedTuple):
    """What a layer knows of where tokens stand: how they are rotated and whom they see."""

    rope: Rope | None
    segments_BT: jax.Array
    mask_BTS: jax.Array | None  # with a cache, and for the plain formula; None: the kernel finds it from the segments


def write_slots(old_BS: jax.Array, new_BT: jax.Array, index: jax.Array | int) -> jax.Array:
    """Returns `old` [B, S, ...] with `new` [B, T, ...] from slot `index` on, of all rows or of each its own."""
    update = jax.lax.dynamic_update_slice_in_dim
    if jnp.ndim(index):
        return jax.vmap(lambda old, new, at: update(old, new, at, axis=0))(old_BS, new_BT, index)
    return update(old_BS, new_BT, index, axis=1)


class Attention(nn.Module):
    config: ModelConfig
    deterministic: bool = True
    kernels: tuple[Kernel, Kernel] | None = None  # without and with the window; None: the plain formula

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, view: View, local: bool | jax.Array, cache: tuple[jax.Array, jax.Array] | None,
        index: jax.Array | int,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:  # fmt: skip
        """Returns the output and this layer's (k, v) [B x K, S, H] with the new ones written at slot `index`.

        `local`: whether this layer has the window; an array where layers of both kinds share one program.
        """
        config = self.config
        B, T, D = x_BTD.shape
        N, K, H = config.heads, config.n_kv_heads, config.q_head_dim

        def heads(name: str, count: int) -> jax.Array:
            y = dense(self, name, x_BTD, count * H, init_matrix(config), config.attn_bias)
            return y.reshape(B, T, count, H)

        q_BTNH, k_BTKH, v_BTKH = heads("q", N), heads("k", K), heads("v", K)
        if config.qk_norm or config.qk_norm_joint:  # arXiv:2302.05442

            def norm(name: str, y: jax.Array) -> jax.Array:
                flat = y.reshape(B, T, -1) if config.qk_norm_joint else y
                scale = norm_scale(self, name, config, flat.shape[-1])
                return normalise(flat, scale, None, config.norm_eps).reshape(y.shape)

            q_BTNH, k_BTKH = norm("q_scale", q_BTNH), norm("k_scale", k_BTKH)
        if view.rope is not None:
            q_BTNH, k_BTKH = rotate(q_BTNH, *view.rope), rotate(k_BTKH, *view.rope)
        if config.score_scale != H:
            q_BTNH *= math.sqrt(H / config.score_scale)  # whoever computes the scores divides them by sqrt(H)
        if view.mask_BTS is None:
            assert self.kernels is not None
            everything = (q_BTNH, k_BTKH, v_BTKH, view.segments_BT)
            if isinstance(local, bool):
                y_BTNH = self.kernels[local](*everything)
            else:
                y_BTNH = jax.lax.cond(local, self.kernels[True], self.kernels[False], *everything)
        elif cache is not None:
            at = jnp.repeat(index, K) if jnp.ndim(index) else index
            k_NSH, v_NSH = (
                write_slots(old, new.swapaxes(1, 2).reshape(B * K, T, H), at)
                for old, new in zip(cache, (k_BTKH, v_BTKH))
            )
            cache = (k_NSH, v_NSH)
            q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
            y_BTNH = attend_cache(q_BTKGH, k_NSH, v_NSH, view.mask_BTS, config.attn_softcap)
        else:
            drops = config.dropout > 0 and not self.deterministic
            dropout = nn.Dropout(config.dropout, deterministic=False) if drops else None
            q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
            y_BTNH = attend(q_BTKGH, k_BTKH, v_BTKH, view.mask_BTS, config.attn_softcap, dropout)
        y_BTD = dense(self, "out", y_BTNH.reshape(B, T, N * H), D, init_out(config), config.attn_out_bias)
        return y_BTD, cache
