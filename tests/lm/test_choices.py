"""Does training move the accuracy from chance up, are all ways to normalise what they say, and is bad input one clear line?"""

import json
import random

import numpy as np
import pytest

from data_pipeline.batch import open_data
from data_pipeline.config import DataConfig, SourceConfig, SplitConfig, TokenizerConfig
from data_pipeline.questions import Question, encode_questions, read_questions
from lm.build import make_run
from lm.choices import accuracies, find_classes, main, normalise, summarise, write_rows
from lm.clock import Clock
from lm.config import Config, ConfigError, ModelConfig, OptimConfig, TrainConfig, UserError
from lm.likelihood import score
from lm.train import train

LETTERS = "abcdefgh"


def quiz(count=160):
    """Which capital is it? Three are offered."""
    rng = random.Random(1)
    for i in range(count):
        letter = LETTERS[i % len(LETTERS)]
        choices = [letter.upper(), *rng.sample(LETTERS.replace(letter, "").upper(), 2)]
        rng.shuffle(choices)
        yield {"question": f"{i:03d} {letter}:", "choices": choices, "answer": choices.index(letter.upper())}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a tiny model on the quiz and on its questions as a labelled set, and what it knew of the quiz before."""
    folder = tmp_path_factory.mktemp("quiz")
    rows = list(quiz())
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        {"text": row["question"][4:], "id": row["question"], "label": row["choices"][row["answer"]].lower()}
        for row in rows
    ]
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in words))
    labelled = {
        "label_field": "label",
        "prompt_template": "{id} {text}",
        "label_words": tuple(f"{c}=is {c.upper()}" for c in LETTERS),
    }
    sources = {
        "quiz": SourceConfig(path=str(folder / "quiz.jsonl")),
        "words": SourceConfig(path=str(folder / "words.jsonl"), **labelled),
    }
    data_config = DataConfig(
        sources=sources, tokenizer=TokenizerConfig(kind="bytes"), seq_len=16, batch_size=32, cache_dir=str(folder / "cache"),
        split=SplitConfig(validation=0.2, test=0.0), packing="none",
    )  # fmt: skip
    model = ModelConfig(layers=2, dim=32, heads=4, mlp_dim=64)
    data = open_data(data_config, log=lambda text: None)
    train_config = TrainConfig(steps=150, eval_every=0)
    config = Config(data=data_config, model=model, optim=OptimConfig(peak_lr=1e-2, warmup_steps=0), train=train_config)
    (folder / "run").mkdir()
    run, _, parts = make_run(config, data, folder / "run", None, lambda text: None, Clock(0.0))
    asked = read_questions(data_config, data, data.tokenizer, "", "validation", False, "", print)
    asked, _ = encode_questions(asked, data.tokenizer, False, False, 16, print)
    pairs = [pair for row in asked.rows for pair in row.pairs]
    found = score(parts.model, run.state.params, pairs, parts.mesh)
    before, _ = accuracies(asked.rows, found, found)
    train(run)
    run.logger.close()
    data.tokenizer.save(folder / "run" / "tokenizer")
    return folder, before


@pytest.fixture
def folder(trained):
    return trained[0]


@pytest.fixture
def ask(folder, capsys):
    """flags -> the JSON line that the command prints, and what it says."""

    def ask(*flags):
        capsys.readouterr()
        main([f"--workdir={folder / 'run'}", "--step=last", *flags])
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    return ask


@pytest.mark.slow
def test_training_moves_the_accuracy_from_chance_up(ask, trained, tmp_path):
    before = trained[1]
    after, _ = ask(f"--out={tmp_path / 'rows.jsonl'}")
    assert (after["rows"], after["chance"]) == (before["rows"], pytest.approx(1 / 3))
    assert before["none"]["accuracy"] < 0.65
    assert after["none"]["accuracy"] > 0.9
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert np.mean([row["answer"] == row["predicted"] for row in rows]) == after["none"]["accuracy"]
    whole = {row["question"]: row for row in quiz()}
    assert all(whole[row["prompt"]]["choices"] == row["choices"] for row in rows)
    assert all(row["scores"][row["predicted"]] == max(row["scores"]) for row in rows)


def test_labels_in_words_too(ask, tmp_path):
    after, said = ask("--labels", f"--out={tmp_path / 'rows.jsonl'}", "--normalise=length", "--given=N/A")
    assert (after["chance"], after["end"]) == (1 / 8, True)
    assert after["none"]["accuracy"] > 0.9
    row = json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])
    assert list(row["scores"]) == list(LETTERS)
    assert after["none"]["macro_f1"] > 0.9
    assert sorted(after["recall"]) == sorted(LETTERS)
    assert list(after["recall"].values()) == sorted(after["recall"].values())
    assert f"| macro F1 | {after['length']['macro_f1']:.4f} |" in said
    assert row["text"][-2] == row["label"] == row["predicted"]


def test_bad_input_is_said_before_anything_is_scored(ask, folder, tmp_path):
    def refused(words, *flags, kind=UserError):
        with pytest.raises(kind, match=words):
            ask(*flags)

    refused("--normalise is one of none, length", "--normalise=all", kind=ConfigError)
    refused("--end is one of auto, yes, no", "--end=maybe", kind=ConfigError)
    refused("no 'test' split", "--split=test")
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "a", "choices": ["A", "B"], "answer": 2}\n')
    refused(f"{file}:1: field 'answer' is 2", f"--file={file}")
    file.write_text("")
    refused("file is empty", f"--file={file}")
    file.write_text('{"id": "1", "text": "z:", "label": "z"}\n')
    refused(f"a class that no training row has: {file}:1: 'z'", f"--file={file}", "--labels")
    file.write_text('{"question": "a", "choices": ["A", "Bbbbbbbbbbbbbbbbbbb"], "answer": 0}\n')
    refused("every one has an answer longer than 16 tokens", f"--file={file}")
    result, said = ask(f"--file={file}", "--seq_len=32")
    assert (result["rows"], said.count("warning")) == (1, 0)
    refused("No such file", f"--file={file}", "--seq_len=32", f"--out={tmp_path / 'none' / 'x'}")
    other = tmp_path / "config.py"
    other.write_text(f"""
from configs import base
def get_config(word=''):
    c = base.get_config()
    c.data.path = {str(folder / "quiz.jsonl")!r}
    c.data.tokenizer.kind = "char" if word else "auto"
    c.data.cache_dir = {str(tmp_path / "cache")!r}
    return c
""")
    refused("tokenizer is not the one that", f"--config={other}:char")
    result, _ = ask(f"--config={other}", f"--config.data.tokenizer.path={folder / 'run' / 'tokenizer'}")
    assert result["none"]["accuracy"] > 0.5


def test_the_ways_to_normalise():
    sums, tokens, sizes, priors = map(np.array, ([-4.0, -3.0], [4, 1], [8, 2], [-3.5, -1.0]))
    assert normalise("none", sums, tokens, sizes, priors).tolist() == [-4, -3]
    assert normalise("length", sums, tokens, sizes, priors).tolist() == [-1, -3]
    assert normalise("bytes", sums, tokens, sizes, priors).tolist() == [-0.5, -1.5]
    assert normalise("unconditional", sums, tokens, sizes, priors).tolist() == [-0.5, -2.0]
    rows = [Question("f:1", "q", (" 好的", " no"), 0, (((1,), (2, 3)), ((1,), (4,)))),
            Question("f:2", "q", (" a", " b", " c"), 2, tuple(((1,), (n,)) for n in (5, 6, 7)))]  # fmt: skip
    found, before = np.array([-6.0, -3.0, -2.0, -1.0, -1.0]), np.array([-9.0, -1.0, -1.0, -1.0, -1.0])
    result, scores = accuracies(rows, found, before)
    assert [part.tolist() for part in scores["bytes"]] == [[-1, -1.5], [-2, -1, -1]]
    assert [part.tolist() for part in scores["length"]] == [[-3, -3], [-2, -1, -1]]
    assert [result[way]["accuracy"] for way in ("none", "length", "bytes", "unconditional")] == [0, 0.5, 0.5, 0.5]
    assert [result[way]["ties"] for way in ("none", "length")] == [1, 2]
    assert result["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_answers_that_all_rows_have_are_classes_in_any_order():
    def rows(*of):
        return [Question(f"f:{n}", "q", answers, right, (((1,), (2,)),) * 2) for n, (answers, right) in enumerate(of)]

    asked = rows(((" yes", " no"), 0), ((" no", " yes"), 1), ((" yes", " no"), 1), ((" no", " yes"), 1))
    classes = find_classes(asked, ())
    assert classes.names == ("no", "yes")
    scores = np.array(
        [-1.0, -2.0, -1.0, -2.0, -1.0, -2.0, -2.0, -1.0]
    )  # says yes, no, yes, yes; right: yes, yes, no, yes
    result, by_way = accuracies(asked, scores, scores, classes)
    assert (result["most_common"], result["none"]["accuracy"]) == (0.75, 0.5)
    assert result["none"]["macro_f1"] == pytest.approx((0 + 4 / 6) / 2)
    assert result["none"]["weighted_f1"] == pytest.approx(3 / 4 * 4 / 6)
    report = classes.report(by_way["none"], [row.right for row in asked])
    assert (report["confusion"], report["accuracy"]) == ([[0, 1], [1, 2]], 0.5)
    assert [c["recall"] for c in report["per_class"]] == [0, pytest.approx(2 / 3)]
    assert find_classes(rows((("a", "b"), 0), (("a", "c"), 0)), ()) is None
    result, _ = accuracies(asked, scores, scores)
    assert "macro_f1" not in result["none"]


def test_the_standard_error_is_that_of_a_mean():
    scores = [np.array([0.0, 1.0])] * 10
    right = [1] * 7 + [0] * 3
    hits = np.array([1.0] * 7 + [0.0] * 3)
    result = summarise(scores, right)
    assert (result["accuracy"], result["stderr"]) == (0.7, pytest.approx(hits.std(ddof=1) / np.sqrt(10)))


def test_a_row_is_written_with_its_place(tmp_path):
    rows = [Question("f:1", "问", (" 好", " 坏"), 1)]
    write_rows(str(tmp_path / "out"), rows, (), [np.array([-1.0, -2.0])])
    assert json.loads((tmp_path / "out").read_text("utf-8")) == {
        "where": "f:1", "prompt": "问", "choices": ["好", "坏"], "answer": 1, "predicted": 0, "scores": [-1.0, -2.0],
    }  # fmt: skip
