"""As a user runs it: a fine-tune that watches what it forgets, is stopped and goes on, and is mixed with its start."""

import json
import random

import pytest

from .test_launch import launch, python_m, read

CONFIG = """
from configs import base

def get_config(name):
    c = base.get_config()
    c.data.cache_dir = {cache!r}
    c.data.tokenizer.kind = "bytes"
    c.data.split.validation = 0.2
    c.data.split.test = 0.0
    c.data.seq_len = 32
    c.data.batch_size = 8
    c.model.layers, c.model.dim, c.model.heads = 2, 16, 2
    c.model.attention = "xla"
    c.optim.peak_lr, c.optim.schedule = 1e-2, "constant"
    c.train.steps, c.train.eval_every = 20, 10
    c.data.sources.old = base.source(path={old!r}, replay=name == "tune")
    if name == "tune":
        c.data.sources.task = base.source(path={task!r})
        c.data.replay = 0.25
        c.init.source = "base"
        c.optim.pull_to_start = 1.0
        c.optim.train = (("block_01/.*|norm_out/.*", True), (".*", False))
        c.train.ema_decay = 0.9
        c.train.remember = "pretraining"
        c.train.remember_rows = 20
        c.train.eval_at_start = True
        c.train.stop_on, c.train.forget_weight = "loss+kl", 0.5
    return c
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two corpora, a config, a run `base` on the first, and one `tuned` from there on the second."""
    folder, words = tmp_path_factory.mktemp("forget"), random.Random(0)
    with open(folder / "old.jsonl", "w") as file:
        for i in range(200):
            file.write(
                json.dumps({"text": f"{i} " + " ".join(words.choices(["the", "cat", "sat", "mat"], k=8))}) + "\n"
            )
    with open(folder / "task.jsonl", "w") as file:
        for i in range(200):
            file.write(json.dumps({"prompt": f"{i} + 1 = ", "completion": f"{i + 1}."}) + "\n")
    paths = {
        key: str(folder / name) for key, name in (("cache", "cache"), ("old", "old.jsonl"), ("task", "task.jsonl"))
    }
    (folder / "config.py").write_text(CONFIG.format(**paths))
    for workdir, name in (("base", "base"), ("tuned", "tune")):
        done = launch(folder, workdir, config=f"config.py:{name}")
        assert done.returncode == 0, done.stderr
    return folder


def evals(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "eval/loss" in row]


@pytest.mark.slow
def test_what_is_forgotten_stands_everywhere_and_a_stopped_run_is_the_same(place):
    summary, rows = read(place / "tuned/summary.json"), evals(place / "tuned")
    assert [row["step"] for row in rows] == [0, 10, 20]
    assert (rows[0]["forget/change"], rows[0]["forget/kl"]) == (0.0, 0.0)
    for row in rows[1:]:
        assert row["forget/change"] == pytest.approx(row["forget/loss"] - row["forget/start_loss"], abs=1e-9)
        assert row["forget/kl"] > 1e-4
        assert row["eval/criterion"] == pytest.approx(row["eval/loss"] + 0.5 * row["forget/kl"])
    assert summary["best_step"] == min(rows[1:], key=lambda row: row["eval/criterion"])["step"]
    assert summary["forget/kl"] == rows[-1]["forget/kl"]
    assert summary["start/forget/change"] == 0.0
    assert "remembered text: KL(start, now)" in (place / "tuned/README.md").read_text()
    receipt = read(place / "tuned/receipt.json")
    assert receipt["optimizer_numbers"] == 4 * receipt["trained_params"]  # two moments, the start, the average
    first = launch(place, "again", "--config.train.steps=10", config="config.py:tune")
    then = launch(place, "again", config="config.py:tune")
    assert (first.returncode, then.returncode) == (0, 0), then.stderr
    assert evals(place / "again") == rows
    assert read(place / "again/summary.json")["params_sha256"] == summary["params_sha256"]


@pytest.mark.slow
def test_the_average_is_what_is_loaded_and_mixes_are_runs(place):
    def loss_of(workdir, step="best"):
        done = python_m(place, "lm.evaluate", f"--workdir={workdir}", "--split=validation", f"--step={step}")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["loss"]

    summary = read(place / "tuned/summary.json")
    assert loss_of("tuned", "20") == pytest.approx(summary["eval/loss"], abs=1e-6)
    assert abs(loss_of("tuned", "20:raw") - summary["eval/loss"]) > 1e-6
    done = python_m(place, "lm.interpolate", "tuned", "--out=mixed", "--take=0.5", "--shares=0,1", "--step=20")
    assert done.returncode == 0, done.stderr
    table = read(place / "mixed/interpolate.json")
    start, half, end = table["rows"]
    assert (start["share"], half["share"], end["share"], table["taken"]) == (0.0, 0.5, 1.0, 0.5)
    assert (start["forget/change"], start["forget/kl"]) == (0.0, 0.0)
    assert start["eval/loss"] == pytest.approx(evals(place / "tuned")[0]["eval/loss"], abs=1e-6)
    for key in ("eval/loss", "forget/loss", "forget/change", "forget/kl"):
        assert end[key] == pytest.approx(summary[key], abs=1e-5)
    assert 0 < half["forget/kl"] < end["forget/kl"]
    assert loss_of("mixed") == pytest.approx(half["eval/loss"], abs=1e-6)
    assert (place / "mixed/interpolate.png").read_bytes()[:4] == b"\x89PNG"
    again = python_m(place, "lm.interpolate", "tuned", "--out=mixed")
    assert (again.returncode, "not empty" in again.stderr) == (1, True)
    on = launch(place, "on", "--config.init.source=mixed", "--config.train.steps=2", config="config.py:tune")
    assert on.returncode == 0, on.stderr


@pytest.mark.slow
def test_wrong_input_is_said_before_anything_is_trained(place):
    for words, code, said in (
        (["--config.train.remember=no.txt"], 2, "config.train.remember: no.txt does not exist"),
        (["--config.init.source="], 2, "random weights have nothing to forget"),
        (["--config.train.ema_decay=nan"], 2, "config.train.ema_decay"),
    ):
        done = launch(place, "wrong", *words, config="config.py:tune")
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not (place / "wrong").exists()
    done = launch(place, "tuned", "--config.train.ema_decay=0.5", config="config.py:tune")
    assert done.returncode == 2
    assert "train.ema_decay 0.9 -> 0.5 (refused)" in done.stderr
