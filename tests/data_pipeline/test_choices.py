"""Do multiple choice, labels in words and pairs of texts become the right documents, from any format, and bad rows a clear line?"""

import dataclasses
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipeline.choices import join_answers, read_choices
from data_pipeline.config import SourceConfig, SplitConfig
from data_pipeline.document_reader import DocumentReader, Texts
from data_pipeline.questions import encode_questions, read_questions
from data_pipeline.records import Bad
from data_pipeline.schema import ConfigError, UserError
from data_pipeline.tasks import to_ids

ASKED = SourceConfig(label_field="label", prompt_template="{text}\nIntent:", label_words=("a=alpha ray", "c=gamma"))


def write_json(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def quiz(count=40):
    rng = random.Random(0)
    return [
        {
            "question": f"Question {i}: {rng.random()}?",
            "choices": [f"one {i}", "好的", "three  words here"],
            "answer": i % 3,
        }
        for i in range(count)
    ]


def labelled(count=60):
    return [
        {"text": f"row {i} says {i * 7919 % 100}", "label": "abc"[i % 3], "other": f"second {i}"} for i in range(count)
    ]


def documents(data, number=0, split="train"):
    shard = data.prepared.shard(number, split)
    ids = [shard.ids[a:b] for a, b in zip(shard.offsets, shard.offsets[1:])]
    return [
        (data.tokenizer.decode(x[: max(n, 0)].tolist()), data.tokenizer.decode(x[max(n, 0) :].tolist()))
        for x, n in zip(ids, shard.loss_start)
    ]


def test_choices_from_any_format_are_the_prompt_and_the_right_answer(opened, tmp_path):
    rows = quiz()
    write_json(tmp_path / "a.jsonl", rows)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    cells = [
        '"{}","{}",{}'.format(r["question"], json.dumps(r["choices"]).replace('"', '""'), "ABC"[r["answer"]])
        for r in rows
    ]
    (tmp_path / "c.csv").write_text("\n".join(["question,choices,answer", *cells]), "utf-8")
    arc = [
        {"question": r["question"], "choices": {"text": r["choices"], "label": [*"xyz"]}, "answer": "xyz"[r["answer"]]}
        for r in rows
    ]
    write_json(tmp_path / "d.jsonl", arc)
    expected = sorted((row["question"], " " + row["choices"][row["answer"]]) for row in rows)
    for name in ("a.jsonl", "b.parquet", "c.csv", "d.jsonl"):
        data = opened(tmp_path / name, split=SplitConfig(validation=0, test=0))
        assert sorted(documents(data)) == expected, name
        batch = next(data.train_batches(0, (0, 8)))
        learned = batch["targets"][batch["weights"] > 0]
        assert set(data.tokenizer.decode(learned.tolist())) <= set("".join(a for _, a in expected))


BAD = {
    "range": ({"answer": 3}, "is 3, and the 3 choices have numbers from 0"),
    "negative": ({"answer": -1}, "is -1, and"),
    "letter": ({"answer": "D"}, "is 'D', expected a number from 0 to 2, a letter from A to C, or the text"),
    "bool": ({"answer": True}, "field 'answer' is bool"),
    "none": ({"answer": None}, "field 'answer' is null"),
    "two meanings": ({"choices": ["1", "2", "3"], "answer": "1"}, "the text of choice 0 and the number of choice 1"),
    "one choice": ({"choices": ["a"], "answer": 0}, "has 1, expected two choices or more"),
    "equal": ({"choices": ["a", "b", " a"]}, "choices 0 and 2 are both 'a'"),
    "empty": ({"choices": ["a", " "]}, "choice 1 is empty"),
    "number": ({"choices": ["a", 3]}, "choice 1 is int, expected text"),
    "text": ({"choices": "a, b"}, "is text, expected a list, or such a list as JSON"),
    "surrogate": ({"choices": ["a", "\ud800"]}, "lone surrogate"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_of_choices_says_its_place(opened, tmp_path, kind):
    change, words = BAD[kind]
    row = {"question": "q?", "choices": ["a", "b", "c"], "answer": 0, **change}
    path = tmp_path / "quiz.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*quiz(3), row]), "utf-8")
    with pytest.raises(UserError, match=f"^{path}:4: ") as caught:
        opened(path)
    assert words in str(caught.value)


@pytest.mark.parametrize(("answer", "right"), [(1, 1), (1.0, 1), ("b", 1), ("B", 1), ("1", 1), (" c", 2), ("C", 2)])
def test_an_answer_is_a_number_a_letter_or_the_text(answer, right):
    record = read_choices({"prompt": "q", "choices": ["a", "b", "c"], "answer": answer}, SourceConfig())
    assert record.choices.index(record.completion) == right


def test_labels_in_words_and_their_template(opened, tmp_path):
    path = write_json(tmp_path / "rows.jsonl", labelled())
    data = opened(sources={"x": dataclasses.replace(ASKED, path=str(path))}, split=SplitConfig(validation=0, test=0))
    word = {"a": " alpha ray", "b": " b", "c": " gamma"}
    assert sorted(documents(data)) == sorted((f"{row['text']}\nIntent:", word[row["label"]]) for row in labelled())
    assert sorted(data.prepared.label_names(0, "train")) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label_words": ("a=x", "nothing")}, "expected CLASS=WORD, got 'nothing'"),
        ({"label_words": ("a=x", "b=x")}, "'b' has the word of another class, 'x'"),
        ({"label_words": ("a=x", "a=y")}, "names 'a' twice"),
        ({"label_words": ("d=x",)}, "label_words: no training document of class 'd'"),
        ({"label_field": ""}, "label_field: which field holds the class?"),
        ({"form": "text"}, "prompt_template: has no use with form='text'"),
        ({"prompt_template": "{text}{word}"}, "rows.jsonl:1: no field 'word', which prompt_template names"),
        ({"pair_field": "second"}, "pair_field: has no use with a prompt_template"),
        ({"pair_field": "text", "prompt_template": ""}, "pair_field: is the text_field, 'text', too"),
    ],
)  # fmt: skip
def test_faults_of_the_keys_are_named(opened, tmp_path, change, words):
    path = write_json(tmp_path / "rows.jsonl", labelled(12))
    source = dataclasses.replace(ASKED, path=str(path), **change)
    with pytest.raises(UserError) as caught:
        opened(sources={"x": source})
    assert words in str(caught.value)


def test_a_pair_is_one_text_and_its_order_counts(opened, tmp_path):
    rows = [{"a": f"first {i}", "b": f"then {i}", "label": "x"} for i in range(20)]
    rows += [{"a": row["b"], "b": row["a"], "label": "y"} for row in rows]
    keys = {"text_field": "a", "pair_field": "b", "label_field": "label"}
    path, source = tmp_path / "pairs.jsonl", SourceConfig(path=str(tmp_path / "pairs.jsonl"), **keys)
    write_json(path, [*rows, rows[0]])
    whole = {"sources": {"x": source}, "split": SplitConfig(validation=0, test=0)}
    data = opened(**whole)
    expected = sorted(f"{row['a']}\n{row['b']}" for row in rows)  # the one that repeats is dropped, the swapped are not
    assert sorted(text for _, text in documents(data)) == expected
    other = dataclasses.replace(source, pair_separator=" | ", form="label", prompt_template="", answer_separator=" = ")
    data = opened(**{**whole, "sources": {"x": other}})
    assert sorted(documents(data))[0] == ("first 0 | then 0", " = x")
    for bad, words in (
        ({"a": "c", "b": "  ", "label": "x"}, "field 'b' is empty"),
        ({"a": "c", "label": "x"}, "no field 'b', which pair_field"),
    ):
        write_json(path, [rows[0], bad])
        with pytest.raises(UserError, match=f"^{path}:2: {words}"):
            opened(**whole)


def test_streaming_gives_the_same_documents(opened, tmp_path):
    sources = {
        "quiz": SourceConfig(path=str(write_json(tmp_path / "quiz.jsonl", quiz()))),
        "words": dataclasses.replace(ASKED, path=str(write_json(tmp_path / "rows.jsonl", labelled()))),
        "pairs": SourceConfig(path=str(tmp_path / "rows.jsonl"), pair_field="other"),
    }
    prepared, streamed = opened(sources=sources), opened(sources=sources, streaming=True)
    for number, source in enumerate(streamed.sources):
        places, keys, sizes, _ = streamed.prepared.places(number, "train")
        reader = DocumentReader(streamed.config, [Texts(source, places, keys, sizes)], streamed.tokenizer)
        records, _, _ = reader.read(np.arange(len(reader.order)))
        ids, starts, _ = to_ids(records, streamed.tokenizer, False, True)
        got = [
            (streamed.tokenizer.decode(x[: max(n, 0)]), streamed.tokenizer.decode(x[max(n, 0) :]))
            for x, n in zip(ids, starts)
        ]
        assert sorted(got) == sorted(documents(prepared, number))


def ask(data, tmp_path, file="", split="validation", labels=False, given="", log=print):
    return read_questions(data.config, data, data.tokenizer, str(file), split, labels, given, log)


def test_questions_of_a_split_are_what_preparation_kept_of_it(opened, tmp_path):
    rows = quiz(120)
    path = write_json(tmp_path / "quiz.jsonl", [*rows, *rows[:30]])  # the last are dropped as duplicates
    data = opened(path, split=SplitConfig(validation=0.3, test=0.2))
    found = {split: ask(data, tmp_path, split=split).rows for split in ("train", "validation", "test")}
    assert sorted(int(row.where.rpartition(":")[2]) for part in found.values() for row in part) == list(range(1, 121))
    for split, part in found.items():
        assert sorted((row.prompt, row.answers[row.right]) for row in part) == sorted(documents(data, 0, split))
    assert {row.answers for row in ask(data, tmp_path, file=path).rows} >= {tuple(" " + c for c in rows[7]["choices"])}


def test_every_class_is_an_answer_of_a_labelled_row(opened, tmp_path):
    path = write_json(tmp_path / "rows.jsonl", labelled())
    data = opened(sources={"x": dataclasses.replace(ASKED, path=str(path))}, split=SplitConfig(validation=0.3, test=0))
    asked = ask(data, tmp_path, labels=True, given="N/A")
    assert (asked.names, asked.blank) == (("a", "b", "c"), "N/A\nIntent:")
    assert {row.answers for row in asked.rows} == {(" alpha ray", " b", " gamma")}
    assert sorted((row.prompt, row.answers[row.right]) for row in asked.rows) == sorted(
        documents(data, 0, "validation")
    )
    strange = write_json(tmp_path / "more.jsonl", [*labelled(2), {"text": "t", "label": "zebra"}])
    with pytest.raises(UserError, match=f"1 rows have a class that no training row has: {strange}:3: 'zebra'"):
        ask(data, tmp_path, file=strange, labels=True)
    with pytest.raises(UserError, match=r"has no row with choices .* add --labels"):
        ask(data, tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl: file is empty"):
        ask(data, tmp_path, file=tmp_path / "empty.jsonl", labels=True)
    with pytest.raises(UserError, match="--file: "):
        ask(data, tmp_path, file=tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="0 classes with words"):
        ask(opened(path), tmp_path, labels=True)
    same = dataclasses.replace(ASKED, path=str(path), label_words=("a=b",))
    with pytest.raises(ConfigError, match="have the same word"):
        ask(opened(sources={"x": same}), tmp_path, labels=True, split="train")


def test_ids_are_those_of_training_cut_as_it_cuts(opened, tmp_path):
    rows = [{"question": "x" * n, "choices": ["yes", "no" * m], "answer": 1} for n, m in ((5, 1), (80, 1), (3, 40))]
    data, said = opened(write_json(tmp_path / "quiz.jsonl", [*rows, *quiz()]), min_completion_kept=0.0), []
    file = write_json(tmp_path / "three.jsonl", rows)
    asked, blank = encode_questions(ask(data, tmp_path, file=file), data.tokenizer, True, False, 32, said.append)
    decode = data.tokenizer.decode
    assert [[(decode(p), decode(a)) for p, a in row.pairs] for row in asked.rows] == [
        [("xxxxx", " yes"), ("xxxxx", " no")], [("x" * 28, " yes"), ("x" * 28, " no")],
    ]  # fmt: skip
    assert all(prompt[0] == data.tokenizer.special.bos for row in asked.rows for prompt, _ in row.pairs)
    assert (asked.lost, asked.cut, blank) == (1, 1, (data.tokenizer.special.bos,))
    assert "1 rows have an answer longer than 32 tokens and are left out" in said[0]
    assert "1 prompts lose their beginning" in said[1]
    ended, _ = encode_questions(asked, data.tokenizer, False, True, 64, said.append)
    assert [a[-1] for row in ended.rows for _, a in row.pairs] == [data.tokenizer.special.eos] * 4
    with pytest.raises(UserError, match="no row is left to score"):
        encode_questions(asked, data.tokenizer, False, True, 2, said.append)


def test_answers_take_over_the_white_space_of_the_prompt():
    assert join_answers("Q: \n", ["a", "b"], " ") == ("Q:", (" \na", " \nb"))
    assert join_answers("问：", ["好"], "") == ("问：", ("好",))
    assert isinstance(read_choices({"prompt": 3, "choices": ["a", "b"], "answer": 0}, SourceConfig()), Bad)
