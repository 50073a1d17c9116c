"""Is each answer what it would be alone, whoever else is served, and does everybody get a turn?"""

import time

import numpy as np
import pytest

from lm.generate import generate
from lm.sampling import Sampling
from lm.serve.errors import ApiError
from tests.lm.serve.conftest import PLACES, ROWS

GREEDY = Sampling(temperature=0.0)
rng = np.random.default_rng(0)
PROMPTS = [rng.integers(5, 261, n).tolist() for n in (1, 2, 31, 32, 33, 60, 100, 255, 256, 257, 280, 7, 9, 64, 3, 200)]
NEW = 12


@pytest.fixture(scope="module")
def written(small, tokenizer):
    """What lm.generate writes: (prompts, sampling, seed) -> texts."""

    def make(prompts, sampling, seed=0):
        texts = []
        for ids in generate(*small, prompts, max_new_tokens=NEW, sampling=sampling, seed=seed):
            stream = tokenizer.stream()
            texts.append("".join(map(stream.push, ids)) + stream.close())
        return texts

    return make


def test_sixteen_at_once_are_each_as_alone(engine, ask, finish, written):
    expected = written(PROMPTS, GREEDY)
    jobs = [ask(engine, prompt, NEW) for prompt in PROMPTS]
    assert [finish(job) for job in jobs] == [(text, "length") for text in expected]
    assert [job.drawn for job in jobs] == [NEW] * ROWS
    for prompt, text in zip(PROMPTS, expected):
        assert finish(ask(engine, prompt, NEW))[0] == text
    assert len(set(expected)) == ROWS


def test_a_sampled_text_follows_from_its_own_seed_and_settings(engine, ask, finish, written):
    sampling = Sampling(temperature=1.3, top_k=40, top_p=0.9)
    prompts, seeds = [p for p in PROMPTS if len(p) <= 32], [0, 1, 2, 3, 2**31, 2**32 - 1, 6]
    expected = [written([prompt], sampling, seed)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    others = [GREEDY, Sampling(temperature=0.7), Sampling(top_k=3), Sampling(top_p=0.5)]
    jobs = []
    for number, (prompt, seed) in enumerate(zip(prompts, seeds)):
        jobs.append(ask(engine, prompt, NEW, sampling, seed))
        for length in (3, 40):  # neighbours of another mind; some wait for a row
            ask(engine, [7 + number] * length, NEW, others[number % 4], seed)
    assert [finish(job)[0] for job in jobs] == expected
    assert finish(ask(engine, prompts[2], NEW, sampling, 2))[0] == expected[2]
    assert finish(ask(engine, prompts[2], NEW, sampling, 7))[0] != expected[2]


def test_the_cache_has_room_for_every_write_of_a_turn(slots):
    assert slots.lengths == [256, 512]
    for prompt in range(1, PLACES):
        for start in (*range(0, prompt, 256), prompt):
            room = slots.room(start, prompt)
            end = min(start + 256, prompt)
            assert end < room <= slots.lengths[-1]  # the step after the chunk writes to slot `end`
            assert start == prompt or room >= start + (32 if end - start <= 32 else 256)  # as the chunk is filled up
    assert [slots.room(0, n) for n in (1, 32, 33, 256)] == [32, 33, 256, 257]


def test_a_short_one_does_not_wait_for_a_long_one(engine, ask, finish):
    long = ask(engine, [9] * 10, PLACES - 10)
    long.pieces.get(timeout=60)
    short = ask(engine, [8] * 4, 3)
    finish(short)
    assert long.drawn < PLACES - 10
    assert finish(long)[1] == "length"
    assert long.drawn == PLACES - 10  # up to the last place


def test_more_than_there_are_rows_wait_and_are_served(engine, ask, finish):
    jobs = [ask(engine, [5 + n, 6, 7], 5) for n in range(3 * ROWS)]
    texts = [finish(job) for job in jobs]
    assert {how for _, how in texts} == {"length"}
    assert texts[:2] == [finish(ask(engine, [5 + n, 6, 7], 5)) for n in range(2)]


def test_stop_ids_and_stop_strings_end_an_answer(engine, ask, finish, small):
    (ids,) = generate(*small, [PROMPTS[2]], max_new_tokens=NEW, sampling=GREEDY)
    free, _ = finish(ask(engine, PROMPTS[2], NEW))
    stop = ids[6]
    job = ask(engine, PROMPTS[2], NEW, stop_ids={stop})
    text, how = finish(job)
    assert (how, job.drawn) == ("stop", ids.index(stop) + 1)  # the one that ends it was drawn too
    assert free.startswith(text.rstrip("\ufffd"))
    word = free[4:6]
    assert finish(ask(engine, PROMPTS[2], NEW, stops=(word,))) == (free[: free.index(word)], "stop")


def test_who_leaves_or_is_late_makes_room(engine, ask, finish):
    gone = [ask(engine, [9] * n, 200) for n in range(1, ROWS + 1)]
    late = ask(engine, [3, 4], 5, seconds=0.0)
    assert finish(late) == ("", 504)  # waited
    for job in gone:
        job.cancelled = True
    assert finish(ask(engine, [8] * 4, 3))[1] == "length"
    assert engine.busy() == 0
    cut = ask(engine, [9] * 5, PLACES - 5, seconds=0.05)
    text, how = finish(cut)
    assert how in ("length", 504)
    assert cut.drawn < PLACES - 5
    assert bool(text) == (how == "length")


def test_when_the_device_fails_those_in_work_are_told_and_the_next_is_served(engine, ask, finish, slots, capsys):
    expected = finish(ask(engine, [8] * 4, 5))
    real, calls = slots.step_one, []

    def step_one(*args):
        calls.append(1)
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    slots.step_one = step_one
    try:
        assert finish(ask(engine, [8] * 4, 5))[1] == 500
    finally:
        del slots.step_one
    assert slots.step_one == real
    assert calls
    assert "RESOURCE_EXHAUSTED" in capsys.readouterr().err
    assert finish(ask(engine, [8] * 4, 5)) == expected


def test_closing_ends_all_and_takes_none(engine, ask, finish):
    running = [ask(engine, [9] * n, 250) for n in range(1, ROWS + 1)]
    waiting = ask(engine, [1, 2], 5)
    engine.close(0.0)
    assert finish(waiting) == ("", 503)
    assert {finish(job)[1] for job in running} == {503}
    with pytest.raises(ApiError):
        ask(engine, [1, 2], 5)
    engine.thread.join(10)
    assert not engine.thread.is_alive()


def test_closing_lets_running_ones_end(engine, ask, finish):
    running = ask(engine, [9] * 5, 20)
    running.pieces.get(timeout=60)
    engine.close(60.0)
    assert finish(running)[1] == "length"
    before = time.monotonic()
    engine.thread.join(10)
    assert time.monotonic() - before < 5
