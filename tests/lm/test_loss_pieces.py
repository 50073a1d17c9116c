"""Is the loss in pieces the loss, its gradient the gradient, and are the logits never there at once?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import count_pieces, cut_places, join_places, sum_in_pieces, sum_losses, token_losses

B, T, D, V = 3, 12, 8, 40
RNG = np.random.default_rng(0)
HEAD = jnp.asarray(RNG.normal(size=(D, V)), jnp.float32)
X = jnp.asarray(RNG.normal(size=(B, T, D)), jnp.float32)
BATCH = {
    "targets": jnp.asarray(RNG.integers(0, V, (B, T)), jnp.int32),
    "weights": jnp.asarray(RNG.integers(0, 3, (B, T)), jnp.float32),
}


def loss_of(head, x, batch):
    return sum_losses(token_losses(x @ head, batch["targets"], 0.1, 0.01), batch["weights"])


def gradients(loss, *where):
    """Of 0.37 x objective, so that a cotangent other than 1 passes through."""
    return jax.value_and_grad(lambda head, x: 0.37 * loss(head, x)["objective"], where)(HEAD, X)


def test_places_come_back_where_they_were():
    np.testing.assert_array_equal(join_places(cut_places(X, 4)), X)
    np.testing.assert_array_equal(cut_places(X, 4)[1], X[:, 1::4])


@pytest.mark.parametrize("pieces", [1, 2, 3, 12])
@pytest.mark.parametrize("head_trained", [True, False])
@pytest.mark.parametrize("skip", [True, False])
def test_the_loss_in_pieces_is_the_loss(pieces, head_trained, skip):
    def in_pieces(head, x):
        return sum_in_pieces(loss_of, head, x, BATCH, pieces, head_trained, skip=skip)

    expected = loss_of(HEAD, X, BATCH)
    for key, value in in_pieces(HEAD, X).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-6, err_msg=key)
    value, (to_head, to_x) = gradients(lambda head, x: loss_of(head, x, BATCH), 0, 1)
    found, grads = gradients(in_pieces, 0, 1)
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(grads[1], to_x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(grads[0], to_head if head_trained else jnp.zeros_like(HEAD), rtol=1e-5, atol=1e-5)


def test_bfloat16_states_get_a_bfloat16_gradient_and_the_head_a_float32_one():
    def objective(head, x):
        return sum_in_pieces(loss_of, head, x, BATCH, 4, True)["objective"]

    to_head, to_x = jax.grad(objective, (0, 1))(HEAD, X.astype(jnp.bfloat16))
    exact = jax.grad(lambda head: loss_of(head, X, BATCH)["objective"])(HEAD)
    assert (to_head.dtype, to_x.dtype) == (jnp.float32, jnp.bfloat16)
    np.testing.assert_allclose(to_head, exact, atol=0.03 * float(jnp.abs(exact).max()))


def test_a_train_step_in_pieces_is_the_step(make_config, start, make_batch):
    batch = make_batch()
    for style in ("llama", "gpt2"):  # a head of its own, and a tied one whose embedding has a second gradient
        whole, cut = (start(make_config(style, train={"loss_chunk": n})) for n in (0, 24))
        (a, one), (b, two) = whole.step(whole.state, batch), cut.step(cut.state, batch)
        for key in one:
            np.testing.assert_allclose(two[key], one[key], rtol=1e-5, err_msg=key)
        for path in a.params:
            if path.endswith(
                "k_bias"
            ):  # attention does not depend on it: its gradient is rounding, which Adam blows up
                continue
            np.testing.assert_allclose(b.params[path], a.params[path], rtol=1e-4, atol=2e-5, err_msg=path)


def test_memory_follows_the_piece_not_the_vocabulary():
    """512 places x 20,000 words are 39 MiB of float32 logits; their gradient as much again."""
    head, x = jax.ShapeDtypeStruct((16, 20_000), jnp.float32), jax.ShapeDtypeStruct((1, 512, 16), jnp.float32)
    batch = {"targets": jnp.zeros((1, 512), jnp.int32), "weights": jnp.ones((1, 512))}

    def memory(pieces):
        def objective(head, x):
            return sum_in_pieces(loss_of, head, x, batch, pieces, True)["objective"]

        return jax.jit(jax.grad(objective, (0, 1))).lower(head, x).compile().memory_analysis().temp_size_in_bytes

    assert memory(1) > 39 * 2**20
    assert memory(16) < memory(1) / 5


def test_pieces_are_the_fewest_that_divide_the_row():
    assert count_pieces(12 * 8, 12, V, 48) == 2
    assert count_pieces(12 * 8, 12, V, 47) == 3
    assert count_pieces(12 * 8, 12, V, 1) == 12  # a place of each row is the least
    assert count_pieces(32 * 1024, 1024, 50_257, 0) == 32


def test_pieces_in_which_nobody_learns_are_not_computed():
    """NaN in the targets' states would come through a product; counted by what reaches the loss."""
    seen = []
    weights = jnp.zeros((B, T)).at[:, 7:10].set(1.0).at[1, 0].set(2.0)  # at most 4 places of a row learn

    def noted(head, x, batch):
        jax.debug.callback(lambda w: seen.append(np.array(w)), batch["weights"])
        return loss_of(head, x, batch)

    batch = {**BATCH, "weights": weights}
    found, (to_x,) = jax.value_and_grad(
        lambda x: sum_in_pieces(noted, HEAD, x, batch, 6, False, skip=True)["objective"], (0,)
    )(X)
    jax.effects_barrier()
    assert len(seen) == 2  # of 6 pieces of 2 places
    assert sum(part.sum() for part in seen) == weights.sum()
    expected, (grad,) = jax.value_and_grad(lambda x: loss_of(HEAD, x, batch)["objective"], (0,))(X)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(to_x, grad, rtol=1e-5, atol=1e-6)
