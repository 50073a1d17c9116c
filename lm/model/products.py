"""How are arrays multiplied, forward and backward, so that XLA does no more work than there is, and float32 is float32?"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def settle(x: Any) -> Any:
    """Makes XLA's CPU compiler finish arrays as they are, instead of computing them again inside what reads them.

    It fused the gradient of a norm into the transposing copy before the next product, in that order of memory: 9 % of a
    GPT-2 step (jaxlib 0.10.2). On other platforms nothing happens.
    """
    return jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)


def precision_of(a: jax.Array, b: jax.Array) -> jax.lax.Precision | None:
    """How a product of these must be computed for float32 to be float32, which JAX leaves to the device unless it is told.

    By default an H100 multiplies float32 as TF32 (relative error 3e-4, not 1e-6; docs/benchmarks.md), a TPU as bfloat16.
    JAX's own switch for all of a program, JAX_DEFAULT_MATMUL_PRECISION=tensorfloat32, is obeyed.
    """
    unsaid = jax.config.jax_default_matmul_precision is None  # pyright: ignore[reportAttributeAccessIssue]
    return jax.lax.Precision.HIGHEST if unsaid and a.dtype == b.dtype == jnp.float32 else None


def einsum(equation: str, a: jax.Array, b: jax.Array, dtype: Any = None) -> jax.Array:
    """`jnp.einsum` of two arrays by `precision_of`, with a result of `dtype` (default: theirs)."""
    return jnp.einsum(equation, a, b, precision=precision_of(a, b), preferred_element_type=dtype)


@jax.custom_vjp
def matmul(x_BTD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x @ w in the dtype of `x`. Its backward starts from a settled gradient and forms that of `w` in one product.

    What the backward keeps is `w` as it is held: not a copy in the dtype of `x`.
    """
    return einsum("...D,DF->...F", x_BTD, w_DF.astype(x_BTD.dtype))


def _matmul_forward(x_BTD: jax.Array, w_DF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y_BTF = einsum(
        "...D,DF->...F", x_BTD, w_DF.astype(x_BTD.dtype)
    )  # not `matmul`: remat's policies look for the product
    return y_BTF, (x_BTD, w_DF)


def _matmul_backward(kept: tuple[jax.Array, jax.Array], g_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTD, w_DF = kept
    x_BTD, g_BTF = settle((x_BTD, g_BTF))
    x_grad = einsum("BTF,DF->BTD", g_BTF, w_DF.astype(g_BTF.dtype))
    w_grad = jax.lax.platform_dependent(x_BTD, g_BTF, cpu=_flat, default=_whole)
    return x_grad, w_grad.astype(w_DF.dtype)


def _whole(x_BTD: jax.Array, g_BTF: jax.Array) -> jax.Array:
    return einsum("BTD,BTF->DF", x_BTD, g_BTF)


def _flat(x_BTD: jax.Array, g_BTF: jax.Array) -> jax.Array:
    """The same in one product of two dimensions, the narrower operand transposed first."""
    x_ND, g_NF = x_BTD.reshape(-1, x_BTD.shape[-1]), g_BTF.reshape(-1, g_BTF.shape[-1])
    if x_ND.shape[1] <= g_NF.shape[1]:
        return einsum("DN,NF->DF", settle(x_ND.T), g_NF)
    return settle(einsum("FN,ND->FD", settle(g_NF.T), x_ND)).T


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum of two arrays with a float32 result, whose backward multiplies in the dtype of `a` and `b`.

    Without it the float32 cotangent would drag both backward products, and copies of the operands, to float32.
    """
    return einsum(equation, a, b, jnp.float32)


def _einsum_forward(equation: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum_f32(equation, a, b), (a, b)


def _einsum_backward(equation: str, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    (a, b), (first, second, out) = kept, equation.replace("->", ",").split(",")
    g = g.astype(a.dtype)
    return einsum(f"{out},{second}->{first}", g, b), einsum(f"{out},{first}->{second}", g, a)


einsum_f32.defvjp(_einsum_forward, _einsum_backward)
