"""Texts with a class: one target each, at its last place; class weights; what is refused before anything is computed."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.check import check_data_config
from data_pipeline.config import AugmentConfig, DataConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.explain import explain_row
from data_pipeline.labelled_texts import batches_of, read_file, read_texts
from data_pipeline.prepare.build import prepare_to
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.show import show

COUNTS = {"card": 40, "bill": 20, "oos": 10}


def rows_of(split="", counts=COUNTS):
    """Rows in which the text says which class it is of, and all texts differ."""
    return [
        {"text": f"{split} {label} question {i} {'很 long ' * (i % 7)}{i * 7919}", "label": label}
        for label, n in counts.items()
        for i in range(n)
    ]


def write(path, rows):
    if path.suffix == ".csv":
        lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in rows)]
    else:
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return str(path)


@pytest.fixture
def classify(tmp_path):
    """(rows or None, **keys) -> a config of them; its validation and test splits are dealt."""

    def make(rows=None, suffix=".jsonl", **keys):
        path = "" if "train_path" in keys or "sources" in keys else write(tmp_path / f"data{suffix}", rows or rows_of())
        given = {
            "path": path, "task": "classify", "tokenizer": TokenizerConfig(kind="bytes"), "seq_len": 96, "batch_size": 4,
            "split": SplitConfig(validation=0.2, test=0.2, stratify=True), "cache_dir": str(tmp_path / "cache"),
        }  # fmt: skip
        return DataConfig(**{**given, **keys})

    return make


def held(data, batches):
    """(text, class name, weight) of every target in batches; fails where a text has none, several, or one elsewhere."""
    found = []
    for batch in batches:
        for row in range(len(batch["tokens"])):
            segments, weights = batch["segments"][row], batch["weights"][row]
            for number in range(1, segments.max() + 1):
                inside = np.flatnonzero(segments == number)
                assert (np.diff(inside) == 1).all()
                assert batch["positions"][row, inside].tolist() == list(range(len(inside)))
                assert np.flatnonzero(weights[inside]).tolist() == [len(inside) - 1]
                ids, label = batch["tokens"][row, inside].tolist(), batch["targets"][row, inside[-1]]
                found.append((data.tokenizer.decode(ids), data.classes.names[label], float(weights[inside[-1]])))
            ends = weights > 0
            assert (batch["targets"][row][~ends] == 0).all()
            assert not weights[segments == 0].any()
    return found


def epoch(data):
    """The batches of one epoch."""
    steps = -(-data.summary()["rows"]["train"] // data.config.batch_size)
    batches = data.train_batches(0, (0, data.config.batch_size))
    found = [next(batches) for _ in range(steps)]
    batches.close()
    return found


@pytest.mark.parametrize("packing", ["best_fit", "none"])
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_every_text_has_one_target_at_its_last_place(classify, quiet, packing, suffix):
    data = open_data(classify(suffix=suffix, packing=packing), log=quiet)
    assert data.classes.names == ("bill", "card", "oos")
    told = {split: held(data, data.eval_batches(split, 4, (0, 4))) for split in ("train", "validation", "test")}
    labels = {row["text"]: row["label"] for row in rows_of()}
    assert {text: label for found in told.values() for text, label, _ in found} == labels
    assert sum(map(len, told.values())) == len(labels)
    assert {weight for found in told.values() for *_, weight in found} == {1.0}
    assert [sum(label == name for _, label, _ in told["train"]) for name in data.classes.names] == list(
        data.classes.counts
    )
    texts, numbers = read_texts(data, "validation", 1000)
    assert sorted(zip(texts, numbers.tolist())) == sorted(
        (text, data.classes.names.index(label)) for text, label, _ in told["validation"]
    )
    assert len(read_texts(data, "train", 10)[0]) in range(8, 12)


def test_words_may_change_but_not_the_class(classify, quiet):
    changed = AugmentConfig(word_deletion=0.5, word_swap=0.2, token_dropout=0.1, labels=("oos", "bill"))
    data = open_data(classify(augment=changed, label_shares=("uniform",), batch_size=6), log=quiet)
    plain = {row["text"]: row["label"] for row in rows_of()}
    found = held(data, [batch for _ in range(3) for batch in epoch(data)])
    assert all(label in text or label != "card" for text, label, _ in found)
    assert {text for text, label, _ in found if label == "card"} <= plain.keys()  # not among augment.labels
    assert any(text not in plain for text, label, _ in found if label == "oos")
    shares = np.array([sum(label == name for _, label, _ in found) for name in data.classes.names])
    assert shares.min() > 0


def test_a_text_whose_words_are_all_deleted_keeps_its_target(classify, quiet):
    data = open_data(classify(augment=AugmentConfig(word_deletion=1.0)), log=quiet)
    assert len(held(data, epoch(data))) >= sum(data.classes.counts) - data.config.batch_size


def test_long_texts_keep_their_beginning_and_are_counted(classify):
    said = []
    data = open_data(classify(seq_len=24, packing="none", split=SplitConfig(validation=0, test=0)), log=said.append)
    found = held(data, data.eval_batches("train", 4, (0, 4)))
    longer = [row for row in rows_of() if len(row["text"].encode()) > 24]
    assert len(found) == len(rows_of())
    kept = {row["text"].encode()[:24].decode(errors="replace"): row["label"] for row in rows_of()}
    assert {text: label for text, label, _ in found} == kept
    assert any(
        f"{len(longer)} of {len(rows_of())} texts are longer than config.data.seq_len=24" in line for line in said
    )


TEMPLATE = "客户 says: {text}\nIntent:"


def test_a_template_stands_around_each_text_and_its_end_is_kept(classify, tmp_path, quiet):
    whole = {TEMPLATE.replace("{text}", row["text"]): row["label"] for row in rows_of()}
    data = open_data(classify(text_template=TEMPLATE, seq_len=128), log=quiet)
    splits = ("train", "validation", "test")
    told = [one for split in splits for one in held(data, data.eval_batches(split, 4, (0, 4)))]
    assert {text: label for text, label, _ in told} == whole
    assert sorted(text for split in splits for text in read_texts(data, split, 1000)[0]) == sorted(
        row["text"] for row in rows_of()
    )
    plain = open_data(classify(), log=quiet)  # is prepared apart
    assert not held(plain, plain.eval_batches("test", 4, (0, 4)))[0][0].endswith("Intent:")
    said = []
    short = open_data(
        classify(text_template=TEMPLATE, seq_len=40, add_bos=True, split=SplitConfig(validation=0, test=0)),
        log=said.append,
    )
    found = held(short, short.eval_batches("train", 4, (0, 4)))
    kept = {text.encode()[-39:].decode(errors="replace") if len(text.encode()) > 39 else text for text in whole}
    assert {text for text, *_ in found} == kept
    assert any("are longer than config.data.seq_len=40" in line for line in said)
    assert all(batch["tokens"][row, 0] == short.tokenizer.special.bos for batch in short.eval_batches("train", 4, (0, 4))
               for row in range(4) if batch["segments"][row, 0])  # fmt: skip
    texts = [row["text"] for row in rows_of()]
    order, batches = batches_of(short.config, short.tokenizer, texts, 4)
    answers = dict(zip(order.tolist(), (text for text, *_ in held(short, batches))))
    assert [answers[i] for i in range(len(texts))] == [
        text.encode()[-39:].decode(errors="replace") if len(text.encode()) > 39 else text for text in whole
    ]


def test_a_prepared_folder_of_another_template_is_refused(classify, tmp_path, quiet):
    prepare_to(tmp_path / "out", classify(text_template=TEMPLATE), 1, quiet)
    keys = {"prepared": str(tmp_path / "out"), "path": ""}
    assert open_data(classify(text_template=TEMPLATE, **keys), log=quiet).classes.names == ("bill", "card", "oos")
    with pytest.raises(ConfigError, match=r"config.data.text_template='', but .* was prepared with '客户 says"):
        open_data(classify(**keys), log=quiet)


def test_a_file_for_each_split(classify, tmp_path, quiet):
    paths = {split: write(tmp_path / f"{split}.jsonl", rows_of(split)) for split in ("train", "validation", "test")}
    keys = {f"{split}_path": path for split, path in paths.items()}
    data = open_data(classify(**keys), log=quiet)
    for split in paths:
        found = held(data, data.eval_batches(split, 4, (0, 4)))
        assert {text: label for text, label, _ in found} == {row["text"]: row["label"] for row in rows_of(split)}
    del keys["validation_path"]
    data = open_data(classify(**keys), log=quiet)  # validation is dealt from train, test stays whole
    sizes = {split: len(held(data, data.eval_batches(split, 4, (0, 4)))) for split in paths}
    assert sizes["test"] == 70
    assert sizes["validation"] in range(10, 18)
    assert sizes["train"] + sizes["validation"] == 70
    write(tmp_path / "test.jsonl", [*rows_of("test"), rows_of("train")[3]])
    with pytest.raises(UserError, match=r"1 texts of test are in train too; .*train.jsonl:4 repeats"):
        open_data(classify(**keys), log=quiet)


def test_labels_may_be_numbers(classify, quiet):
    rows = [{**row, "label": {"bill": 9, "card": 10, "oos": 2}[row["label"]]} for row in rows_of()]
    data = open_data(classify(rows), log=quiet)
    assert data.classes.names == ("2", "9", "10")
    assert data.classes.counts[0] < data.classes.counts[1] < data.classes.counts[2]
    named = open_data(classify(rows, labels=("10", "9", "2")), log=quiet)
    assert named.classes.counts == data.classes.counts[::-1]
    assert named.fingerprint != data.fingerprint
    assert open_data(classify(rows, labels=("2", "9", "10")), log=quiet).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("weights", "formula"),
    [
        (("inverse",), lambda n: n.sum() / (len(n) * n)),
        (
            ("effective",),
            lambda n: n.sum() * (1 / (1 - 0.999**n)) / (n / (1 - 0.999**n)).sum(),
        ),
        (("oos=5", "card=0.5", "bill=2"), lambda n: np.array([2, 0.5, 5])),
    ],
)
def test_class_weights(classify, quiet, weights, formula):
    data = open_data(classify(class_weights=weights), log=quiet)
    expected = formula(np.array(data.classes.counts, float))
    np.testing.assert_allclose(data.classes.weights, expected, rtol=1e-6)
    found = {label: weight for _, label, weight in held(data, epoch(data))}
    np.testing.assert_allclose([found[name] for name in data.classes.names], expected, rtol=1e-6)
    assert {weight for *_, weight in held(data, data.eval_batches("validation", 4, (0, 4)))} == {1.0}
    if len(weights) == 1:
        assert np.average(data.classes.weights, weights=data.classes.counts) == pytest.approx(1)


def test_texts_are_read_in_the_order_of_their_file(classify, tmp_path, quiet):
    data = open_data(classify(), log=quiet)
    texts = [row["text"] for row in rows_of("new")] + ["x", "\u200b"]
    file = write(tmp_path / "new.jsonl", [{"text": text} for text in texts])
    assert read_file(data.config, file) == texts
    for packing in ("best_fit", "none"):
        order, batches = batches_of(replace(data.config, packing=packing), data.tokenizer, texts, 4)
        found = [text for text, *_ in held(data, batches)]
        answers = dict(zip(order.tolist(), found))
        assert [answers[i] for i in range(len(texts) - 1)] == [text[:96].encode()[:96].decode() for text in texts[:-1]]
        assert len(found) == len(texts)
    with pytest.raises(UserError, match=r"bad.jsonl:1: no field 'text'"):
        read_file(data.config, write(tmp_path / "bad.jsonl", [{"words": "a"}]))
    with pytest.raises(UserError, match="expected a text, found a prompt"):
        read_file(data.config, write(tmp_path / "pair.jsonl", [{"prompt": "a", "completion": "b"}]))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"labels": ("bill", "card", "oos", "fraud")}, "class 'fraud' has no training document"),
        ({"labels": ("bill", "card")}, "config.data.labels lacks 'oos', which the train split has"),
        ({"class_weights": ("bill=1", "card=1")}, "give every class a weight; missing: oos"),
        ({"class_weights": ("bill=1", "card=1", "oos=1", "cart=2")}, "no class 'cart'; did you mean 'card'"),
        ({"augment": AugmentConfig(word_swap=0.1, labels=("ooz",))}, "no training document of class 'ooz'"),
    ],
)
def test_classes_that_do_not_fit(classify, quiet, keys, words):
    with pytest.raises(UserError, match=re.escape(words)):
        open_data(classify(**keys), log=quiet)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"streaming": True}, "config.data.streaming: labelled texts are prepared first"),
        ({"split": SplitConfig(by="position")}, "config.data.split.by: the label belongs to the whole text"),
        ({"sources": {"a": SourceConfig(path="x.jsonl")}}, "config.data.sources: a: give each a label_field"),
        ({"labels": ("a", "a")}, "config.data.labels: names a class twice"),
        ({"labels": ("a",)}, "config.data.labels: one class leaves nothing to tell apart"),
        ({"labels": ("a", "")}, "config.data.labels: a class without a name"),
        ({"class_weights": ("a=0", "b=1")}, "config.data.class_weights: a class of weight 0 is never learned"),
        ({"class_weights": ("heavy",)}, "config.data.class_weights: expected NAME=WEIGHT"),
        ({"augment": AugmentConfig(fill_in_middle=0.5)}, "config.data.augment: span_corruption and fill_in_middle"),
        ({"augment": AugmentConfig(window_shift=True)}, "config.data.augment.window_shift: only the beginning"),
        ({"text_template": "Intent:"}, "config.data.text_template: must hold {text} once, got 'Intent:'"),
        ({"text_template": "{text} or {text}"}, "config.data.text_template: must hold {text} once"),
        (
            {"text_template": "{text}!", "augment": AugmentConfig(word_swap=0.1)},
            "config.data.text_template: augmentation that",
        ),
        ({"task": "lm", "text_template": "{text}!"}, "config.data.text_template: only config.data.task='classify'"),
        ({"task": "classification"}, "config.data.task: must be one of lm, classify"),
        ({"task": "lm", "labels": ("a", "b")}, "config.data.labels: only config.data.task='classify' reads it"),
        ({"task": "lm", "class_weights": ("inverse",)}, "config.data.class_weights: only config.data.task='classify'"),
        ({"loss_on_prompt": True}, "config.data.loss_on_prompt: a classifier learns no text"),
    ],
)
def test_keys_that_do_not_go_together(classify, keys, words):
    assert any(problem.startswith(words) for problem in check_data_config(classify(**keys))), check_data_config(
        classify(**keys)
    )


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": "a b", "label": "x"}, {"text": "no"}], r"data.jsonl:2: no field 'label'"),
        ([{"text": f"t{i}", "label": "x"} for i in range(20)], "all training documents have the label 'x'"),
        (
            [{"prompt": f"p{i}", "completion": "c", "label": "xy"[i % 2]} for i in range(20)],
            "prompt/completion rows and conversations have no class",
        ),
        (
            [
                {"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "b"}], "label": "xy"[i % 2]}
                for i in range(20)
            ],
            "prompt/completion rows and conversations have no class",
        ),
    ],
)  # fmt: skip
def test_rows_that_are_no_labelled_texts(classify, quiet, rows, words):
    with pytest.raises(UserError, match=words):
        open_data(classify(rows, split=SplitConfig(validation=0, test=0)), log=quiet)


def test_a_label_that_training_never_shows(classify, tmp_path, quiet):
    paths = {f"{split}_path": write(tmp_path / f"{split}.jsonl", rows_of(split)) for split in ("train", "test")}
    write(tmp_path / "test.jsonl", [*rows_of("test"), {"text": "new", "label": "fraud"}])
    with pytest.raises(UserError, match="1 labels have no training document: 'fraud' in test of test"):
        open_data(classify(**paths), log=quiet)


def test_the_refusal_class_needs_validation_rows(classify, tmp_path, quiet):
    few = {"card": 3, "bill": 3}
    keys = {"train_path": write(tmp_path / "t.jsonl", rows_of()), "validation_path": write(tmp_path / "v.jsonl", rows_of("v", few))}  # fmt: skip
    data = open_data(classify(**keys), log=quiet)
    data.classes.check_refusal(data.prepared, "card")
    with pytest.raises(ConfigError, match="no validation row has the class 'oos'"):
        data.classes.check_refusal(data.prepared, "oos")
    with pytest.raises(ConfigError, match="no class 'cart'; did you mean 'card'"):
        data.classes.check_refusal(data.prepared, "cart")


def test_show_and_explain_name_the_classes(classify, quiet):
    data = open_data(classify(batch_size=2), log=quiet)
    page = "\n".join(show(data, "validation", 2, colour=False))
    for text, label, _ in held(data, [next(data.eval_batches("validation", 2, (0, 2)))]):
        assert f"    {text} [[-> {label}]]" in page
    page = "\n".join(explain_row(data, 0, 0))
    batch = next(data.train_batches(0, (0, 1)))
    for text, label, _ in held(data, [batch]):
        assert re.search(rf"class {label}\n +as it was: {re.escape(text[:20])}", page), page
