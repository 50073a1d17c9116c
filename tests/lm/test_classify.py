"""Is a classifier the same whatever way its texts are laid out, is it weighed as it says, and do its commands hold?"""

import json
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import launch
from data_pipeline.rows import BATCH_DTYPES
from lm import classify, evaluate, generate, show
from lm.check import find_problems
from lm.checkpoint import load, stored_shapes
from lm.config import MeshConfig, UserError
from lm.evaluate import make_eval_step
from lm.hf.__main__ import main as hf
from lm.losses import token_losses
from lm.model.transformer import Model
from lm.parts import make_loss
from lm.serve.__main__ import main as serve
from lm.sharding import make_mesh
from lm.summary import CLASSIFIED

C, SIZES = 3, (5, 3, 7, 2, 6, 4, 1, 8)
ORDERS = {"alone": [[i] for i in range(8)], "packed": [[0, 1], [3, 7], [2, 5], [4], [], [6], [], []]}


@pytest.fixture(scope="module")
def texts():
    """Ids of eight texts, and the number of the class of each."""
    rng = np.random.default_rng(3)
    return [rng.integers(1, 32, n) for n in SIZES], rng.integers(0, C, len(SIZES)), np.ones(len(SIZES))


def lay(texts, rows, length=12):
    """A batch of texts (ids, class, weight) that lists which lie in which row; each has one target, at its last place."""
    batch = {key: np.zeros((len(rows), length), dtype) for key, dtype in BATCH_DTYPES.items()}
    for r, inside in enumerate(rows):
        at = 0
        for segment, (ids, number, weight) in enumerate(((part[i] for part in texts) for i in inside), 1):
            here, last = slice(at, at + len(ids)), at + len(ids) - 1
            batch["tokens"][r, here], batch["segments"][r, here] = ids, segment
            batch["positions"][r, here] = np.arange(len(ids))
            batch["targets"][r, last], batch["weights"][r, last] = number, weight
            at += len(ids)
    return batch


@pytest.fixture(scope="module")
def classifier(make_config):
    """(pooling, style=, **sections) -> the config of a classifier that learns at rate 1 without momentum."""

    def make(pooling="last", style="llama", model=None, **sections):
        optim = {"name": "sgd", "momentum": 0.0, "peak_lr": 1.0, "weight_decay": 0.0, "clip_norm": 0.0}
        model = {"classes": C, "pooling": pooling, **(model or {})}
        return make_config(style, model=model, optim=optim, **sections)

    return make


def close(one, other, tolerance=1e-5):
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=tolerance, err_msg=path)


@pytest.mark.parametrize("pooling", [pytest.param("last", marks=pytest.mark.slow), "mean"])
def test_layout_parts_and_devices_change_nothing(classifier, start, start_sharded, texts, pooling):
    batches = {name: lay(texts, rows) for name, rows in ORDERS.items()}
    one = start(classifier(pooling))
    state, metrics = one.step(one.state, batches["alone"])
    after = {path: np.asarray(leaf) for path, leaf in state.params.items()}
    begun = {path: np.asarray(leaf) for path, leaf in one.state.params.items()}
    moved = {path: np.abs(after[path] - begun[path]).max() for path in after}
    assert moved["classifier"] > 1e-3
    assert moved["block_00/attn/q"] > 1e-6
    mesh = {"data": 2, "fsdp": 2, "context": 2}
    _, sharded, step = start_sharded(classifier(pooling, mesh=mesh, train={"micro_batches": 2}))
    split, their = step(sharded, batches["packed"])
    close(after, {path: np.asarray(leaf) for path, leaf in split.params.items()})
    for key in ("train/loss", "grad_norm", "targets"):
        assert float(their[key]) == pytest.approx(float(metrics[key]), rel=1e-5)
    assert float(metrics["targets"]) == len(SIZES)
    mesh, found = make_mesh(MeshConfig()), {}
    for name, batch in batches.items():
        again = classify.score(one.model, one.state.params, [batch], mesh, 8)
        order = [i for row in ORDERS[name] for i in row]
        found[name] = np.empty_like(again.logits)
        found[name][order] = again.logits
        assert again.labels.tolist() == texts[1][order].tolist()
        told = evaluate.evaluate(make_eval_step(one.model, np.ones(32)), begun, [batch], mesh, 8, 32, classes=C)
        nll = token_losses(jnp.asarray(again.logits)[None], jnp.asarray(again.labels)[None])["nll"].mean()
        assert (
            told["loss"] == pytest.approx(float(nll), rel=1e-5) == pytest.approx(float(metrics["train/loss"]), rel=1e-5)
        )
        assert told["accuracy"] == (again.logits.argmax(1) == again.labels).mean()
        assert told["texts"] == len(SIZES)
        assert 0 <= told["macro_f1"] <= 1
    np.testing.assert_allclose(found["alone"], found["packed"], atol=1e-5)  # neighbours are not seen
    plain = Model(replace(one.model.config, pooling="last"))
    x, _ = plain.hidden(
        one.state.params, *(jnp.asarray(batches["alone"][k]) for k in ("tokens", "positions", "segments"))
    )
    read = [x[i, :n].mean(0) if pooling == "mean" else x[i, n - 1] for i, n in enumerate(SIZES)]
    np.testing.assert_allclose(np.stack(read) @ begun["classifier"], found["alone"], atol=1e-5)


def test_a_weight_is_as_many_repeats(classifier, make_model, texts):
    ids, numbers, _ = texts
    model, params = make_model(classes=C)
    loss = make_loss(model, classifier())

    @jax.jit
    def gradient(batch):
        grads, sums = jax.grad(loss, has_aux=True)(params, batch, None)
        return jax.tree.map(lambda g: g / sums["weight"], grads)

    weighted = lay((ids, numbers, [3, 1, 2, 1, 1, 1, 1, 1]), [[0, 1], [2], [3, 4], [5, 6], [7], [], [], []])
    repeated = lay(texts, [[0, 1], [0, 0], [2], [2], [3, 4], [5, 6], [7], []], 12)
    # three fives do not fit twelve places together with a three
    close(jax.tree.map(np.asarray, gradient(weighted)), jax.tree.map(np.asarray, gradient(repeated)), 1e-6)
    other = gradient(lay(texts, [[0, 1], [2], [3, 4], [5, 6], [7], [], [], []]))
    assert np.abs(other["classifier"] - gradient(weighted)["classifier"]).max() > 1e-3


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_and_its_gradient(gamma):
    rng = np.random.default_rng(0)
    logits = np.concatenate([rng.normal(size=(20, C)) * 2, [[0, 0, 0], [90, 0, 0], [0, 90, 0], [9, -9, 0]]])
    targets = np.concatenate([rng.integers(0, C, 20), [0, 0, 0, 0]])

    def total(x):
        return token_losses(x[None], jnp.asarray(targets)[None], focal_gamma=gamma)["objective"].sum()

    def numbers(x):  # float64: the loss, and its gradient by the chain rule through p
        z = x - x.max(1, keepdims=True)
        nll = np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), targets]
        p, one = np.exp(-nll), np.eye(C)[targets]
        missed = -np.expm1(-nll)
        slope = missed**gamma + gamma * missed ** (gamma - 1 if gamma > 1 else 0) * p * nll * (
            1 if gamma > 1 else np.maximum(missed, 1e-300) ** (gamma - 1)
        )
        return missed**gamma * nll, slope[:, None] * (np.exp(z) / np.exp(z).sum(1, keepdims=True) - one)

    value, gradient = jax.value_and_grad(total)(jnp.asarray(logits, jnp.float32))
    losses, slopes = numbers(logits)
    assert float(value) == pytest.approx(losses.sum(), rel=1e-5)
    np.testing.assert_allclose(gradient, slopes, atol=1e-5)
    plain = token_losses(jnp.asarray(logits, jnp.float32)[None], jnp.asarray(targets)[None], focal_gamma=0.0)
    np.testing.assert_array_equal(plain["nll"], plain["objective"])


def test_logit_adjustment(classifier, make_model, texts):
    model, params = make_model(classes=C)
    counts, batch = np.array([90, 9, 1]), lay(texts, ORDERS["alone"])
    config = classifier(train={"logit_adjustment": 0.7, "class_counts": (90, 9, 1)})
    _, sums = make_loss(model, config)(params, batch, None)
    logits = np.asarray(model.apply(params, *(jnp.asarray(batch[k]) for k in ("tokens", "positions", "segments"))))
    z = logits[np.arange(8), np.array(SIZES) - 1] + 0.7 * np.log(counts / 100)
    nll = np.log(np.exp(z).sum(1)) - z[np.arange(8), texts[1]]
    assert float(sums["objective"]) == pytest.approx(nll.sum(), rel=1e-5)


def test_evaluation_counts_each_text_once(make_model, texts):
    """Whatever its class weighs in training: with --split=train too."""
    model, params = make_model(classes=C)
    mesh, step = make_mesh(MeshConfig()), make_eval_step(model, np.ones(32))
    plain, weighted = (
        evaluate.evaluate(step, params, [lay((*texts[:2], weights), ORDERS["alone"])], mesh, 8, 32, classes=C)
        for weights in (np.ones(8), np.arange(1, 9))
    )
    assert plain == weighted


def test_keys_that_do_not_go_together(classifier, make_config):
    def problems(**sections):
        return find_problems(make_config(**sections))

    for section, key, value in (
        ("model", "classes", 3), ("model", "pooling", "mean"), ("train", "logit_adjustment", 1.0),
        ("train", "refusal", "oos"), ("train", "class_counts", (1, 2)),
    ):  # fmt: skip
        assert f"config.{section}.{key}: only data.task='classify' reads it" in problems(**{section: {key: value}})
    task = {"task": "classify"}
    assert not problems(data=task)
    assert "config.train.sample_prompts: a classifier writes no text" in problems(
        data=task, train={"sample_prompts": ("a",)}
    )
    assert "config.model.classes: one class leaves nothing to tell apart" in problems(data=task, model={"classes": 1})
    assert any("model.pooling: 'max' is not one of" in line for line in problems(data=task, model={"pooling": "max"}))
    assert any("train.focal_gamma: must be >= 0" in line for line in problems(data=task, train={"focal_gamma": -1.0}))


# Whole runs, and one that begins from nothing and is refused.


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
    flags += ["--config.train.eval_every=5", "--config.train.epochs=2"]
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
    hf(["import", f"{place}/folder", f"{place}/back"])
    texts = [f"--file={place}/test.jsonl"]
    (place / "back/decision.json").write_bytes((place / "tuned/decision.json").read_bytes())
    ours, theirs = (told(capsys, f"--workdir={place}/{name}", *texts) for name in ("back", "tuned"))
    for one, other in zip(ours, theirs, strict=True):
        assert (one["text"], one["label"]) == (other["text"], other["label"])
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


def test_what_is_refused_before_anything_is_computed(place, monkeypatch):
    monkeypatch.setattr("lm.build.make_parts", lambda *_: pytest.fail("a model was made"))
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
                     f"--config.data.path={place}/corpus.jsonl", "--config.train.eval_every=0", source[0]])  # fmt: skip


@pytest.mark.slow
def test_a_tied_model_without_validation_and_without_scikit_learn(place, monkeypatch, capsys):
    pretrain(place, "tied", True)
    monkeypatch.setitem(__import__("sys").modules, "sklearn.linear_model", None)
    flags = [f"--config.init.source={place}/tied", "--config.train.epochs=1", "--config.optim.warmup_steps=2"]
    assert train(place, "plain", *flags, config="classify.py:top") == 0
    assert "no baseline tfidf: the TF-IDF baseline needs the package scikit-learn" in capsys.readouterr().out
    summary = read(place / "plain/summary.json")
    assert summary["baseline/tfidf/accuracy"] is None
    assert summary["baseline/tfidf/macro_f1"] is None
    assert summary["baseline/majority/accuracy"] == pytest.approx(1 / 3)
    check_frozen(place / "tied", place / "plain", summary["steps"])
    flags += ["--config.train.eval_every=0", "--config.data.split.validation=0", "--config.data.split.test=0"]
    assert train(place, "blind", *flags, config="classify.py:top", files=("train",)) == 0
    summary = read(place / "blind/summary.json")
    for key in CLASSIFIED:
        assert summary[key] is None
    with pytest.raises(UserError, match="no 'test' split"):
        classify.main([f"--workdir={place}/blind", "--split=test"])
    assert told(capsys, f"--workdir={place}/blind", "--text=pay")[0]["label"] in ("bill", "card", "oos")


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(place, tuned, monkeypatch):
    from lm.hosts import StopFlag

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
