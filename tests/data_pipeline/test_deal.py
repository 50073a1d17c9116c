"""Does every label have its share, is each document validated in one fold, and does an earlier corpus stay where it was?"""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter

import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import CleanConfig, SourceConfig, SplitConfig
from data_pipeline.schema import ConfigError, UserError
from tests.data_pipeline.conftest import make_text
from tests.data_pipeline.test_near import edited, split_texts

STRATIFIED = SplitConfig(validation=0.2, test=0.2, stratify=True)


def make_rows(seed, count, labels=("many", "many", "many", "some", "few")):
    rng = random.Random(seed)
    return [{"text": f"{seed} {i} {make_text(rng, 30)}", "label": labels[i % len(labels)]} for i in range(count)]


@pytest.fixture
def prepared(config, tmp_path, quiet):
    """Returns a function that prepares rows and says in which split each text is."""

    def make(rows, split=STRATIFIED, near=0.0, log=quiet, key_env="", **source):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        sources = {"a": SourceConfig(path=str(path), **{"label_field": "label", **source})}
        clean = CleanConfig(near_dedup=near, repeated_lines=1000)
        data = open_data(config("", sources=sources, split=split, clean=clean, encrypt_key_env=key_env), log=log)
        where = {text: split for split, texts in split_texts(data.prepared).items() for text in texts}
        return data.prepared.folder, where

    return make


def shares(rows, where):
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["label"], Counter())[where[row["text"]]] += 1
    return counts


def test_every_label_has_its_share_in_every_split(prepared):
    rows = make_rows(1, 203)
    _, where = prepared(rows)
    for label, counts in shares(rows, where).items():
        for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
            assert abs(counts[split] - share * counts.total()) <= 1, (label, counts)
    _, plain = prepared(rows, SplitConfig(validation=0.2, test=0.2))
    assert any(abs(counts["test"] - 0.2 * counts.total()) > 1 for counts in shares(rows, plain).values())


@pytest.mark.parametrize("stratify", [True, False])
@pytest.mark.parametrize("near", [0.0, 0.8])
def test_each_document_is_validated_in_one_fold_and_test_is_the_same_in_all(prepared, stratify, near):
    rows = make_rows(2, 120)
    base = SplitConfig(test=0.2, folds=3, stratify=stratify)
    dealt = [prepared(rows, dataclasses.replace(base, fold=fold), near)[1] for fold in range(3)]
    tests = [{text for text, split in where.items() if split == "test"} for where in dealt]
    assert tests[0] == tests[1] == tests[2]
    assert len(tests[0]) > 10
    for row in rows:
        held = [where[row["text"]] for where in dealt].count("validation")
        assert held == (0 if row["text"] in tests[0] else 1)
    if stratify:
        for counts in shares(rows, dealt[0]).values():
            assert abs(counts["validation"] - 0.8 / 3 * counts.total()) <= 1, counts


@pytest.mark.parametrize("near", [0.0, 0.8])
def test_new_rows_move_no_old_one_where_the_earlier_corpus_is_known(prepared, near):
    old, new = make_rows(3, 90), make_rows(4, 120, ("few", "some", "rare"))
    folder, before = prepared(old, near=near)
    _, after = prepared([*new, *old], dataclasses.replace(STRATIFIED, known=str(folder)), near)
    assert {text: after[text] for text in before} == before
    for counts in shares([*old, *new], after).values():
        for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
            assert abs(counts[split] - share * counts.total()) <= 1
    _, unknown = prepared([*new, *old], near=near)
    assert any(unknown[text] != split for text, split in before.items())  # so the test can fail


def test_an_earlier_corpus_may_be_encrypted_and_must_have_been_dealt_by_label(prepared, monkeypatch):
    monkeypatch.setenv("LM_TEST_KEY", "a secret of more than thirty-two characters")
    old, new = make_rows(3, 60), make_rows(4, 60)
    folder, before = prepared(old, near=0.8, key_env="LM_TEST_KEY")
    known = dataclasses.replace(STRATIFIED, known=str(folder))
    for key_env in ("LM_TEST_KEY", ""):
        _, after = prepared([*new, *old], known, near=0.8, key_env=key_env)
        assert {text: after[text] for text in before} == before
    plain, _ = prepared(old, SplitConfig())
    with pytest.raises(ConfigError, match=r"no dealt\.bin there; it was prepared without split\.stratify"):
        prepared(old, dataclasses.replace(STRATIFIED, known=str(plain)))


def test_near_duplicates_of_a_known_document_join_it(prepared):
    """Copies that are 0.75 to 0.9 alike are kept here, and must never come to lie in another split than the old document."""
    rng, old = random.Random(5), make_rows(5, 60)
    copies = [{**row, "text": edited(rng, row["text"], 1)} for row in old]
    split = SplitConfig(validation=0.3, test=0.3)
    folder, before = prepared(old, split, near=0.95)
    _, after = prepared([*old, *copies], dataclasses.replace(split, known=str(folder)), near=0.95)
    assert all(
        after.get(text, split) == split for text, split in before.items()
    )  # an edit at a text's head makes a near-duplicate
    pairs = [(row, copy) for row, copy in zip(old, copies) if {row["text"], copy["text"]} <= after.keys()]
    assert len(pairs) > 30
    assert all(after[row["text"]] == after[copy["text"]] for row, copy in pairs)


def test_a_label_too_small_for_a_split_is_said(prepared):
    said = []
    prepared([*make_rows(6, 60), {"text": "the only one of its kind", "label": "lonely"}], log=said.append)
    assert "warning: labels without any document in the validation split: 'lonely'" in said
    assert "warning: labels without any document in the test split: 'lonely'" in said


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ({"folds": 1}, "split.folds: must be 0 .off. or >= 2, got 1"),
        ({"folds": 5, "fold": 5}, "split.fold: must be from 0 to folds - 1 = 4 .or -1 with folds: all train., got 5"),
        ({"known": "x"}, "split.known: has work only with stratify or clean.near_dedup"),
        ({"by": "position", "folds": 3}, "folds and stratify deal whole ones"),
        ({"stratify": True, "known": "no/such"}, "known='no/such': manifest.json cannot be read"),
    ],
)  # fmt: skip
def test_an_impossible_split_is_refused(prepared, split, words):
    with pytest.raises(UserError, match=words):
        prepared(make_rows(7, 20), SplitConfig(**split))


def test_stratify_without_labels_is_refused(prepared):
    with pytest.raises(ConfigError, match="no source that is split has a label_field"):
        prepared(make_rows(7, 20), label_field="")


def test_known_of_other_folds_is_refused(prepared):
    folder, _ = prepared(make_rows(8, 40))
    with pytest.raises(
        ConfigError, match=r"was dealt to test, train, validation; with config\.data\.split\.folds=4 it would"
    ):
        prepared(make_rows(8, 40), dataclasses.replace(STRATIFIED, folds=4, known=str(folder)))
