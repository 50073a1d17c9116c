"""Is the score of an answer that of its tokens in the whole text, on any devices, with the prompt read once for all?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import MeshConfig, RopeScaling, UserError
from lm.likelihood import check_pairs, score
from lm.model.transformer import Model
from lm.sharding import make_mesh, param_shardings

WIDTH = 32
LONGROPE = RopeScaling("longrope", original_len=8, short_factor=(1.0, 1.0), long_factor=(2.0, 4.0))
apply = jax.jit(Model.apply, static_argnums=0)


def make_pairs(count=6, answers=5, most=14):
    """Prompts of 1 to `most` tokens with answers of 1 to 5, some of them the same, in no order."""
    rng = np.random.default_rng(3)
    pairs = []
    for _ in range(count):
        prompt = tuple(rng.integers(1, 32, rng.integers(1, most + 1)).tolist())
        pairs += [(prompt, tuple(rng.integers(1, 32, rng.integers(1, 6)).tolist())) for _ in range(answers)]
    pairs += [pairs[3], pairs[0], ((7,), pairs[1][1]), ((9,), (4,))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def by_itself(model, params, prompt, answer):
    """Sum of log-probabilities of the answer's tokens, from all logits of the whole text."""
    text = [*prompt, *answer]
    tokens, segments = np.zeros((2, 1, WIDTH), np.int32)
    tokens[0, : len(text)], segments[0, : len(text) - 1] = text, 1  # the last token is only predicted
    logits = apply(model, params, tokens, np.arange(WIDTH, dtype=np.int32)[None], segments)[0]
    log_p = np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)
    return sum(log_p[at - 1, text[at]] for at in range(len(prompt), len(text)))


def test_scores_are_those_of_whole_texts_one_by_one(make_model):
    # longer than 8 tokens, an answer changes how the keys of its prompt are turned
    model, params = make_model(rope_scaling=LONGROPE)
    pairs, calls = make_pairs(), []
    found = score(model, params, pairs, make_mesh(MeshConfig(), jax.devices()[:1]), progress=calls.append)
    np.testing.assert_allclose(found, [by_itself(model, params, *pair) for pair in pairs], atol=2e-5)
    assert calls[-1] == len(set(pairs)) == len(set(np.round(found, 6)))


def test_neither_the_devices_nor_the_size_of_a_call_matter(make_model):
    model, params = make_model("gemma", runs=((0, 2),))
    pairs, calls = make_pairs(), []
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, context=2))
    spread = jax.device_put(params, param_shardings(params, mesh))
    sharded = Model(model.config, model.runs, mesh)
    found = score(sharded, spread, pairs, mesh, places=64, progress=calls.append)
    np.testing.assert_allclose(found, [by_itself(model, params, *pair) for pair in pairs], atol=2e-5)
    assert calls == sorted(calls)
    assert (calls[-1], len(calls) > 5) == (len(set(pairs)), True)


def test_refuses_what_the_model_cannot_read(make_model):
    model, _ = make_model("gpt2", max_len=8)
    check_pairs(model, [((1, 2, 3), (4, 5, 6, 7, 8, 9))])
    with pytest.raises(UserError, match="9 tokens, and this model has 8 positions"):
        check_pairs(model, [((1, 2, 3, 4), (4, 5, 6, 7, 8, 9))])
    with pytest.raises(UserError, match="outside the model's vocabulary of 32"):
        check_pairs(model, [((1, 2), (32,))])
