"""Whole runs of classifiers, and the commands that read them or must not."""

import json
import re
import sys

import jax
import numpy as np
import pytest

import launch
from lm import classify, evaluate, generate, show
from lm.checkpoint import load, stored_shapes
from lm.config import UserError
from lm.hf.__main__ import main as hf
from lm.hosts import StopFlag
from lm.serve.__main__ import main as serve
from lm.summary import CLASSIFIED


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labelled(split, n=24):
    return [
        {"text": f"{split} {i} {['where is my card', 'pay the bill', 'tell a joke'][i % 3]}", "label": ["card", "bill", "oos"][i % 3]}
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classify")
    for split in ("train", "validation", "test"):
        write(folder / f"{split}.jsonl", labelled(split, 48 if split == "train" else 24))
    write(folder / "corpus.jsonl", [{"text": f"{i} the cat sat on a mat"} for i in range(60)])
    return folder


def train(place, workdir, *flags, config="classify.py", files=("train", "validation", "test")):
    """Runs launch.main; returns its exit code."""
    root = launch.__file__.rsplit("/", 1)[0]
    words = [f"--config={root}/configs/{config}", f"--workdir={place / workdir}", "--config.data.seq_len=32"]
    words += [f"--config.data.{split}_path={place / split}.jsonl" for split in files]
    words += [f"--config.data.cache_dir={place}/cache", "--config.data.batch_size=8"]
    sizes = ["layers=4", "dim=16", "heads=2"] if not any("init.source" in flag for flag in flags) else []
    with pytest.raises(SystemExit) as ended:
        launch.main([*words, *(f"--config.model.{size}" for size in sizes), *flags])
    return ended.value.code


def pretrain(place, workdir, tied):
    flags = [f"--config.data.path={place}/corpus.jsonl", "--config.data.tokenizer.kind=bytes", "--config.train.steps=1"]
    flags += ["--config.train.eval_every=0", f"--config.model.tie_embeddings={tied}", "--config.optim.warmup_steps=0"]
    assert train(place, workdir, *flags, config="base.py", files=()) == 0


@pytest.fixture(scope="module")
def tuned(place):
    """A fine-tune of the top two of four layers of a language model with a head of its own."""
    pretrain(place, "base", False)
    flags = [f"--config.init.source={place}/base", "--config.train.refusal=oos", "--config.optim.warmup_steps=2"]
    flags += ["--config.train.eval_every=5", "--config.train.epochs=2", "--config.data.text_template={text}?"]
    assert train(place, "tuned", *flags, config="classify.py:top") == 0
    return flags


def params_of(workdir, step):
    shapes = {
        p.removeprefix("params/"): leaf for p, leaf in stored_shapes(workdir, step).items() if p.startswith("params/")
    }
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {p: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding) for p, leaf in shapes.items()}
    return {p: np.asarray(leaf) for p, leaf in load(workdir, step, abstract, "params/").items()}


def read(path):
    return json.loads(path.read_text())


def check_frozen(base, tuned, step):
    before, after = params_of(base, 1), params_of(tuned, step)
    assert after["classifier"].shape == (16, 3)
    assert "head" not in after
    for path, leaf in after.items():
        moves = re.match(r"block_0[23]|norm_out|classifier", path)
        assert path == "classifier" or np.array_equal(before[path], leaf) == (not moves), path


@pytest.mark.slow
def test_a_fine_tune_leaves_what_scripts_read(place, tuned, capsys):
    summary = read(place / "tuned/summary.json")
    for key in ("eval/accuracy", "eval/macro_f1", "baseline/majority/accuracy", "baseline/tfidf/accuracy", "baseline/tfidf/macro_f1"):  # fmt: skip
        assert 0 <= summary[key] <= 1, key
    assert summary["baseline/majority/accuracy"] == pytest.approx(1 / 3)
    assert summary["baseline/tfidf/accuracy"] == 1
    check_frozen(place / "base", place / "tuned", summary["steps"])
    saved = read(place / "tuned/config.json")
    assert saved["data"]["labels"] == ["bill", "card", "oos"]
    assert saved["train"]["class_counts"] == [16, 16, 16]
    card = (place / "tuned/README.md").read_text()
    assert "Classes, validation split" in card
    assert "| tfidf | 1.0000" in card
    assert "![confusion]" in card
    assert read(place / "tuned/decision.json")["decision"]["refusal"] == 2
    assert train(place, "tuned", *tuned, config="classify.py:top") == 0
    assert "nothing to do" in capsys.readouterr().out


def told(capsys, *words):
    """The lines of JSON that lm.classify prints."""
    capsys.readouterr()
    classify.main(list(words))
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_texts_and_splits_are_told(place, tuned, capsys):
    workdir = f"--workdir={place}/tuned"
    (page,) = told(capsys, workdir, "--split=test")
    report = read(place / "tuned/classification-test.json")
    assert page["accuracy"] == report["model"]["accuracy"]
    assert report["model"]["rows"] == 24
    assert (place / "tuned/confusion-test.png").is_file()
    rows = told(capsys, workdir, f"--file={place}/test.jsonl", "--batch_size=8")
    assert [row["text"] for row in rows] == [row["text"] for row in labelled("test")]
    hits = np.mean([row["label"] == known["label"] for row, known in zip(rows, labelled("test"))])
    assert hits == pytest.approx(report["decided"]["accuracy"])
    assert all(sum(row["likeliest"].values()) == pytest.approx(1, abs=1e-5) for row in rows)
    (one,) = told(capsys, workdir, f"--text={rows[5]['text']}")
    assert one["probability"] == pytest.approx(rows[5]["probability"], abs=2e-6)
    assert one["label"] == rows[5]["label"]
    told(capsys, workdir, f"--file={place}/test.jsonl", f"--out={place}/told.jsonl")
    lines = (place / "told.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == [row["text"] for row in rows]
    for words, wrong in (
        (["--split=test", "--refusal=joke"], "no class 'joke'"), (["--split=more"], "no 'more' split"),
        (["--text=a", "--refusal=oos"], "--refusal is fitted with --split"), ([], "one of --split=, --text=, --file="),
        ([f"--file={place}/none.jsonl"], "none.jsonl"), ([f"--file={place}/test.jsonl", "--out=/no/such/folder"], "--out"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=re.escape(wrong)):
            classify.main([workdir, *words])
    with pytest.raises(UserError, match="is a language model, not a classifier"):
        classify.main([f"--workdir={place}/base", "--text=a"])


@pytest.mark.slow
def test_what_writes_text_refuses_a_classifier(place, tuned):
    for command, words in ((generate.main, ["--prompt=a"]), (serve, [])):
        with pytest.raises(UserError, match="is a classifier, which writes no text"):
            command([f"--workdir={place}/tuned", *words])
    with pytest.raises(UserError, match=r"data.task='lm', the run in .*tuned 'classify'"):
        evaluate.main(
            [f"--workdir={place}/tuned", "--config=configs/base.py", f"--config.data.path={place}/corpus.jsonl"]
        )


@pytest.mark.slow
def test_a_classifier_goes_out_as_a_folder_and_comes_back(place, tuned, capsys, monkeypatch):
    monkeypatch.setattr("lm.hf.verify.has_transformers", lambda: False)
    hf(["export", f"{place}/tuned", f"{place}/folder"])
    fields = read(place / "folder/config.json")
    assert fields["architectures"] == ["LlamaForSequenceClassification"]
    assert fields["id2label"] == {"0": "bill", "1": "card", "2": "oos"}
    assert fields["pad_token_id"] is not None
    assert fields["text_template"] == "{text}?"
    hf(["import", f"{place}/folder", f"{place}/back"])
    assert read(place / "back/config.json")["data"]["text_template"] == "{text}?"
    texts = [f"--file={place}/test.jsonl"]
    (place / "broken").mkdir()
    for file in (place / "folder").iterdir():
        (place / "broken" / file.name).symlink_to(file)
    (place / "broken/config.json").unlink()
    (place / "broken/config.json").write_text(json.dumps({**fields, "text_template": "no text"}))
    with pytest.raises(UserError, match=r"must hold \{text\} once, got 'no text'"):
        hf(["import", f"{place}/broken", f"{place}/not"])
    (place / "back/decision.json").write_bytes((place / "tuned/decision.json").read_bytes())
    ours, theirs = (told(capsys, f"--workdir={place}/{name}", *texts) for name in ("back", "tuned"))
    for one, other in zip(ours, theirs, strict=True):
        assert (one["text"], one["label"]) == (other["text"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_what_is_refused_before_anything_is_computed(place, monkeypatch):
    monkeypatch.setattr("lm.build.make_phases", lambda *_: pytest.fail("a model was made"))
    pairs = [
        (["--config.train.refusal=joke"], "refusal: no class 'joke'; valid keys: bill, card, oos"),
        (["--config.model.classes=4"], "config.model.classes=4, but the data have 3"),
        (["--config.train.class_counts=1,2"], "config.train.class_counts: give one number a class"),
        (["--config.data.labels=('bill','card','fraud')"], "class 'fraud' has no training document"),
    ]
    for flags, words in pairs:
        with pytest.raises(UserError, match=re.escape(words)):
            launch.main([*arguments(place, "refused"), "--config.data.tokenizer.kind=bytes", *flags])


@pytest.mark.slow
def test_a_resume_with_other_classes_and_sources_that_do_not_fit(place, tuned):
    with pytest.raises(UserError, match=r"config differs from the run in .*data.labels .* \(refused\)"):
        launch.main([*arguments(place, "tuned"), *tuned, "--config.data.labels=('oos','card','bill')"])


def arguments(place, workdir):
    root = launch.__file__.rsplit("/", 1)[0]
    files = [f"--config.data.{split}_path={place / split}.jsonl" for split in ("train", "validation", "test")]
    return [f"--config={root}/configs/classify.py:top", f"--workdir={place / workdir}", *files,
            "--config.data.seq_len=32", "--config.data.batch_size=8", f"--config.data.cache_dir={place}/cache"]  # fmt: skip


@pytest.mark.slow
def test_a_source_of_other_classes(place, tuned, capsys):
    source = [f"--config.init.source={place}/tuned", "--config.train.epochs=1", "--config.train.eval_every=0"]
    source.append("--config.optim.warmup_steps=0")
    assert train(place, "again", *source, config="classify.py:head") == 0
    assert "random:" not in capsys.readouterr().out
    found, before = (
        params_of(place / name, read(place / name / "summary.json")["best_step"]) for name in ("again", "tuned")
    )
    assert 0 < np.abs(found["classifier"] - before["classifier"]).max() < 0.1  # trained on, not anew
    with pytest.raises(
        UserError, match=r"the same classes in another order. Set --config.data.labels=\"\('bill', 'card', 'oos'\)"
    ):
        launch.main([*arguments(place, "other"), *source, "--config.data.labels=('oos','card','bill')"])
    write(place / "odd.jsonl", [{**row, "label": row["label"].upper()} for row in labelled("train", 48)])
    odd = [*arguments(place, "odd")[:2], f"--config.data.path={place}/odd.jsonl", *arguments(place, "odd")[5:], *source]
    with pytest.raises(UserError, match="other classes: it lacks BILL, CARD, OOS and has besides bill, card, oos"):
        launch.main(odd)
    with pytest.raises(UserError, match="freezes the new head"):
        launch.main([*odd, "--config.init.fresh=classifier", "--config.optim.train=(('embed',True),('.*',False))"])
    with pytest.raises(UserError, match="classifier: in the checkpoint"):
        launch.main([f"--config={launch.__file__.rsplit('/', 1)[0]}/configs/base.py", f"--workdir={place}/lm",
                     f"--config.data.path={place}/corpus.jsonl", "--config.train.eval_every=0", source[0],
                     "--config.data.seq_len=32", "--config.data.batch_size=8"])  # fmt: skip


@pytest.mark.slow
def test_a_tied_model_without_validation_and_without_scikit_learn(place, monkeypatch, capsys):
    pretrain(place, "tied", True)
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    flags = [f"--config.init.source={place}/tied", "--config.train.epochs=1", "--config.optim.warmup_steps=2"]
    assert train(place, "plain", *flags, config="classify.py:top") == 0
    assert "no baseline tfidf: the TF-IDF baseline needs the package scikit-learn" in capsys.readouterr().out
    summary = read(place / "plain/summary.json")
    assert summary["baseline/tfidf/accuracy"] is None
    assert summary["baseline/tfidf/macro_f1"] is None
    assert summary["baseline/majority/accuracy"] == pytest.approx(1 / 3)
    check_frozen(place / "tied", place / "plain", summary["steps"])
    flags += [
        "--config.train.early_stop_patience=0",
        "--config.train.eval_every=0",
        "--config.data.split.validation=0",
        "--config.data.split.test=0",
    ]
    assert train(place, "blind", *flags, config="classify.py:top", files=("train",)) == 0
    summary = read(place / "blind/summary.json")
    for key in CLASSIFIED:
        assert summary[key] is None
    with pytest.raises(UserError, match="no 'test' split"):
        classify.main([f"--workdir={place}/blind", "--split=test"])
    assert told(capsys, f"--workdir={place}/blind", "--text=pay")[0]["label"] in ("bill", "card", "oos")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(place, tuned, monkeypatch):
    asked = iter([False] * 7)
    monkeypatch.setattr(StopFlag, "agreed", lambda self: next(asked, True))
    flags = [*tuned, "--config.train.save_every=3"]
    assert train(place, "halves", *flags, config="classify.py:top") == 75
    assert not (place / "halves/confusion-validation.png").exists()
    monkeypatch.undo()
    assert train(place, "halves", *flags, config="classify.py:top") == 0
    whole, halves = (read(place / name / "summary.json") for name in ("tuned", "halves"))
    for key in ("params_sha256", "best_step", *CLASSIFIED):
        assert whole[key] == halves[key], key


@pytest.mark.slow
def test_plan_and_show_of_a_classifier(place, capsys):
    with pytest.raises(SystemExit) as ended:
        launch.main(
            [*arguments(place, "planned"), "--config.data.tokenizer.kind=bytes", "--config.model.layers=2", "--plan"]
        )
    assert ended.value.code == 0
    assert read(place / "planned/plan.json")
    capsys.readouterr()
    show.main(
        [
            arguments(place, "")[0],
            *arguments(place, "")[2:],
            "--config.data.tokenizer.kind=bytes",
            "--config.model.layers=2",
        ]
    )
    assert re.search(r"classifier +\[256, 3\]", capsys.readouterr().out)
    with pytest.raises(UserError, match="without data a plan of a classifier needs the number of classes"):
        launch.main([arguments(place, "")[0], f"--workdir={place}/none", "--plan", "--config.model.vocab_size=300"])
