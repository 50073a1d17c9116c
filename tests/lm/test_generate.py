"""Does the cache change no token, and do the sampling rules do what their names say?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ConfigError, RopeScaling, UserError
from lm.generate import generate, main
from lm.model.transformer import Model
from lm.params import join_stacks
from lm.sampling import Sampling, check_sampling, filter_logits, pick

GREEDY = Sampling(temperature=0.0)
PROMPTS = [[5, 9, 2], [7], [1 + i % 30 for i in range(33)], [4, 4, 8, 3, 3, 1, 12]]
NEW, WIDTH = 12, 48
LONGROPE = RopeScaling("longrope", original_len=8, short_factor=(1.0, 1.0, 1.0, 1.0), long_factor=(2.0, 4.0, 8.0, 16.0))
apply = jax.jit(Model.apply, static_argnums=0)


def uncached(model, params, prompt, new, penalty=1.0):
    """Greedy continuation by the whole text again for each token. Its end is padded, so that one program serves all."""
    text = list(prompt)
    assert len(prompt) + new <= WIDTH
    for _ in range(new):
        tokens, segments = np.zeros((2, 1, WIDTH), np.int32)
        tokens[0, : len(text)], segments[0, : len(text)] = text, 1
        logits = np.array(
            apply(model, params, tokens, np.arange(WIDTH, dtype=np.int32)[None], segments)[0, len(text) - 1]
        )
        for seen in set(text):
            logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
        text.append(int(logits.argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize(
    ("style", "changes"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"window": 4, "attn_softcap": 5.0, "logit_softcap": 3.0}),
        ("gemma", {}),
        ("llama", {"head_dim": 8, "rope_scaling": LONGROPE}),  # the second prompt grows beyond 8 tokens
    ],
)
def test_cached_several_at_once_is_uncached_each_alone(make_model, style, changes):
    model, params = make_model(style, layers=3, **changes)
    together = generate(model, params, PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
    for prompt, found in zip(PROMPTS, together):
        assert found == uncached(model, params, prompt, NEW)
    assert len({tuple(text) for text in together}) == len(PROMPTS)


def test_alone_at_once_or_in_stacks_the_text_is_the_same(make_model):
    model, params = make_model(layers=3)
    alone = [generate(model, params, [prompt], max_new_tokens=NEW, sampling=GREEDY)[0] for prompt in PROMPTS[1:3]]
    stacked, grouped = make_model(layers=3, runs=((0, 1), (1, 3)))
    expected = generate(model, params, PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
    assert alone == expected[1:3]
    assert (
        generate(stacked, join_stacks(params, list(grouped)), PROMPTS, max_new_tokens=NEW, sampling=GREEDY) == expected
    )


def test_penalty_counts_prompt_and_text_so_far(make_model):
    model, params = make_model()
    sampling = Sampling(temperature=0.0, repetition_penalty=1.7)
    found = generate(model, params, PROMPTS, max_new_tokens=NEW, sampling=sampling)
    for prompt, text in zip(PROMPTS, found):
        assert text == uncached(model, params, prompt, NEW, penalty=1.7)
    assert found != generate(model, params, PROMPTS, max_new_tokens=NEW, sampling=GREEDY)


def test_stops_at_eos_each_row_by_itself(make_model):
    model, params = make_model()
    free = generate(model, params, PROMPTS, max_new_tokens=NEW, sampling=GREEDY)
    eos = free[0][4]
    seen = [[] for _ in PROMPTS]
    found = generate(
        model,
        params,
        PROMPTS,
        max_new_tokens=NEW,
        stop_ids={eos},
        sampling=GREEDY,
        on_token=lambda row, token: seen[row].append(token),
    )
    for text, whole in zip(found, free):
        assert text == (whole[: whole.index(eos)] if eos in whole else whole)
    assert len(found[0]) <= 4
    assert seen == found  # streamed as returned


def test_seeds_reproduce_and_rows_are_independent(make_model):
    model, params = make_model()

    def draw(prompts, seed):
        return generate(model, params, prompts, max_new_tokens=NEW, sampling=Sampling(temperature=1.5), seed=seed)

    same = draw([PROMPTS[0]] * 3, 1)
    assert same == draw([PROMPTS[0]] * 3, 1)
    assert same != draw([PROMPTS[0]] * 3, 2)
    assert len({tuple(text) for text in same}) == 3  # equal prompts, texts of their own
    assert draw([PROMPTS[0]], 1) == same[:1]
    assert draw([PROMPTS[3], PROMPTS[0], PROMPTS[1]], 1)[1] == same[1]


def test_length_is_exact(make_model):
    model, params = make_model("gpt2", max_len=40)
    assert [len(t) for t in generate(model, params, [[1, 2], [3]], max_new_tokens=1, sampling=GREEDY)] == [1, 1]
    assert len(generate(model, params, [[3] * 30], max_new_tokens=10, sampling=GREEDY)[0]) == 10


def test_refuses_what_it_cannot_continue(make_model):
    model, params = make_model("gpt2", max_len=40)
    for prompts, new, words in [
        ([[1], []], 4, "empty prompt"),
        ([[1, 32]], 4, "outside the model's vocabulary of 32"),
        ([[-1]], 4, "outside the model's vocabulary"),
        ([[1] * 30], 11, "40 positions"),
    ]:
        with pytest.raises(UserError, match=words):
            generate(model, params, prompts, max_new_tokens=new)


LOGITS = jnp.log(jnp.asarray([[0.05, 0.5, 0.15, 0.3]]))
UNSEEN = jnp.zeros((1, 4), bool)


def kept(**keys):
    filtered = filter_logits(LOGITS, UNSEEN, Sampling(**keys))
    return {i for i in range(4) if jax.nn.softmax(filtered)[0, i] > 0}


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, {0, 1, 2, 3}),
        ({"top_k": 1}, {1}),
        ({"top_k": 3}, {1, 2, 3}),
        ({"top_k": 99}, {0, 1, 2, 3}),
        ({"top_p": 0.01}, {1}),
        ({"top_p": 0.45}, {1}),
        ({"top_p": 0.6}, {1, 3}),  # 0.5 is not enough, the one that crosses 0.6 stays
        ({"top_p": 0.9}, {1, 2, 3}),
        ({"top_k": 3, "top_p": 0.83}, {1, 3}),  # after top-k the shares are 0.53, 0.32, 0.16
        ({"top_p": 0.83}, {1, 2, 3}),
        ({"temperature": 0.5, "top_p": 0.6}, {1}),  # colder: 0.68, 0.25, 0.06, 0.01
    ],
)
def test_top_k_and_top_p(keys, expected):
    assert kept(**keys) == expected


def test_temperature_divides_logits():
    filtered = filter_logits(LOGITS, UNSEEN, Sampling(temperature=2.0))
    np.testing.assert_allclose(filtered, LOGITS / 2, rtol=1e-6)


def test_penalty_lowers_seen_tokens_whatever_their_sign():
    logits, seen = jnp.asarray([[2.0, -2.0, 1.0, -1.0]]), jnp.asarray([[True, True, False, False]])
    for temperature in (0.0, 1.0):
        found = filter_logits(logits, seen, Sampling(repetition_penalty=4.0, temperature=temperature))
        np.testing.assert_allclose(found, [[0.5, -8.0, 1.0, -1.0]])
    keys = jax.random.split(jax.random.key(0), 1)
    assert pick(logits, seen, keys, Sampling(repetition_penalty=4.0, temperature=0.0))[0] == 2
    assert pick(logits, UNSEEN, keys, Sampling(temperature=0.0))[0] == 0


def test_draws_follow_the_probabilities():
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    logits, seen = jnp.repeat(LOGITS, n, 0), jnp.repeat(UNSEEN, n, 0)
    share = np.bincount(np.asarray(pick(logits, seen, keys, Sampling())), minlength=4) / n
    np.testing.assert_allclose(share, [0.05, 0.5, 0.15, 0.3], atol=0.015)
    share = np.bincount(np.asarray(pick(logits, seen, keys, Sampling(top_k=2))), minlength=4) / n
    np.testing.assert_allclose(share, [0, 0.625, 0, 0.375], atol=0.015)


def test_impossible_sampling_is_refused_all_at_once():
    with pytest.raises(ConfigError) as error:
        check_sampling(Sampling(temperature=-1, top_k=-1, top_p=0.0, repetition_penalty=0.0))
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        assert name in str(error.value)
    check_sampling(Sampling())


def test_a_prompt_of_bytes_that_are_no_text_is_refused():
    with pytest.raises(ConfigError, match="--prompt, --system: not UTF-8"):
        main(["--workdir=x", "--prompt=ab\udcff"])
