"""Do the written-out gradients equal what differentiation of the formula gives?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.model.layers import ACTIVATIONS, activate, normalise
from lm.model.products import matmul

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(2, 5, 16), (2, 3, 4, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_norm_has_the_gradient_of_its_formula(shape, bias):
    x, g = (jnp.asarray(RNG.normal(size=shape) + 0.5, jnp.float32) for _ in range(2))
    scale, shift = (jnp.asarray(RNG.normal(size=shape[-1]), jnp.float32) for _ in range(2))
    front = (1,) * (len(shape) - 1)

    def formula(x, scale, shift):
        mean = x.mean(-1, keepdims=True) if bias else 0.0
        y = (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5) * scale.reshape(*front, -1)
        return y + shift.reshape(*front, -1) if bias else y

    def ours(x, scale, shift):
        return normalise(x, scale, shift if bias else None, 1e-5)

    expected, pull = jax.vjp(formula, x, scale, shift)
    found, our_pull = jax.vjp(ours, x, scale, shift)
    for a, b in zip((found, *our_pull(g)), (expected, *pull(g))):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_norm_returns_the_dtype_of_its_input():
    x = jnp.ones((1, 2, 4), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, s: normalise(x, s, None, 1e-6), x, jnp.ones(4))
    assert (y.dtype, *(g.dtype for g in pull(y))) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
def test_an_activation_keeps_only_what_came_in(name, gated):
    up, gate, g = (jnp.asarray(RNG.normal(size=(2, 5, 16)), jnp.float32) for _ in range(3))

    def formula(up, gate):
        return ACTIVATIONS[name](gate) * up if gated else ACTIVATIONS[name](up)

    def ours(up, gate):
        return activate(name, up, gate if gated else None)

    expected, pull = jax.vjp(formula, up, gate)
    found, our_pull = jax.vjp(ours, up, gate)
    for a, b in zip((found, *our_pull(g)), (expected, *pull(g))):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    assert sum(leaf.size for leaf in jax.tree.leaves(our_pull)) == up.size * (2 if gated else 1)


def test_a_product_keeps_its_matrix_as_it_is_held():
    x, w = jnp.asarray(RNG.normal(size=(2, 3, 8)), jnp.bfloat16), jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)
    y, pull = jax.vjp(matmul, x, w)
    assert {leaf.dtype for leaf in jax.tree.leaves(pull) if leaf.shape == w.shape} == {jnp.dtype(jnp.float32)}
    assert (y.dtype, *(g.dtype for g in pull(y))) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
