"""Are rewritten rows the same prepared and streamed, on any hosts and in any packing, and is nothing lost or touched that must stay?"""

import json
import random
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.augment.check import is_on
from data_pipeline.augment.draw import RUN, fold
from data_pipeline.augment.preview import preview
from data_pipeline.augment.rewrite import Piece, Rewriter
from data_pipeline.augment.spans import EXTREME, REGULAR, Marks, cut_spans, find_marks, make_task, restore
from data_pipeline.augment.text import augment_text
from data_pipeline.check import check_data_config
from data_pipeline.config import (
    AugmentConfig,
    DataConfig,
    SourceConfig,
    SplitConfig,
    TokenizerConfig,
)
from data_pipeline.mix import hash64
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.show import _texts
from data_pipeline.tasks import CHAT, PLAIN
from data_pipeline.tokenizer import load_tokenizer
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.small_tokenizers import MAKERS, save_folder

FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
TRAIN = SplitConfig(validation=0.1, test=0.0)
TEXT = AugmentConfig(
    word_swap=0.2, word_deletion=0.1, word_case=0.1, char_typo=0.05, char_width=0.1, sentence_shuffle=0.5
)
TASKS = AugmentConfig(span_corruption=0.5, denoisers=(1.0, 1.0, 1.0), window_shift=True)
ALL = AugmentConfig(span_corruption=0.5, denoisers=(1.0, 1.0, 1.0), window_shift=True, word_swap=0.2, char_typo=0.05)
MASKED = AugmentConfig(token_dropout=0.1, window_shift=True, char_typo=0.1)


def take(data, start, rows, count):
    batches = data.train_batches(start, rows)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def segments(batches):
    """Yields (inputs, targets, weights) of every segment."""
    for batch in batches:
        for row in range(len(batch["tokens"])):
            for number in range(1, batch["segments"][row].max() + 1):
                inside = batch["segments"][row] == number
                yield tuple(batch[key][row, inside].tobytes() for key in ("tokens", "targets", "weights"))


def epochs_of(data, count):
    """Counts the segments of each epoch."""
    rows = data.summary()["rows"]["train"]
    return [Counter(segments(take(data, epoch * rows, (0, 1), rows))) for epoch in range(count)]


@pytest.fixture
def mixed(tmp_path):
    rng = random.Random(3)
    rows = {
        "short": [{"text": f"{i} {make_text(rng, rng.randint(1, 12))}"} for i in range(30)],
        "pairs": [{"prompt": f"{i}：{make_text(rng, 6)}\n", "completion": make_text(rng, 3)} for i in range(20)],
        "long": [{"text": f"{i}。{make_text(rng, 90)}"} for i in range(6)],
    }
    for name, some in rows.items():
        (tmp_path / name).with_suffix(".jsonl").write_text("\n".join(map(json.dumps, some)))
    return {name: SourceConfig(path=str(tmp_path / f"{name}.jsonl")) for name in rows}


REPEATS = replace(ALL, only_repeats=True)
SLOW = (("text", TEXT), ("tasks", TASKS), ("masked", MASKED), ("repeats", REPEATS))


def unchanged(data):
    """Counts the segments that the train split has where nothing is augmented, however its chunks are cut."""
    out = Counter()
    for _, reader in data.readers["train"]:
        for batch in (reader.read(np.array([row])) for row in range(len(reader))):
            out.update(segments([batch]))
    return out


@pytest.mark.parametrize("augment", [pytest.param(a, id=n, marks=pytest.mark.slow) for n, a in SLOW] + [ALL])
def test_prepared_and_streamed_rows_hold_the_same(monkeypatch, opened, mixed, augment):
    same = {"sources": mixed, "augment": augment, "split": TRAIN, "min_completion_kept": 0.0, "add_bos": True}
    prepared = opened(**same, batch_size=1)
    expected = epochs_of(prepared, 2)
    assert (expected[0] == unchanged(prepared)) == augment.only_repeats
    assert len(expected[0] - expected[1]) > len(expected[0]) / 3  # drawn anew
    monkeypatch.setattr("data_pipeline.buffers.WINDOW_TOKENS", 1)  # windows of 64 chunks
    streamed = opened(**same, streaming=True, shuffle_documents=1, batch_size=8)
    rows = sum(map(Counter.total, expected)) * 2 // 8  # more than two epochs
    assert not sum(expected, Counter()) - Counter(segments(take(streamed, 0, (0, 8), rows)))


@pytest.mark.parametrize("augment", [ALL, pytest.param(MASKED, marks=pytest.mark.slow)])
def test_packing_and_hosts_do_not_matter(opened, mixed, augment):
    same = {"sources": mixed, "augment": augment, "split": TRAIN, "min_completion_kept": 0.0}
    one, other = (opened(**same, packing=packing, batch_size=1) for packing in ("best_fit", "none"))
    assert epochs_of(one, 1) == epochs_of(other, 1)
    data = opened(**same)
    whole = take(data, 3, (0, 8), 2)
    assert all(np.array_equal(whole[1][key], take(data, 4, (0, 8), 1)[0][key]) for key in whole[1])
    parts = [take(data, 4, rows, 1)[0] for rows in ((0, 3), (3, 8))]
    assert all(np.array_equal(whole[1][key], np.concatenate([p[key] for p in parts])) for key in whole[1])
    for batch in whole:
        assert (batch["positions"][batch["segments"] == 0] == 0).all()
        assert (batch["tokens"][batch["segments"] == 0] == data.pad_id).all()
        assert (batch["weights"][batch["segments"] == 0] == 0).all()


def test_a_moving_window_reads_every_token_once_an_epoch_from_new_places(opened, mixed):
    sources = {"long": mixed["long"]}
    data, still = (
        opened(sources=sources, split=TRAIN, batch_size=1, augment=AugmentConfig(window_shift=on))
        for on in (True, False)
    )
    targets = [
        Counter(id for _, t, _ in epoch for id in np.frombuffer(t, np.int32).tolist()) for epoch in epochs_of(data, 2)
    ]
    expected = Counter(id for _, t, _ in epochs_of(still, 1)[0] for id in np.frombuffer(t, np.int32).tolist())
    assert targets == [expected, expected]
    rows = data.summary()["rows"]["train"]
    assert rows == still.summary()["rows"]["train"]
    places = defaultdict(set)
    for step in range(6 * rows):
        _, epoch, held = data.trace(step, 0)
        batch = take(data, step, (0, 1), 1)[0] if step < 3 else None
        shard = data.readers["train"][0][1].shard
        for document, place, length in held:
            places[epoch].add((document, place))
            start = int(shard.offsets[document]) + place
            if batch is not None:
                assert shard.ids[start : start + length].astype(np.int32).tobytes() in batch["tokens"].tobytes()
    kept = places[0] & places[1]
    assert len(kept) < len(places[0]) / 3


def test_only_training_is_augmented_and_defaults_leave_no_trace(opened, mixed):
    same = {"sources": mixed, "split": SplitConfig(validation=0.2, test=0.2), "min_completion_kept": 0.0}
    plain, data = opened(**same), opened(**same, augment=ALL)
    for split in ("validation", "test"):
        for one, two in zip(plain.eval_batches(split, 8, (0, 8)), data.eval_batches(split, 8, (0, 8)), strict=True):
            assert all(np.array_equal(one[key], two[key]) for key in one)
    off = AugmentConfig(denoisers=(0.0, 1.0, 0.0), room=0.3, suffix_first=0.1, text_share=0.5)
    assert not is_on(off)
    assert opened(**same, augment=off).fingerprint == plain.fingerprint != data.fingerprint
    assert opened(**same, augment=AugmentConfig(0.1, 0.2, 4)).fingerprint != opened(**same, augment=MASKED).fingerprint


def test_a_lexicon_counts_by_what_is_in_it(opened, corpus, tmp_path):
    prints = []
    for name, other in (("a", "x"), ("b", "x"), ("a", "y")):
        (tmp_path / name).write_text(f"model\t{other}\n")
        augment = AugmentConfig(word_synonym=0.5, synonyms=(str(tmp_path / name),))
        prints.append(opened(corpus, augment=augment).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_answers_are_never_touched(opened, pairs):
    for add_bos in (False, True):
        same = {"batch_size": 1, "split": TRAIN, "seq_len": 200, "add_bos": add_bos, "min_completion_kept": 0.0}
        answers = []
        for augment in (AugmentConfig(), AugmentConfig(char_typo=0.5, word_swap=0.5, room=0.0)):
            found = Counter()
            for tokens, targets, weights in epochs_of(opened(pairs, augment=augment, **same), 1)[0].elements():
                learned = np.frombuffer(weights, np.float32) > 0
                found[np.frombuffer(targets, np.int32)[learned].tobytes()] += 1
                prompt = np.frombuffer(tokens, np.int32)[: int(np.flatnonzero(learned)[0]) + 1]
                assert (prompt[0] == 1) == add_bos
                answers.append(prompt.tobytes())
            answers.append(found)
        assert answers.pop() == next(a for a in answers if isinstance(a, Counter))
        assert len({a for a in answers if isinstance(a, bytes)}) > 100  # twice 72 prompts, most of them changed


def test_conversations_stay_as_they_are(opened, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"ask {i} " * 4}, {"role": "assistant", "content": "said " * i}]} for i in range(1, 30)]  # fmt: skip
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    same = {"batch_size": 1, "split": TRAIN, "min_completion_kept": 0.0}
    assert epochs_of(opened(path, augment=ALL, **same), 1) == epochs_of(opened(path, **same), 1)


MARKS = [
    Marks((5, 6, 7), (), 4, 1, 2),
    Marks((5, 6, 7), tuple(range(1000, 1040)), 4, 1, 2),
    Marks((5, 6, 7), (8,), -1, -1, -1),
]


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("n", [4, 5, 40, 700])
def test_span_corruption_loses_nothing_and_fits_its_room(marks, n):
    config = AugmentConfig(span_corruption=1.0, denoisers=(1.0, 1.0, 1.0))
    rewriter = Rewriter(config, None, 10_000)
    body = np.arange(10, 10 + n, dtype=np.int32)
    for key in range(60):
        for first, last in ((True, True), (False, False), (True, False)):
            parts = [[marks.bos]] * (first and marks.bos >= 0) + [body] + [[marks.eos]] * (last and marks.eos >= 0)
            ids = np.concatenate(parts).astype(np.int32)
            task, learned = make_task(ids, config, marks, key)
            assert np.array_equal(restore(task, marks), body)
            assert len(task) - 1 <= rewriter.room(len(ids) - 1)
            assert (task[-1] == marks.eos) == (marks.eos >= 0) == learned[-1] or marks.eos < 0
            taken = task[learned & (task >= 10) & (task < 10 + n)]
            assert 0 < len(taken) < n
            assert not learned[: n - len(taken)].any()


def test_spans_have_the_density_and_length_asked_for():
    marks = MARKS[0]
    for kind, density, length, config in (
        (REGULAR, 0.15, 3, AugmentConfig()), (EXTREME, 0.5, 32, AugmentConfig()),
        (REGULAR, 0.3, 8, AugmentConfig(noise_density=0.3, noise_length=8.0)),
    ):  # fmt: skip
        cuts = [cut_spans(2048, kind, config, marks, key) for key in range(200)]
        taken = np.concatenate([c[1::2] for c in cuts])
        assert abs(taken.sum() / (200 * 2048) - density) < 0.001
        assert abs(taken.mean() / length - 1) < 0.02
        assert taken.std() > length / 2
        place = np.concatenate([np.cumsum(c)[::2] for c in cuts])  # where spans begin
        assert np.abs(np.histogram(place, 4, (0, 2048))[0] / len(place) - 0.25).max() < 0.03


def test_fill_in_the_middle_loses_nothing_and_both_orders_have_their_share():
    marks, n = MARKS[0], 50
    config = AugmentConfig(fill_in_middle=0.4, suffix_first=0.3, span_corruption=0.2)
    body = np.arange(10, 10 + n)
    kinds, lengths = Counter(), []
    for key in range(6000):
        task = make_task(np.concatenate([[1], body]), config, marks, hash64(np.array([key], np.uint64))[0])
        ids = task[0] if task else body
        kinds["none" if task is None else "fim" if 7 in ids else "spans"] += 1
        if 7 not in ids:
            continue
        assert ids[0] == 1
        assert ids[-1] == 2
        assert (task[1] == ((ids >= 10) | (ids == 2))).all()
        at = {mark: int(np.flatnonzero(ids == mark)[0]) for mark in (5, 6, 7)}
        if at[6] == at[5] + 1:
            suffix, rest = ids[at[6] + 1 : at[7]], ids[at[7] + 1 : -1]
            assert np.array_equal(np.concatenate([rest, suffix]), body)
            kinds["suffix first"] += 1
        else:
            prefix, suffix, middle = ids[at[5] + 1 : at[6]], ids[at[6] + 1 : at[7]], ids[at[7] + 1 : -1]
            assert np.array_equal(np.concatenate([prefix, middle, suffix]), body)
            lengths.append(len(middle))
    assert abs(kinds["fim"] / 6000 - 0.4) < 0.025
    assert abs(kinds["spans"] / 6000 - 0.2) < 0.02
    assert abs(kinds["suffix first"] / kinds["fim"] - 0.3) < 0.05
    assert abs(np.mean(lengths) / n - 1 / 3) < 0.03


def test_a_tokenizer_with_the_marks_is_trained_and_one_without_is_refused(opened, corpus, tmp_path):
    augment = AugmentConfig(fill_in_middle=0.5, span_corruption=0.5)
    with pytest.raises(ConfigError, match=r"fill_in_middle: the tokenizer has no tokens for it; train one with"):
        opened(corpus, augment=augment)
    own = TokenizerConfig(vocab_size=330, extra_tokens=(*FIM, "<extra_id_0>", "<extra_id_1>"))
    data = opened(corpus, augment=augment, tokenizer=own, batch_size=1)
    marks = find_marks(data.tokenizer)
    assert (marks.fim, marks.sentinels) == ((5, 6, 7), (8, 9))
    assert data.tokenizer.encode("<|fim_prefix|>")[0] > 9  # no text spells it
    seen = np.concatenate([b["tokens"].reshape(-1) for b in take(data, 0, (0, 1), 30)])
    assert {5, 6, 7, 8, 9} <= set(seen.tolist())
    path = tmp_path / "kept"
    data.tokenizer.save(path)
    assert find_marks(load_tokenizer(path)) == marks
    hf = save_folder(tmp_path / "hf", "byte_bpe")
    with pytest.raises(ConfigError, match="neither <extra_id_0> nor a mask token"):
        opened(corpus, augment=AugmentConfig(span_corruption=0.1), tokenizer=TokenizerConfig(kind="hf", path=str(hf)))
    with pytest.raises(ConfigError, match="extra_tokens: only for a sentencepiece"):
        opened(corpus, tokenizer=TokenizerConfig(kind="bytes", extra_tokens=FIM))


@pytest.mark.parametrize("name", ["bytes", "own", *MAKERS])
def test_changed_text_is_encoded_as_that_text(opened, corpus, tmp_path, name):
    if name in MAKERS:
        tokenizer = load_tokenizer(save_folder(tmp_path / name, name))
    else:
        kind = TokenizerConfig(vocab_size=330) if name == "own" else TokenizerConfig(kind="bytes")
        tokenizer = opened(corpus, tokenizer=kind).tokenizer
    config = AugmentConfig(word_deletion=0.3)
    rewriter = Rewriter(config, tokenizer, 4096)
    text = " the model reads text 春眠不觉晓，处处闻啼鸟。夜来风雨声 and learns 12 🙂 to write" * 3
    whole = np.array(tokenizer.encode(text), np.int32)
    for cut in range(0, 9):  # chunks begin within words and characters
        ids = whole[cut : len(whole) - cut % 4]
        piece = Piece(ids, np.ones(len(ids), np.float32), 7 + cut, PLAIN)
        (new,) = rewriter.reword([piece])
        assert len(new.weights) == len(new.ids) < len(ids)
        assert (new.weights == 1).all()
        old, changed = (b"".join(map(tokenizer.piece, p.ids.tolist())) for p in (piece, new))
        # what changed is a run of whole characters that stands at its old place
        begin, last, run = next(rewriter._texts(piece))
        before = b"".join(map(tokenizer.piece, ids[:begin].tolist()))
        assert changed.startswith(before)
        assert old[len(before) :].startswith(run.encode())
        if name in ("bytes", "own", "byte_bpe", "llama_like"):  # all of it is text, and comes back as it was
            behind = b"".join(map(tokenizer.piece, ids[last:].tolist()))
            text = augment_text(run, config, fold(piece.key, RUN, 0))
            assert changed == before + text.encode() + behind
        assert rewriter.reword([Piece(ids, piece.weights, 7 + cut, CHAT)])[0].ids is ids


def test_what_grows_is_cut_to_its_room(opened, corpus):
    tokenizer = opened(corpus).tokenizer
    config = AugmentConfig(char_width=1.0, room=0.5)
    rewriter = Rewriter(config, tokenizer, 64)
    text = np.array([1, *tokenizer.encode("abcdefgh"), 2], np.int32)
    (new,) = rewriter.rewrite([Piece(text, np.ones(10, np.float32), 1, PLAIN)])
    assert len(new.ids) - 1 == rewriter.room(9) == 14
    assert tokenizer.decode(new.ids.tolist()).startswith("ａｂｃｄ")
    weights = np.array([0] * 9 + [1], np.float32)
    (new,) = rewriter.rewrite([Piece(text, weights, 1, 9)])
    assert (len(new.ids), new.ids[0], new.answer) == (15, 1, 14)
    assert tokenizer.decode(new.ids.tolist()).endswith("ｅｆｇｈ")
    assert new.weights.tolist() == [0] * 14 + [1]
    assert new.ids[-1] == 2
    for length in range(1, rewriter.limit() + 1):
        assert rewriter.room(length) <= 64
    every = Rewriter(AugmentConfig(span_corruption=1.0, window_shift=True, char_typo=0.1), None, 64)
    window = every.limit()
    assert all(every.room(a) + every.room(window - a) <= 64 for a in range(1, window))


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"word_swap": 1.5}, "word_swap: must be in"), ({"noise_density": 1.0}, "noise_density: must be in"), ({"room": -0.1}, "room: must be in"),
        ({"word_synonym": 0.1}, "word_synonym needs augment.synonyms"), ({"line_paraphrase": 0.1}, "line_paraphrase needs augment.paraphrases"),
        ({"denoisers": (1.0,)}, "must be three shares"), ({"denoisers": (0.0, 0.0, 0.0)}, "must be three shares"), ({"noise_length": 0.5}, "noise_length: must be"),
        ({"span_corruption": 0.6, "fill_in_middle": 0.6}, "more than all chunks"), ({"span_mask": 0.1, "fill_in_middle": 0.6}, "would hide the marks"),
        ({"span_corruption": 0.5, "noise_density": 0.9, "noise_length": 1.0}, "leaves no room"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line(augment, words):
    (problem,) = check_data_config(DataConfig(path="x", seq_len=8, augment=AugmentConfig(**augment)))
    assert words in problem
    assert problem.startswith("config.data.")


def test_augment_text_is_what_rows_show(opened, tmp_path):
    (tmp_path / "one.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{i} one two three four five six"}) for i in range(40))
    )
    config = AugmentConfig(word_swap=0.5)
    data = opened(str(tmp_path / "one.jsonl"), augment=config, split=SplitConfig(validation=0.0, test=0.0))
    shown = "".join(data.tokenizer.decode(b["targets"][b["segments"] > 0].tolist()) for b in take(data, 0, (0, 8), 2))
    assert "two one" in shown
    assert len({augment_text("one two three", config, key) for key in range(20)}) > 2


def test_the_preview_marks_what_a_row_will_hold(opened, mixed):
    def lines(augment, epoch=0, **changes):
        data = opened(sources=mixed, augment=augment, split=TRAIN, min_completion_kept=0.0, **changes)
        return list(preview(data, 2, epoch, False, lambda ids: _texts(data, ids)))

    shown = lines(ALL)
    assert sum(", document " in line for line in shown) == 6
    assert any("[-" in line for line in shown)
    assert any("{+" in line for line in shown)
    assert shown == lines(ALL) != lines(ALL, epoch=1)
    assert any("{+<mask>" in line for line in lines(AugmentConfig(token_dropout=0.3)))
    with pytest.raises(UserError, match="everything is off"):
        lines(AugmentConfig())
    with pytest.raises(UserError, match="streaming=False"):
        lines(ALL, streaming=True)
