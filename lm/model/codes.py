"""How is a frozen matrix held in 8 or 4 bits a number, and multiplied with?

`block_03/attn/q` then holds codes, `block_03/attn/q_absmax` the largest magnitude of each block of a column: of all of it
(int8), or of 64 numbers, each coded as the nearest of 16 quantiles of a normal distribution (nf4, arXiv:2305.14314; two to
a byte, 4.5 bits a number). Codes become numbers inside the product, again in its backward, and are never kept as such.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import UserError
from lm.model.products import einsum, settle

KINDS = ("int8", "nf4")
BLOCK = 64
NF4 = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)  # fmt: skip  # appendix E
MIDDLES = (NF4[1:] + NF4[:-1]) / 2


def encode(w: jax.Array, kind: str) -> tuple[jax.Array, jax.Array]:
    """Returns codes and absmax of matrices [..., D, F].

    int8: codes [..., D, F], absmax [..., 1, F]. nf4: uint8 [..., D/2, F] (rows 2i and 2i + 1), float32 [..., D/64, F].
    """
    w, dim = w.astype(jnp.float32), w.shape[-2]
    if kind == "nf4" and dim % 2:
        raise UserError(f"optim.frozen_dtype='nf4' holds rows in pairs, but a matrix here has {dim}: set it to 'int8'")
    if kind == "int8":
        absmax = jnp.abs(w).max(-2, keepdims=True)
        return jnp.round(w * (127 / _not_zero(absmax))).astype(jnp.int8), absmax
    padded = jnp.pad(w, [(0, 0)] * (w.ndim - 2) + [(0, -dim % BLOCK), (0, 0)])
    blocks = padded.reshape(*w.shape[:-2], -1, BLOCK, w.shape[-1])
    absmax = jnp.abs(blocks).max(-2)
    numbers = w / _not_zero(_spread(absmax, dim))
    codes = jnp.searchsorted(MIDDLES, numbers).astype(jnp.uint8)
    return codes[..., ::2, :] | codes[..., 1::2, :] << 4, absmax


def _not_zero(x: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, 1.0)


def _spread(absmax: jax.Array, dim: int) -> jax.Array:
    return jnp.repeat(absmax, BLOCK, axis=-2)[..., :dim, :]


def decode(codes: jax.Array, absmax: jax.Array) -> jax.Array:
    """Returns the numbers [..., D, F] in float32; the dtype of the codes says which kind they are."""
    if codes.dtype == jnp.int8:
        return codes.astype(jnp.float32) * (absmax / 127)
    pairs = jnp.stack([codes & 15, codes >> 4], axis=-2)  # [..., D/2, 2, F]
    rows = pairs.reshape(*codes.shape[:-2], -1, codes.shape[-1])
    return jnp.asarray(NF4)[rows] * _spread(absmax, rows.shape[-2])


@jax.custom_vjp
def matmul_coded(x_BTD: jax.Array, codes: jax.Array, absmax: jax.Array) -> jax.Array:
    """x @ w for a w held as codes, which has no gradient."""
    return einsum("...D,DF->...F", x_BTD, decode(codes, absmax).astype(x_BTD.dtype))


def _forward(x_BTD: jax.Array, codes: jax.Array, absmax: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return matmul_coded(x_BTD, codes, absmax), (codes, absmax)


def _backward(kept: tuple[jax.Array, jax.Array], g_BTF: jax.Array) -> tuple[jax.Array, None, None]:
    w_DF = decode(*kept).astype(g_BTF.dtype)
    return einsum("BTF,DF->BTD", settle(g_BTF), w_DF), None, None


matmul_coded.defvjp(_forward, _backward)
