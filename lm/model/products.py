"""How are arrays multiplied, forward and backward, so that XLA does no more work than there is?"""

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


@jax.custom_vjp
def matmul(x_BTD: jax.Array, w_DF: jax.Array) -> jax.Array:
    """x @ w in the dtype of `x`. Its backward starts from a settled gradient and forms that of `w` in one product.

    What the backward keeps is `w` as it is held: not a copy in the dtype of `x`.
    """
    return x_BTD @ w_DF.astype(x_BTD.dtype)


def _matmul_forward(x_BTD: jax.Array, w_DF: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x_BTD @ w_DF.astype(x_BTD.dtype), (x_BTD, w_DF)  # not `matmul`: remat's policies look for the product


def _matmul_backward(kept: tuple[jax.Array, jax.Array], g_BTF: jax.Array) -> tuple[jax.Array, jax.Array]:
    x_BTD, w_DF = kept
    x_BTD, g_BTF = settle((x_BTD, g_BTF))
    x_grad = jnp.einsum("BTF,DF->BTD", g_BTF, w_DF.astype(g_BTF.dtype))
    w_grad = jax.lax.platform_dependent(x_BTD, g_BTF, cpu=_flat, default=_whole)
    return x_grad, w_grad.astype(w_DF.dtype)


def _whole(x_BTD: jax.Array, g_BTF: jax.Array) -> jax.Array:
    return jnp.einsum("BTD,BTF->DF", x_BTD, g_BTF)


def _flat(x_BTD: jax.Array, g_BTF: jax.Array) -> jax.Array:
    """The same in one product of two dimensions, the narrower operand transposed first."""
    x_ND, g_NF = x_BTD.reshape(-1, x_BTD.shape[-1]), g_BTF.reshape(-1, g_BTF.shape[-1])
    if x_ND.shape[1] <= g_NF.shape[1]:
        return settle(x_ND.T) @ g_NF
    return settle(settle(g_NF.T) @ x_ND).T


matmul.defvjp(_matmul_forward, _matmul_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """einsum of two arrays with a float32 result, whose backward multiplies in the dtype of `a` and `b`.

    Without it the float32 cotangent would drag both backward products, and copies of the operands, to float32.
    """
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _einsum_forward(equation: str, a: jax.Array, b: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return einsum_f32(equation, a, b), (a, b)


def _einsum_backward(equation: str, kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    (a, b), (first, second, out) = kept, equation.replace("->", ",").split(",")
    g = g.astype(a.dtype)
    return jnp.einsum(f"{out},{second}->{first}", g, b), jnp.einsum(f"{out},{first}->{second}", g, a)


einsum_f32.defvjp(_einsum_forward, _einsum_backward)
