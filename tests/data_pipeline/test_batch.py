"""Is a batch a function of (configuration, step), on any hosts, and is every id predicted exactly once?"""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.schema import UserError


def take(data, start, rows, count):
    batches = data.train_batches(start, rows)
    taken = [next(batches) for _ in range(count)]
    batches.close()
    return taken


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_restart_at_any_step_equals_the_uninterrupted_stream(opened, corpus):
    data = opened(corpus)
    whole = take(data, 0, (0, 8), 30)
    for start in (1, 7, 29):
        assert same(take(data, start, (0, 8), 1)[0], whole[start])


@pytest.mark.parametrize("weights", [(0.0, 0.0), (3.0, 1.0)])
def test_four_hosts_see_the_rows_of_one(opened, corpus, pairs, weights):
    sources = {
        "a": SourceConfig(path=str(corpus), weight=weights[0]),
        "b": SourceConfig(path=str(pairs), weight=weights[1]),
    }
    data = opened(sources=sources, min_completion_kept=0.0)
    whole = take(data, 0, (0, 8), 5)
    parts = [take(data, 0, (i, i + 2), 5) for i in range(0, 8, 2)]
    for step in range(5):
        joined = {key: np.concatenate([part[step][key] for part in parts]) for key in whole[0]}
        assert same(joined, whole[step])


def predictions(batches, documents=False):
    """Counts (input, target, position) of what is learned."""
    seen = Counter()
    for batch in batches:
        learned = batch["weights"] > 0
        seen.update(
            zip(
                batch["tokens"][learned].tolist(),
                batch["targets"][learned].tolist(),
                batch["positions"][learned].tolist(),
            )
        )
    return seen


@pytest.mark.parametrize("split", ["validation", "test", "train"])
def test_packing_predicts_what_one_a_row_predicts(opened, corpus, split):
    split_config = SplitConfig(validation=0.3, test=0.3)
    packed, single = (opened(corpus, split=split_config, packing=p) for p in ("best_fit", "none"))
    a, b = (predictions(d.eval_batches(split, 16, (0, 16))) for d in (packed, single))
    assert a == b
    assert packed.summary()["rows"][split] < single.summary()["rows"][split]
    counts = packed.summary()["sources"]["data"]["splits"][split]
    assert sum(a.values()) == counts["tokens"] - counts["documents"]  # every id but the first of each document


def test_every_row_stands_once_in_an_epoch(opened, corpus):
    data = opened(corpus, batch_size=1)
    rows = data.summary()["rows"]["train"]
    epochs = [predictions(take(data, start, (0, 1), rows)) for start in (0, rows)]
    assert epochs[0] == epochs[1] == predictions(data.eval_batches("train", 1, (0, 1)))
    first, second = take(data, 0, (0, 1), rows), take(data, rows, (0, 1), rows)
    assert not all(same(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("source", ["corpus", "pairs"])
def test_segments_positions_and_padding(request, opened, source, packing):
    data = opened(request.getfixturevalue(source), packing=packing, min_completion_kept=0.0)
    for batch in take(data, 0, (0, 8), 10):
        segments, positions = batch["segments"], batch["positions"]
        assert (batch["weights"][segments == 0] == 0).all()
        assert (batch["tokens"][segments == 0] == data.pad_id).all()
        for row in range(8):
            used = segments[row] > 0
            assert used.any()
            assert not used[np.argmin(used) :].any() or used.all()  # padding is at the end only
            steps = np.diff(segments[row][used])
            assert segments[row][0] == 1
            assert ((steps == 0) | (steps == 1)).all()
            for number in range(1, segments[row].max() + 1):
                inside = np.flatnonzero(segments[row] == number)
                assert positions[row, inside].tolist() == list(range(len(inside)))
                assert (batch["tokens"][row, inside[1:]] == batch["targets"][row, inside[:-1]]).all()


def test_loss_is_on_the_completion_and_its_end(opened, pairs):
    data = opened(pairs, seq_len=512)
    eos, n = data.tokenizer.special.eos, 0
    for batch in data.eval_batches("train", 4, (0, 4)):
        for row in range(4):
            for number in range(1, batch["segments"][row].max() + 1):
                inside = np.flatnonzero(batch["segments"][row] == number)
                learned = inside[batch["weights"][row, inside] > 0]
                prompt = data.tokenizer.decode(batch["tokens"][row, inside[: len(inside) - len(learned) + 1]])
                assert prompt.endswith("\n")
                assert "：" in prompt
                assert learned[-1] == inside[-1]
                assert batch["targets"][row, learned[-1]] == eos
                assert "\n" not in data.tokenizer.decode(batch["targets"][row, learned])
                n += 1
    assert n == data.summary()["sources"]["data"]["kept"]["train"]


def test_loss_on_prompt_learns_every_target(opened, pairs):
    data = opened(pairs, seq_len=512, loss_on_prompt=True)
    for batch in data.eval_batches("train", 4, (0, 4)):
        assert ((batch["weights"] > 0) == (batch["segments"] > 0)).all()


def test_long_prompts_are_cut_from_the_left_and_completions_kept(opened, config, pairs, quiet):
    data = opened(pairs, seq_len=48, add_bos=True, min_completion_kept=0.0)
    for batch in data.eval_batches("train", 4, (0, 4)):
        for row in range(4):
            for number in range(1, batch["segments"][row].max() + 1):
                inside = np.flatnonzero(batch["segments"][row] == number)
                assert batch["tokens"][row, inside[0]] == data.tokenizer.special.bos
                assert (batch["weights"][row, inside] > 0).any()
    described = data.summary()["sources"]["data"]["splits"]["train"]
    assert described["cut_prompts"] > described["cut_answers"] > 0
    with pytest.raises(UserError, match=r"cuts the end of \d+ of \d+ completions.*min_completion_kept"):
        open_data(config(pairs, seq_len=16), log=quiet)


def test_evaluation_is_whole_whatever_the_batch_size(opened, corpus):
    data = opened(corpus, split=SplitConfig(validation=0.3))
    expected = predictions(data.eval_batches("validation", 1, (0, 1)))
    for size in (3, 7, 64):
        batches = list(data.eval_batches("validation", size, (0, size)))
        assert predictions(batches) == expected
        halves = [list(data.eval_batches("validation", size, rows)) for rows in ((0, 1), (1, size))]
        assert len(halves[0]) == len(halves[1]) == len(batches)
        for batch, a, b in zip(batches, *halves):
            assert same(batch, {key: np.concatenate([a[key], b[key]]) for key in a})


def test_position_split_cuts_characters_exactly(opened, tmp_path):
    text = "".join(chr(0x4E00 + i % 500) for i in range(1234))
    (tmp_path / "a.txt").write_text(text, "utf-8")
    data = opened(tmp_path / "a.txt", split=SplitConfig(by="position", validation=0.1, test=0.0),
                  clean=CleanConfig(rules=(), exact_dedup=False), tokenizer=TokenizerConfig(kind="char"))  # fmt: skip
    ids = {split: data.prepared.shard(0, split).ids for split in ("train", "validation")}
    assert data.tokenizer.decode(ids["train"].tolist()) == text[: int(1234 * 0.9)]
    assert data.tokenizer.decode(ids["validation"].tolist()) == text[int(1234 * 0.9) :]
    assert not data.has_split("test")


def test_mixture_has_exact_shares_and_never_mixes_sources_in_a_row(opened, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name * (3 + i)}" for i in range(50)))
    sources = {
        n: SourceConfig(path=str(tmp_path / f"{n}.txt"), document="line", weight=w) for n, w in (("a", 3.0), ("b", 1.0))
    }
    data = opened(sources=sources, batch_size=40)
    a, b = (data.tokenizer.encode(letter)[0] for letter in "ab")
    rows = np.concatenate([batch["tokens"] for batch in take(data, 0, (0, 40), 25)])
    has_a, has_b = (rows == a).any(1), (rows == b).any(1)
    assert has_a.sum() == 750
    assert has_b.sum() == 250
    assert not (has_a & has_b).any()


def test_fingerprint_follows_what_batches_depend_on(config, corpus, quiet):
    base = config(corpus)
    first = open_data(base, log=quiet)
    for change in ({"seq_len": 32}, {"batch_size": 4}, {"packing": "none"}, {"seed": 1}, {"add_bos": True}):
        other = open_data(dataclasses.replace(base, **change), log=quiet)
        assert other.fingerprint != first.fingerprint, change
        assert (other.prepared.folder == first.prepared.folder) == ("add_bos" not in change)
    assert open_data(dataclasses.replace(base, shuffle_documents=5), log=quiet).fingerprint == first.fingerprint
    less = CleanConfig(rules=("line_ends", "nfc", "control"))  # changes no document of this corpus
    assert open_data(dataclasses.replace(base, clean=less), log=quiet).fingerprint == first.fingerprint
    stream = dataclasses.replace(base, streaming=True)  # but cleans on the fly, so its rules are part of it
    streams = [open_data(c, log=quiet).fingerprint for c in (stream, dataclasses.replace(stream, clean=less))]
    assert streams[0] != streams[1]
    corpus.write_text(corpus.read_text("utf-8") + '{"text": "one more 一"}\n', "utf-8")
    assert open_data(base, log=quiet).fingerprint != first.fingerprint


def test_a_split_that_nobody_defined_is_not_there(opened, corpus):
    assert [opened(corpus).has_split(name) for name in ("train", "dev")] == [True, False]


def test_warnings_name_what_is_small(config, corpus):
    said = []
    data = open_data(config(corpus, batch_size=5000, split=SplitConfig(validation=1e-9, test=0.0)), log=said.append)
    assert any("no document fell into the validation split" in line for line in said)
    with pytest.raises(UserError, match=r"fewer than config\.data\.batch_size=5000"):
        data.train_batches(0, (0, 5000))
