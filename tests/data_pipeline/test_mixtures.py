"""Are shares exact in every phase, is no row seen again before its source's epoch is over, and does streaming read the same?"""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.check import check_data_config
from data_pipeline.config import AugmentConfig, DataConfig, SourceConfig, SplitConfig
from data_pipeline.mix import BLOCK, FOREVER, Mixture, largest_remainder
from data_pipeline.schema import ConfigError, UserError

LABELS = {"spam": 90, "ham": 30, "rare": 6}


@st.composite
def mixtures(draw):
    n = draw(st.integers(1, 4))
    rows = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    starts = sorted(draw(st.sets(st.integers(1, 2500), max_size=3)))
    weights = st.lists(st.sampled_from([0.0, 0.1, 1.0, 2.5]), min_size=n, max_size=n).filter(any)
    return rows, [(start, draw(weights)) for start in (0, *starts)]


@given(mixtures(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_shares_are_exact_in_each_phase_and_epochs_go_on_across_them(mixture, seed):
    rows, phases = mixture
    order = Mixture(["x"] * len(rows), rows, phases[0][1], seed, phases[1:], ordered=True)
    part, epoch, row = order.locate(np.arange(4000))
    for (start, weights), end in zip(phases, [*(start for start, _ in phases[1:]), 4000]):
        for at in range(start, end, BLOCK):
            block = part[at : min(at + BLOCK, end)]
            if len(block) < BLOCK and end == 4000:
                continue  # a block that goes on behind what is looked at
            expected = largest_remainder(np.array(weights), len(block))
            assert np.bincount(block, minlength=len(rows)).tolist() == expected.tolist()
    for number, n in enumerate(rows):
        seen = row[part == number]
        assert epoch[part == number].tolist() == (np.arange(len(seen)) // n).tolist()
        for first in range(0, len(seen) - n + 1, n):
            assert sorted(seen[first : first + n].tolist()) == list(range(n))
    for place in (0, 1, 999, 1000, 2345, 3999):
        assert order.drawn(place).tolist() == np.bincount(part[:place], minlength=len(rows)).tolist()
    middle = order.locate(np.arange(900, 2700))
    assert all((some == whole[900:2700]).all() for some, whole in zip(middle, (part, epoch, row)))


@given(mixtures(), st.lists(st.integers(1, 300), min_size=4, max_size=4), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_a_part_that_has_run_out_leaves_its_share_to_the_others(mixture, limits, seed):
    rows, phases = mixture
    limits = limits[: len(rows)]
    order = Mixture(["x"] * len(rows), rows, phases[0][1], seed, phases[1:], limits, ordered=True)
    assert order.end <= sum(limits)
    part, epoch, row = order.locate(np.arange(order.end))
    counts = np.bincount(part, minlength=len(rows))
    assert (counts <= limits).all()
    assert order.drawn(order.end).tolist() == counts.tolist()
    last = max(n for n, (start, _) in enumerate(phases) if start <= order.end)
    assert all(counts[n] == limits[n] for n, weight in enumerate(phases[last][1]) if weight)  # why it ends there
    for number, n in enumerate(rows):
        assert epoch[part == number].tolist() == (np.arange(counts[number]) // n).tolist()
        assert len(set(zip(epoch[part == number].tolist(), row[part == number].tolist()))) == counts[number]


def test_a_limit_changes_nothing_before_it_is_reached_and_keeps_the_others_in_proportion():
    free = Mixture(["x"] * 3, [100, 100, 100], [1.0, 2.0, 2.0], 0)
    bound = Mixture(["x"] * 3, [100, 100, 100], [1.0, 2.0, 2.0], 0, (), [450, FOREVER, FOREVER])
    places = np.arange(2000)
    assert all((a == b).all() for a, b in zip(free.locate(places), bound.locate(places)))
    blocks = [np.bincount(bound.part_at(np.arange(at, at + BLOCK)), minlength=3).tolist() for at in (2000, 3000)]
    assert blocks == [[50, 475, 475], [0, 500, 500]]


def test_small_shares_get_a_larger_block():
    order = Mixture(["a", "b"], [10, 10], [0.9998, 0.0002], 0)
    assert np.bincount(order.part_at(np.arange(10_000))).tolist() == [9998, 2]


@pytest.fixture
def sources(tmp_path):
    """Two sources of short documents that say where they are from; one has classes of 90, 30 and 6."""
    rows = [
        {"text": f"mail {label} {i} {'x' * (i % 7)}", "kind": label} for label, n in LABELS.items() for i in range(n)
    ]
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "web.jsonl").write_text("".join(json.dumps({"text": f"web - {i}"}) + "\n" for i in range(40)))

    def make(mail=None, web=None):
        return {
            "mail": SourceConfig(path=str(tmp_path / "mail.jsonl"), label_field="kind", **(mail or {})),
            "web": SourceConfig(path=str(tmp_path / "web.jsonl"), **(web or {})),
        }

    return make


WHOLE = {"split": SplitConfig(validation=0.0, test=0.0), "packing": "none", "seq_len": 32, "shuffle_documents": 8}


def take(data, steps, start=0, rows=(0, 8)):
    batches = data.train_batches(start, rows)
    taken = [next(batches) for _ in range(steps)]
    batches.close()
    return taken


def texts(data, batches):
    """The document in each row, where a row holds one."""
    for batch in batches:
        for tokens, targets, segments in zip(batch["tokens"], batch["targets"], batch["segments"]):
            ids = [tokens[0], *targets[segments > 0]]
            yield data.tokenizer.decode([int(i) for i in ids if i != data.tokenizer.special.eos])


def kinds(data, batches):
    return Counter(" ".join(text.split()[:2]) for text in texts(data, batches))


MIXTURES = {  # name: (changes, of the mail source, of the web source, rows of each kind in the first 1,000)
    "phases": ({"mixture": ((0, "mail=3,web=1"), (50, "mail=1,web=4"), (125, "mail=1"))}, {}, {}, {"mail": 300 + 120, "web -": 100 + 480}),
    "temperature": ({"temperature": 2.0}, {}, {}, {"mail": 640, "web -": 360}),  # sqrt(126), sqrt(40)
    "epochs": ({}, {"epochs": 1.0}, {"epochs": 4.0}, {"mail": 441, "web -": 559}),  # 126 : 160
    "limit": ({}, {"weight": 1.0, "max_epochs": 2.0}, {"weight": 1.0}, {"mail": 252, "web -": 748}),
    "uniform classes": (
        {"label_shares": ("uniform",)}, {"weight": 3.0}, {"weight": 1.0},
        {"mail spam": 250, "mail ham": 250, "mail rare": 250, "web -": 250},
    ),
    "classes by a table": (
        {"label_shares": ("spam=0.5", "ham=0.25", "rare=0.25")}, {"weight": 0.8}, {"weight": 0.2},
        {"mail spam": 400, "mail ham": 200, "mail rare": 200, "web -": 200},
    ),
    "sqrt of classes": (
        {"label_shares": ("sqrt",)}, {"weight": 1.0}, {"weight": 1.0},  # 9.49 : 5.48 : 2.45
        {"mail spam": 273, "mail ham": 157, "mail rare": 70, "web -": 500},
    ),
}  # fmt: skip


FAST = ("limit", "uniform classes")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in MIXTURES])
def test_streaming_reads_what_preparation_does_and_both_the_shares_asked_for(opened, sources, name):
    changes, mail, web, expected = MIXTURES[name]
    both = [opened(sources=sources(mail, web), **WHOLE, **changes, streaming=streaming) for streaming in (False, True)]
    prepared, streamed = (list(texts(data, take(data, 125))) for data in both)
    assert set(prepared) == set(streamed)
    for got in (prepared, streamed):
        counts = Counter(" ".join(text.split()[:2]) for text in got)
        counts = counts if any(" " in kind and kind.startswith("mail") for kind in expected) else _merge(counts)
        assert counts == expected
        for kind in expected:  # no document comes again before its source's epoch is over
            seen = Counter(text for text in got if text.startswith(kind))
            assert max(seen.values()) - min(seen.values()) <= (1 if got is prepared else 2)


def _merge(counts):
    merged = Counter()
    for kind, count in counts.items():
        merged["mail" if kind.startswith("mail") else kind] += count
    return merged


@pytest.mark.parametrize("name", ["phases", "limit", "uniform classes"])
def test_hosts_and_restarts_see_the_same_rows(opened, sources, name):
    changes, mail, web, _ = MIXTURES[name]
    data = opened(sources=sources(mail, web), **WHOLE, **changes)
    whole = take(data, 70)
    for start in (0, 49, 63):
        parts = [take(data, 3, start, (at, at + 4)) for at in (0, 4)]
        for step in range(3):
            joined = {key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]}
            assert all((joined[key] == whole[start + step][key]).all() for key in joined)


def test_a_stream_of_phases_and_classes_goes_on_exactly(opened, sources):
    changes = {"mixture": ((0, "mail=3,web=1"), (10, "web=1,mail=1")), "label_shares": ("uniform",),
               "augment": AugmentConfig(token_dropout=0.5, only_repeats=True)}  # fmt: skip
    data = opened(sources=sources(), **WHOLE, **changes, streaming=True)
    batches = data.train_batches(0, (0, 8))
    for _ in range(7):
        next(batches)
    state = batches.state()
    expected = [next(batches) for _ in range(8)]
    batches.close()
    again = opened(sources=sources(), **WHOLE, **changes, streaming=True).train_batches(7, (0, 8), state)
    for batch in expected:
        got = next(again)
        assert all((got[key] == batch[key]).all() for key in batch)
    again.close()


@pytest.mark.parametrize("streaming", [False, True])
def test_the_end_of_all_sources_is_said(opened, sources, streaming):
    """Each document comes exactly as often as asked for; before training where that is known, and where it happens."""
    data = opened(
        sources=sources({"max_epochs": 1.0}, {"max_epochs": 3.0}), **{**WHOLE, "batch_size": 2}, streaming=streaming
    )
    if not streaming:
        with pytest.raises(
            ConfigError, match=r"train.steps=200: after 123 steps every source has been read as often as"
        ):
            data.describe_steps(200)
        assert data.describe_steps(123)
    batches, seen = data.train_batches(0, (0, 2)), []
    with pytest.raises(UserError, match="the training data have ended: "):
        seen.extend(batches)
    batches.close()
    assert Counter(Counter(texts(data, seen)).values()) == {1: 126, 3: 40}


def test_rows_of_classes_hold_one_class_and_packing_stays_tight(opened, sources):
    data = opened(sources=sources(), **{**WHOLE, "packing": "best_fit", "seq_len": 64}, label_shares=("natural",))
    for batch in take(data, 40):
        for tokens, segments in zip(batch["targets"], batch["segments"]):
            text = data.tokenizer.decode([int(i) for i in tokens[segments > 0]])
            assert sum(kind in text for kind in (*LABELS, "- ")) == 1
    rows, fills = zip(*((len(reader), reader.fill()) for _, reader in data.parts))
    assert np.average(fills, weights=rows) > 0.9


KEPT = ({"only_repeats": True, "labels": ("rare", "ham")}, *(pytest.param(one, marks=pytest.mark.slow) for one in
        ({"only_repeats": True}, {"labels": ("rare",)})))  # fmt: skip


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kinds", [{"token_dropout": 0.6}, {"word_case": 1.0, "span_corruption": 1.0}])
@pytest.mark.parametrize("changes", KEPT)
def test_augmentation_can_be_kept_to_repeats_and_classes(opened, sources, streaming, kinds, changes):
    augment = AugmentConfig(**kinds, **changes)
    base = {
        **WHOLE,
        "sources": sources({"weight": 1.0}, {"weight": 1.0}),
        "label_shares": ("uniform",),
        "streaming": streaming,
    }
    plain, data = opened(**base), opened(**base, augment=augment)
    times, (before, after) = defaultdict(list), (take(plain, 60), take(data, 60))
    same = [(a["tokens"] == b["tokens"]).all(1) & (a["targets"] == b["targets"]).all(1) & (a["weights"] == b["weights"]).all(1)
            for a, b in zip(before, after)]  # fmt: skip
    for text, unchanged in zip(texts(plain, before), np.concatenate(same)):
        times[text].append(not unchanged)
    for text, changed in times.items():
        meant = not augment.labels or text.split()[1] in augment.labels
        first = 1 if augment.only_repeats else 0
        if not streaming:  # where a small class's epochs are mixed by the shuffle buffer
            assert not any(changed[:first]), text
        assert not any(changed) or meant, text
        assert not meant or sum(changed[first:]) >= 0.8 * len(changed[first:]) - 1, (text, changed)
    assert any(any(changed) for changed in times.values())


def test_epochs_of_each_part_are_shown_and_many_are_warned_of(opened, sources):
    data = opened(sources=sources({"weight": 3.0}, {"weight": 1.0}), **WHOLE, label_shares=("uniform",))
    table = {entry["label"]: entry for entry in data.summary(125)["epochs"]}
    assert table["rare"]["rows_drawn"] == 250
    assert table["rare"]["epochs"] == pytest.approx(250 / 6, abs=0.01)
    assert table[None]["share"] == 0.25
    lines = data.describe_steps(125)
    assert lines[0] == "epochs in 125 steps:"
    assert "  mail, class rare: 41.67 epochs of 6 rows (6 documents), 25.0% of what is read" in lines
    assert "3 of 4 are read more than 4 times" in lines[-2]
    assert "rows of one class are 41% full; a shorter config.data.seq_len (now 32) wastes less" in lines[-1]
    even = opened(sources=sources(), **WHOLE)
    assert [entry["epochs"] for entry in even.summary(20)["epochs"]] == [pytest.approx(160 / 166, abs=0.001)] * 2
    streamed = opened(sources=sources(), **WHOLE, streaming=True)
    assert streamed.describe_steps(20)[0] == "epochs in 20 steps, about:"


@pytest.mark.parametrize(
    ("changes", "mail", "words"),
    [
        ({"mixture": ((5, "a=1"),)}, {}, "steps must begin with 0 and rise, got 5"),
        ({"mixture": ((0, "mail=1"), (9, "web=1"), (9, "web=1"))}, {}, "must begin with 0 and rise, got 0, 9, 9"),
        ({"mixture": ((0, "mail=1,wep=1"),)}, {}, "step 0: no training source wep; there are mail, web"),
        ({"mixture": ((0, "mail=1"),)}, {}, "web has no weight in any phase"),
        ({"mixture": ((0, "mail=-1,web=x"),)}, {}, "expected NAME=WEIGHT with a weight >= 0, got 'mail=-1'"),
        ({"mixture": ((0, "mail=0,web=0"),)}, {}, "step 0: needs an entry with a weight > 0"),
        ({"mixture": ((0, "mail=1,mail=2,web=1"),)}, {}, "names 'mail' twice"),
        ({"mixture": ((0, "mail=1,web=1"),), "temperature": 2.0}, {}, "mixture and temperature: each decides the shares"),
        ({"temperature": 0.5}, {}, "temperature: must be >= 1"),
        ({}, {"epochs": 2.0}, "give every training source a epochs > 0, or none"),
        ({}, {"max_epochs": -1.0}, "sources.mail.max_epochs: must be >= 0, got -1"),
        ({"label_shares": ("uniform", "spam=1")}, {}, "label_shares: one of natural, sqrt, uniform stands alone"),
        ({"label_shares": ("unifrom",)}, {}, "label_shares: expected NAME=WEIGHT"),
        ({"label_shares": ("uniform",)}, {"label_field": ""}, "label_shares: no source has a label_field"),
        ({"buffer_bytes": 1000}, {}, "buffer_bytes: must be >= 16,777,216"),
        ({"streaming": True, "mixture": ((0, "mail=1,web=1"), (9, "mail=1"))}, {"max_epochs": 1.0}, "max_epochs: while streaming"),
    ],
)  # fmt: skip
def test_impossible_shares_are_named_before_anything_is_read(changes, mail, words):
    mail = SourceConfig(**{"path": "a", "label_field": "kind", **mail})
    config = DataConfig(sources={"mail": mail, "web": SourceConfig(path="b")}, **changes)
    assert words in "\n".join(check_data_config(config))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"label_shares": ("spam=1", "ham=1")}, "give every class a share; missing: rare"),
        ({"label_shares": ("spam=1", "ham=1", "rar=1", "rare=1")}, "no training document of class 'rar'; did you mean 'rare'"),
        ({"augment": AugmentConfig(0.1, labels=("rar",))}, "augment.labels: no training document of class 'rar'; did you mean 'rare'"),
        ({"mixture": ((0, "mail=1,web=1e-9"),)}, "sources.web: a share of 1e-09 is less than one row in 100,000"),
    ],
)  # fmt: skip
def test_classes_that_do_not_exist_are_named(opened, sources, changes, words):
    with pytest.raises(ConfigError, match=words):
        opened(sources=sources(), **WHOLE, **changes).train_batches(0, (0, 8))
