"""How are rows multiplied, each with the matrix of its expert, for no more arithmetic than there are rows?

The rows lie sorted by expert, `sizes_X` says how many belong to each. On TPUs `jax.lax.ragged_dot` does this. Elsewhere XLA
makes a product with every expert of it and masks: on a CPU 8 experts take 8 times as long as one matrix, 32 take 36 times
(docs/LOG.md); on NVIDIA GPUs likewise, with a copy of the rows for each expert (openxla/xla issue 46127). There we loop over
the experts that have rows and over tiles of their rows, which takes 1.0 to 1.8 times as long as one matrix would.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lm.model.codes import decode
from lm.model.products import einsum, precision_of

# Of the gradient of the matrices: contracts the rows, group by group.
BY_ROWS = jax.lax.RaggedDotDimensionNumbers(
    (((0,), (0,)), ((), ())), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


@jax.custom_vjp
def matmul_grouped(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """x @ w[expert of the row]; the sizes add up to R."""
    return _rows(x_RD, w_XDF, sizes_X)


def _forward(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return _rows(x_RD, w_XDF, sizes_X), (x_RD, w_XDF, sizes_X)


def _backward(kept: tuple[jax.Array, ...], g_RF: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    x_RD, w_XDF, sizes_X = kept
    matrices = jax.lax.platform_dependent(x_RD, g_RF, sizes_X, tpu=_matrices_ragged, default=_matrices_tiled)
    return _rows(g_RF, w_XDF.swapaxes(1, 2), sizes_X), matrices.astype(w_XDF.dtype), None


matmul_grouped.defvjp(_forward, _backward)


@jax.custom_vjp
def matmul_grouped_coded(x_RD: jax.Array, codes: jax.Array, absmax: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """The same for matrices held as codes, which have no gradient and become numbers in each pass anew."""
    return _rows(x_RD, decode(codes, absmax).astype(x_RD.dtype), sizes_X)


def _coded_forward(x_RD: jax.Array, codes: jax.Array, absmax: jax.Array, sizes_X: jax.Array) -> tuple[jax.Array, Any]:
    return matmul_grouped_coded(x_RD, codes, absmax, sizes_X), (codes, absmax, sizes_X)


def _coded_backward(kept: Any, g_RF: jax.Array) -> tuple[jax.Array, None, None, None]:
    codes, absmax, sizes_X = kept
    w_XDF = decode(codes, absmax).astype(g_RF.dtype)
    return _rows(g_RF, w_XDF.swapaxes(1, 2), sizes_X), None, None, None


matmul_grouped_coded.defvjp(_coded_forward, _coded_backward)


def matmul_balanced(x_RD: jax.Array, w_XDF: jax.Array) -> jax.Array:
    """One product of the same arithmetic, as if all experts had as many rows: for XLA to count, which counts a loop once."""
    (R, D), X = x_RD.shape, w_XDF.shape[0]
    x_XRD = jnp.pad(x_RD, ((0, -R % X), (0, 0))).reshape(X, -1, D)
    return einsum("XRD,XDF->XRF", x_XRD, w_XDF).reshape(-1, w_XDF.shape[2])[:R]


def tile_rows(rows: int, experts: int) -> int:
    """How many rows are multiplied at a time: an eighth of what an expert has on average, so that little is masked.

    >>> tile_rows(8192, 8), tile_rows(16384, 64), tile_rows(4, 8), tile_rows(10**6, 8)
    (128, 32, 4, 256)
    """
    return min(1 << max(3, min((rows // (8 * experts)).bit_length() - 1, 8)), rows)


def _rows(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    return jax.lax.platform_dependent(x_RD, w_XDF, sizes_X, tpu=_rows_ragged, default=_rows_tiled)


def _rows_ragged(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot(x_RD, w_XDF, sizes_X, precision=precision_of(x_RD, w_XDF))


def _for_each_expert(sizes_X: jax.Array, step: Any, start: Any) -> Any:
    """Folds `step(expert, first row, end, value)` over the experts that have rows."""
    ends_X = jnp.cumsum(sizes_X)
    (used_X,) = jnp.nonzero(sizes_X, size=len(sizes_X), fill_value=0)

    def one(i: jax.Array, value: Any) -> Any:
        expert = used_X[i]
        return step(expert, ends_X[expert] - sizes_X[expert], ends_X[expert], value)

    return jax.lax.fori_loop(0, jnp.sum(sizes_X > 0), one, start)


def _for_each_tile(first: jax.Array, end: jax.Array, rows: int, size: int, step: Any, start: Any) -> Any:
    """Folds `step(place, mine, value)` over tiles of `size` rows from `place` on, of which `mine` [size, 1] count.

    A tile that would reach beyond the last row is moved up and counts what the others left.
    """

    def one(i: jax.Array, value: Any) -> Any:
        begin = first + i * size
        place = jnp.minimum(begin, rows - size)
        there = place + jnp.arange(size)
        return step(place, ((there >= begin) & (there < end))[:, None], value)

    return jax.lax.fori_loop(0, (end - first + size - 1) // size, one, start)


def _rows_tiled(x_RD: jax.Array, w_XDF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    (R, _), (X, _, F) = x_RD.shape, w_XDF.shape
    size = tile_rows(R, X)

    def expert(e: jax.Array, first: jax.Array, end: jax.Array, y_RF: jax.Array) -> jax.Array:
        w_DF = jax.lax.dynamic_index_in_dim(w_XDF, e, keepdims=False)  # copied once, not once a tile: 10 % of the time

        def tile(place: jax.Array, mine: jax.Array, y_RF: jax.Array) -> jax.Array:
            x, old = (jax.lax.dynamic_slice_in_dim(array, place, size) for array in (x_RD, y_RF))
            return jax.lax.dynamic_update_slice_in_dim(
                y_RF, jnp.where(mine, einsum("RD,DF->RF", x, w_DF), old), place, 0
            )

        return _for_each_tile(first, end, R, size, tile, y_RF)

    return _for_each_expert(sizes_X, expert, jnp.zeros((R, F), x_RD.dtype))


def _matrices_tiled(x_RD: jax.Array, g_RF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    """The sum of x g^T over the rows of each expert, in float32 [X, D, F]."""
    (R, D), F, X = x_RD.shape, g_RF.shape[1], len(sizes_X)
    size = tile_rows(R, X)

    def expert(e: jax.Array, first: jax.Array, end: jax.Array, all_XDF: jax.Array) -> jax.Array:
        def tile(place: jax.Array, mine: jax.Array, sum_DF: jax.Array) -> jax.Array:
            x, g = (jax.lax.dynamic_slice_in_dim(array, place, size) for array in (x_RD, g_RF))
            return sum_DF + einsum("RD,RF->DF", jnp.where(mine, x, 0), g, jnp.float32)

        sum_DF = _for_each_tile(first, end, R, size, tile, jnp.zeros((D, F), jnp.float32))
        return jax.lax.dynamic_update_index_in_dim(all_XDF, sum_DF, e, 0)

    return _for_each_expert(sizes_X, expert, jnp.zeros((X, D, F), jnp.float32))


def _matrices_ragged(x_RD: jax.Array, g_RF: jax.Array, sizes_X: jax.Array) -> jax.Array:
    return jax.lax.ragged_dot_general(x_RD, g_RF, sizes_X, BY_ROWS, precision_of(x_RD, g_RF), jnp.float32)
