"""Are near-duplicates dropped, and those that are alike never in two splits, however the data are prepared?"""

import json
import random
import re

import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import SPLITS, CleanConfig, SourceConfig, SplitConfig
from data_pipeline.dedup.leakage import find_leaks
from data_pipeline.explain import main
from data_pipeline.leaks import main as leaks_main
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.schema import ConfigError, UserError
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.test_stages import hashes

NEAR = CleanConfig(near_dedup=0.8)
HALVES = SplitConfig(validation=0.3, test=0.2)


def edited(rng, text, edits):
    """`text` with some of its characters changed."""
    letters = list(text)
    for place in rng.sample(range(len(letters)), edits):
        letters[place] = rng.choice("xyz鸟")
    return "".join(letters)


@pytest.fixture
def rows(tmp_path):
    """60 texts of 120 words, 40 with a copy of two edits (near 0.97 alike), 20 with one of 25 (between 0.7 and 0.8)."""
    rng = random.Random(4)
    texts = [f"{i} {make_text(rng, 120)}" for i in range(60)]
    copies = [edited(rng, text, 2 if i < 40 else len(text) // 50) for i, text in enumerate(texts)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts + copies]
    rng.shuffle(lines)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def split_texts(prepared, source=0):
    found = {}
    for split in SPLITS:
        if prepared.has_shard(source, split):
            shard = prepared.shard(source, split)
            pairs = zip(shard.offsets, shard.offsets[1:])
            found[split] = [prepared.tokenizer.decode(shard.ids[a : b - 1].tolist()) for a, b in pairs]
    return found


def leaks(found):
    """Pairs of the held-out splits and all others that are at least 0.7 alike, by exact computation."""
    named = {split: [(split, text) for text in texts] for split, texts in found.items()}
    rest = {held_out: [pair for split in SPLITS if split != held_out for pair in named[split]] for held_out in SPLITS}
    return [leak for split in ("validation", "test") for leak in find_leaks(named[split], lambda s=split: rest[s])]


def test_the_command_counts_the_pairs_that_are_in_two_splits(config, rows, tmp_path, quiet, capsys):
    for near, expected in ((0.0, True), (0.8, False)):
        made = config(rows, clean=CleanConfig(near_dedup=near), split=HALVES)
        prepared = prepare_to(tmp_path / f"near{near}", made, 1, quiet)
        found = leaks(split_texts(prepared))
        assert bool(found) == expected
        if expected:
            with pytest.raises(UserError, match="between validation and test") as error:
                leaks_main([f"--data={prepared.folder}", "--show=3"])
            total, between = re.match(r"(\d+) pairs .* (\d+) between validation and test", str(error.value)).groups()
            assert int(total) + int(between) == len(found)  # which has those of validation and test from both sides
            shown = capsys.readouterr().out.splitlines()
            assert len(shown) == 3
            assert re.fullmatch(
                r"\d\.\d\d  validation \S+rows\.jsonl:\d+  =  (train|test) \S+rows\.jsonl:\d+", shown[0]
            )
        else:
            leaks_main([f"--data={prepared.folder}"])
            assert capsys.readouterr().out == "no pair of documents in two splits is 0.7 alike\n"
    for flags in ([], ["--data=x", "--at_least=none"], ["--data=x", "--at_least=0"]):
        with pytest.raises(ConfigError):
            leaks_main(flags)


def test_near_duplicates_go_and_what_is_alike_stays_together(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PART_BYTES", 20_000)
    plain = prepare_to(tmp_path / "plain", config(rows, split=HALVES), 1, print)
    assert len(leaks(split_texts(plain))) > 10  # dealt by their own hash, copies fall apart
    near = prepare_to(tmp_path / "near", config(rows, split=HALVES, clean=NEAR), 1, print)
    found = split_texts(near)
    assert not leaks(found)
    assert near.manifest["dropped"] == {"near-duplicate": 40}
    assert sum(map(len, found.values())) == 80
    ledger = [json.loads(line) for line in (tmp_path / "near" / "ledger.jsonl").read_text("utf-8").splitlines()]
    assert {entry["reason"] for entry in ledger} == {"near-duplicate"}
    assert len({entry["line"] for entry in ledger}) == 40
    prepare_to(tmp_path / "three", config(rows, split=HALVES, clean=NEAR), 3, print)
    assert hashes(tmp_path / "three") == hashes(tmp_path / "near")


def test_streaming_reads_what_preparation_keeps(config, rows, quiet):
    prepared = open_data(config(rows, split=HALVES, clean=NEAR), log=quiet)
    streamed = open_data(config(rows, split=HALVES, clean=NEAR, streaming=True), log=quiet)
    assert streamed.prepared.manifest["dropped"] == prepared.prepared.manifest["dropped"]
    _, keys, *_ = streamed.prepared.places(0, "train")
    assert sorted(keys.tolist()) == sorted(prepared.prepared.shard(0, "train").keys.tolist())
    for split in ("validation", "test"):
        ours, theirs = (split_texts(data.prepared)[split] for data in (prepared, streamed))
        assert ours == theirs


def test_groups_stay_together_with_what_is_like_them(config, rows, tmp_path):
    lines = [json.loads(line) for line in rows.read_text("utf-8").splitlines()]
    path = tmp_path / "groups.jsonl"
    path.write_text("".join(json.dumps({**line, "by": f"g{i % 7}"}) + "\n" for i, line in enumerate(lines)), "utf-8")
    source = {"s": SourceConfig(path=str(path), group_field="by")}
    found = split_texts(prepare_to(tmp_path / "out", config("", sources=source, clean=NEAR, split=HALVES), 1, print))
    assert len(found) == 1  # the copies connect all seven groups


def test_a_pinned_source_that_is_like_another_is_a_leak(config, rows, tmp_path):
    lines = rows.read_text("utf-8").splitlines()
    text = json.loads(lines[0])["text"]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text(json.dumps({"text": edited(random.Random(1), text, 3)}) + "\n", "utf-8")
    sources = {"a": SourceConfig(path=str(rows), split="train"), "b": SourceConfig(path=str(held_out), split="test")}
    made = config("", sources=sources, clean=NEAR)
    with pytest.raises(UserError, match=r"1 texts of train are in test too; .*held_out\.jsonl:1 repeats"):
        prepare_to(tmp_path / "out", made, 1, print)
    said = []
    allowed = config("", sources=sources, clean=NEAR, allow_leak=True)
    prepared = prepare_to(tmp_path / "out", allowed, 1, said.append)
    assert any("allow_leak=True" in line for line in said)
    assert len(split_texts(prepared, 1)["test"]) == 1


def test_pieces_of_evaluation_sets_are_dropped_with_both_sides(config, tmp_path, capsys):
    sets = tmp_path / "sets"
    sets.mkdir()
    question = "In which year did the old stone bridge over the northern river fall down after the great flood"
    chinese = "北方那条大河上的老石桥是在哪一年的那场大洪水之后倒塌的呢请回答"
    rows = [{"prompt": f"{question}?", "completion": "1742"}, {"text": chinese}, {"text": "short one"}]
    (sets / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:1]), "utf-8")
    (sets / "zh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[1:]), "utf-8")
    rng = random.Random(0)
    texts = [f"{i} {make_text(rng, 30)}" for i in range(40)]
    texts[7] = f"Quiz! {question.upper().replace(' ', '  ')}, I asked."
    texts[20] = f"题目：{chinese[:25]}，{chinese[25:]}"
    texts[30] = "short one"
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    said = []
    made = config(path, clean=CleanConfig(decontaminate=str(sets)))
    prepared = prepare_to(tmp_path / "out", made, 1, said.append)
    assert said[0] == "looking for 3 items of evaluation sets; 1 are too short to be told from chance"
    assert prepared.manifest["dropped"] == {"contaminated": 2}
    one, two = (json.loads(line) for line in (tmp_path / "out" / "ledger.jsonl").read_text("utf-8").splitlines())
    assert (one["line"], one["match"]["where"]) == (8, f"{sets}/eval.jsonl:1")
    assert one["match"]["their_text"] == question
    assert two["match"]["their_text"] == chinese
    main([f"--data={tmp_path / 'out'}", f"--doc={two['id']}"])
    assert f"dropped: contaminated, '{chinese[:25]}" in capsys.readouterr().out
    pinned = {"s": SourceConfig(path=str(path), split="validation"), "t": SourceConfig(path=str(path), split="train")}
    kept = prepare_to(tmp_path / "pinned", config("", sources=pinned, clean=made.clean, allow_leak=True), 1, print)
    assert kept.manifest["sources"][0]["dropped"] == {}
    (sets / "zh.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n", "utf-8")
    with pytest.raises(UserError, match="made of other sources"):
        prepare_to(tmp_path / "out", made, 1, print)
    (sets / "zh.jsonl").write_text("{\n", "utf-8")
    with pytest.raises(UserError, match=r"zh\.jsonl:1: not valid JSON"):
        prepare_to(tmp_path / "other", made, 1, print)


def test_impossible_similarities_are_named(config, rows):
    for value in (0.5, 1.5):
        with pytest.raises(ConfigError, match=r"clean\.near_dedup: must be 0"):
            open_data(config(rows, clean=CleanConfig(near_dedup=value)))
