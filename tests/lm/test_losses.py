"""Are the losses the formulas, and are they sums?"""

import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import sum_losses, token_losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 5, 7)) * 3
TARGETS = RNG.integers(0, 7, (3, 5))
WEIGHTS = RNG.integers(0, 3, (3, 5)).astype(np.float64)


def reference(smoothing=0.0, z_loss=0.0):
    nll, objective = np.zeros(TARGETS.shape), np.zeros(TARGETS.shape)
    for b, t in np.ndindex(*TARGETS.shape):
        log_z = np.log(np.exp(LOGITS[b, t]).sum())
        log_p = LOGITS[b, t] - log_z
        wanted = np.full(7, smoothing / 7)
        wanted[TARGETS[b, t]] += 1 - smoothing
        nll[b, t] = -log_p[TARGETS[b, t]]
        objective[b, t] = -(wanted * log_p).sum() + z_loss * log_z**2
    return {"nll": nll, "objective": objective}


@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 0.01), (0.3, 0.5)])
def test_token_losses_against_numpy(smoothing, z_loss):
    found = token_losses(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS), smoothing, z_loss)
    for key, expected in reference(smoothing, z_loss).items():
        np.testing.assert_allclose(found[key], expected, rtol=2e-5, atol=1e-5, err_msg=key)


def test_nll_is_free_of_smoothing_and_z_loss():
    """What is reported stays a likelihood, whatever is minimised."""
    plain = token_losses(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS))
    other = token_losses(jnp.asarray(LOGITS, jnp.float32), jnp.asarray(TARGETS), 0.3, 0.5)
    np.testing.assert_array_equal(plain["nll"], other["nll"])
    np.testing.assert_array_equal(plain["nll"], plain["objective"])


def test_huge_and_bfloat16_logits_stay_finite():
    logits = jnp.asarray([[[3e4, -3e4, 0.0]]], jnp.bfloat16)
    found = token_losses(logits, jnp.asarray([[1]]))
    assert found["nll"].dtype == jnp.float32
    np.testing.assert_allclose(found["nll"], 6e4, rtol=0.01)


def test_sums_are_weighted_and_add_up_over_any_cut():
    losses = {"nll": jnp.asarray(reference()["nll"], jnp.float32)}
    weights = jnp.asarray(WEIGHTS, jnp.float32)
    whole = sum_losses(losses, weights)
    np.testing.assert_allclose(whole["nll"], (reference()["nll"] * WEIGHTS).sum(), rtol=1e-5)
    assert whole["weight"] == WEIGHTS.sum()
    rows = sum_losses(losses, weights, axis=1)
    np.testing.assert_allclose(rows["nll"], (reference()["nll"] * WEIGHTS).sum(1), rtol=1e-5)
    parts = [sum_losses({"nll": losses["nll"][i : i + 1]}, weights[i : i + 1]) for i in range(3)]
    for key in ("nll", "weight"):
        np.testing.assert_allclose(sum(float(part[key]) for part in parts), whole[key], rtol=1e-6)


def test_weight_zero_hides_a_target():
    weights = jnp.asarray(WEIGHTS, jnp.float32).at[0, 0].set(0.0)
    changed = TARGETS.copy()
    changed[0, 0] = (changed[0, 0] + 1) % 7
    both = [sum_losses(token_losses(jnp.asarray(LOGITS, jnp.float32), t), weights)["nll"] for t in (TARGETS, changed)]
    assert both[0] == both[1]
