"""Is the order a permutation that can be entered anywhere, and is packing complete and tight?"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.mix import BLOCK, Mixture, largest_remainder, make_key, permute
from data_pipeline.pack import best_fit
from data_pipeline.schema import ConfigError
from data_pipeline.tasks import PLAIN, cut_chunks


@given(st.integers(1, 5000), st.integers(0, 2**31))
def test_permute_is_a_permutation(n, seed):
    out = permute(np.arange(n), n, make_key(seed))
    assert sorted(out.tolist()) == list(range(n))


def test_permute_is_stable_and_differs_by_key():
    # Golden: another value here reorders the data of every run.
    assert permute(np.arange(10), 10, make_key(0)).tolist() == [0, 1, 2, 9, 8, 3, 4, 7, 6, 5]
    orders = {tuple(permute(np.arange(50), 50, make_key(seed)).tolist()) for seed in range(100)}
    assert len(orders) == 100


def test_permute_is_uniform_enough():
    n, trials = 7, 7000
    counts = np.zeros((n, n))
    for seed in range(trials):
        counts[np.arange(n), permute(np.arange(n), n, make_key(seed))] += 1
    expected = trials / n
    assert (np.abs(counts - expected) < 6 * np.sqrt(expected)).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_unweighted_mixture_gives_each_row_once_an_epoch(rows, seed):
    total = sum(rows)
    source, epoch, row = Mixture(["x"] * len(rows), rows, [0.0] * len(rows), seed).locate(np.arange(3 * total))
    for e in range(3):
        seen = sorted(zip(source[epoch == e].tolist(), row[epoch == e].tolist()))
        assert seen == [(s, r) for s, n in enumerate(rows) for r in range(n)]


@given(st.lists(st.floats(0.05, 10.0), min_size=2, max_size=4), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_weighted_mixture_visits_every_row_equally(weights, seed):
    rows = [7 * (i + 1) for i in range(len(weights))]
    mixture = Mixture(["x"] * len(rows), rows, weights, seed)
    source, epoch, row = mixture.locate(np.arange(2 * BLOCK))
    assert (
        np.bincount(source[:BLOCK], minlength=len(rows)).tolist()
        == largest_remainder(np.array(weights), BLOCK).tolist()
    )
    for number, n in enumerate(rows):
        for e in range(epoch[source == number].max()):  # all whole epochs
            assert sorted(row[(source == number) & (epoch == e)].tolist()) == list(range(n))
    part = mixture.locate(np.arange(1500, 1600))
    assert all((a == b[1500:1600]).all() for a, b in zip(part, (source, epoch, row)))


def test_a_weight_too_small_is_refused():
    with pytest.raises(ConfigError, match="tiny: a share of 1e-06 is less than one row in 100,000"):
        Mixture(["big", "tiny"], [5, 5], [1.0, 1e-6], 0)


@given(st.lists(st.integers(1, 32), max_size=200))
def test_best_fit_places_each_chunk_once_and_within_rows(lengths):
    lengths = np.array(lengths, np.int32)
    rows = best_fit(lengths, 32)
    assert sorted(rows.order.tolist()) == list(range(len(lengths)))
    fill = [int(lengths[rows.order[a:b]].sum()) for a, b in zip(rows.first, rows.first[1:])]
    assert all(0 < f <= 32 for f in fill)
    assert sum(f <= 16 for f in fill) <= 1  # two half-empty rows would have been one


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-1, 20)), min_size=1, max_size=20), st.booleans())
def test_chunks_cover_what_they_must(documents, add_bos):
    sizes = np.array([max(size, start + 1) for size, start in documents])
    starts = np.array([start if start >= 0 else PLAIN for _, start in documents])
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    chunks = cut_chunks(offsets, starts, 8, add_bos, learn_prompt=False)
    for number, (size, start) in enumerate(zip(sizes, starts)):
        mine = np.flatnonzero(chunks.document == number)
        learned = []
        for c in mine:
            first = chunks.start[c] - offsets[number]
            assert 1 <= chunks.length[c] <= 8
            assert first + chunks.length[c] + 1 <= size
            learned += range(first + 1 + chunks.learn_from[c], first + 1 + chunks.length[c])
        if start == PLAIN:
            assert learned == list(range(1, size))
        elif size > 1:
            begin = max(start, 1)
            assert learned == list(range(begin, min(size, begin + 8)))  # the completion's head is never lost
