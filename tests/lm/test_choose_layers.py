"""Is a trial what training that block alone does, do probes say what they claim, and are planted shifts found?"""

import ast
import json
import os
import random
import string
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipeline.batch import open_data
from lm import choose_layers
from lm.check import read_config
from lm.checkpoint import Checkpoints
from lm.config import UserError, adapters_only, last_layers, to_json
from lm.offer import find_offer
from lm.params import match_table, split_stacks
from lm.parts import make_parts, param_shapes
from lm.probes import first_update, measure_gradients, measure_paths, score
from lm.sharding import put_batch
from lm.start import start_state
from lm.trials import Trials

ROOT = Path(__file__).resolve().parents[2]
OPTIM = {"schedule": "cosine", "warmup_steps": 2, "clip_norm": 0.05, "weight_decay": 0.1, "lr_multipliers": (("block_01/mlp/.*", 0.5), (".*", 1.0))}  # fmt: skip
TABLE = (("block_01/.*", True), ("norm_out/.*", True), (".*", False))


@pytest.fixture(scope="module")
def searched(make_config, start):
    """(trials over all blocks as one stack, the start's per-layer parameters) for a model of three layers."""

    def make(name="adamw"):
        optim = {**OPTIM, "name": name, "train": (("block_.*|norm_out/.*", True), (".*", False))}
        config = make_config(model={"layers": 3, "scan": True}, optim=optim, train={"steps": 4})
        parts = make_parts(config, 32, 1e-2, jax.devices()[:1])
        params = jax.device_put(
            start(config, parts.model.runs).state.params, {p: leaf.sharding for p, leaf in parts.state.params.items()}
        )
        return Trials(parts, params, np.ones(32)), {p: np.asarray(leaf) for p, leaf in split_stacks(params).items()}

    return make


def moves(path):
    return path.startswith(("block_01/", "norm_out/"))


@pytest.mark.parametrize(
    "name", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "sgd", "lion", "adafactor"))]
)
def test_a_trial_is_a_run_that_trains_that_block_alone(searched, make_config, make_batch, start, name):
    trials, before = searched(name)
    batches = [make_batch(seed) for seed in range(4)]
    optim = {**OPTIM, "name": name, "train": TABLE}
    expected = start(make_config(model={"layers": 3}, optim=optim, train={"steps": 4})).after(batches)
    found = split_stacks(trials.train(moves, batches, trials.parts.config.optim, 4))
    for path, leaf in expected.items():
        if moves(path):
            assert not np.array_equal(leaf, before[path])
            np.testing.assert_allclose(found[path], leaf, atol=3e-5, err_msg=path)
        else:
            np.testing.assert_array_equal(found[path], before[path], err_msg=path)
    for path, leaf in split_stacks(trials.params).items():  # the next trial starts where this one did
        np.testing.assert_array_equal(leaf, before[path])


@pytest.mark.slow
def test_probes_say_what_they_claim(searched, make_batch):
    trials, before = searched()
    parts, batches = trials.parts, [make_batch(seed) for seed in range(4)]
    put = [put_batch(batch, parts.mesh, 8) for batch in batches]
    alone = [measure_gradients(parts, trials.params, [batch, batch]) for batch in put]
    g = np.stack([np.asarray(one.even["block_00-02/attn/q"])[1].ravel() for one in alone]).astype(np.float64)
    sums = measure_paths(parts, trials.params, measure_gradients(parts, trials.params, put))
    path = "block_01/attn/q"
    table = {probe: values[path] for probe, values in score(sums, 4, lambda path: path).items()}
    noise = g.var(0, ddof=1).sum()
    signal = np.square(g.mean(0)).sum() - noise / 4
    assert table["snr"] == pytest.approx(signal / noise, rel=1e-3)
    assert table["fisher"] == pytest.approx(np.square(g).mean(), rel=1e-3)
    assert table["rgn"] == pytest.approx(np.sqrt(max(signal, 0)) / np.linalg.norm(before[path]), rel=1e-3)
    # one step on one batch at the peak rate, clipped with its block alone, is what a trial of it takes
    optim = replace(parts.config.optim, schedule="constant", warmup_steps=0)
    only = split_stacks(trials.train(lambda path: path.startswith("block_01/"), batches[:1], optim, 1))
    update = split_stacks(first_update(parts, trials.params, alone[0].even))
    for path in update:
        if path.startswith("block_01/"):
            np.testing.assert_allclose(only[path] - before[path], update[path], atol=2e-6, err_msg=path)
    same = score(measure_paths(parts, trials.params, alone[0]), 2, lambda path: path.partition("/")[0])
    assert same["snr"]["block_01"] > 1e6  # a batch twice has no noise
    inside = {p: u for p, u in update.items() if p.startswith("block_01/")}
    grads = split_stacks(alone[0].even)
    assert same["gain"]["block_01"] == pytest.approx(
        -sum(float((grads[p] * u).sum()) for p, u in inside.items()), rel=1e-4
    )


def test_what_is_offered_follows_the_config(make_config):
    def offer(model=None, lora=None, **optim):
        config = make_config(model={"layers": 3, **(model or {})}, optim=optim, lora=lora)
        return config, find_offer(config, 32)

    config, found = offer()
    assert (list(found.blocks), found.outside) == ([0, 1, 2], ("norm_out/scale",))
    assert found.table([2], 3) == last_layers(1, 3, "norm_out/scale")
    assert found.table([0], 3) == (("block_00/.*", True), ("norm_out/scale", True), (".*", False))
    assert offer(train=last_layers(1, 3, "head"))[1].outside == ("head",)
    _, attn = offer(train=(("block_02/attn/.*", True), (".*", False)))
    assert attn.table([1], 3) == (
        ("block_01/(attn/k|attn/k_scale|attn/out|attn/q|attn/q_scale|attn/v)", True),
        (".*", False),
    )
    lora = {"rank": 2, "targets": ("block_0[12]/attn/[qv]",)}
    config, adapters = offer(lora=lora, train=adapters_only())
    assert list(adapters.blocks) == [1, 2]
    assert adapters.targets([2]) == ("block_02/(attn/q|attn/v)",)
    narrowed = adapters.config(config, [2])
    assert find_offer(narrowed, 32).blocks == {2: adapters.blocks[2]}
    assert make_parts(narrowed, 32, 1e-3).treatment.trained["block_02/attn/q_lora_a"]


def run_alone(*words, fast=True):
    """Runs a command as users do, on one device; returns what it printed."""
    env = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(fast)), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_task(folder, rows, **changes):
    """A config file for JSONL rows (prompt, completion), and a base model of random weights at folder/base."""
    (folder / "rows.jsonl").write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in rows))
    keys = {
        "data.path": str(folder / "rows.jsonl"), "data.cache_dir": str(folder / "cache"), "data.tokenizer.kind": "char",
        "data.seq_len": 16, "data.batch_size": 8, "data.packing": "none", "data.split.validation": 0.2, "model.layers": 3,
        "model.dim": 16, "model.heads": 2, "optim.warmup_steps": 1, "train.steps": 10, "train.eval_batch_size": 8, **changes,
    }  # fmt: skip
    lines = ["from configs import base", "def get_config():", "    c = base.get_config()"]
    path = folder / "task.py"
    path.write_text(
        "\n".join([*lines, *(f"    c.{key} = {value!r}" for key, value in keys.items()), "    return c", ""])
    )
    return str(path)


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """(config file, overrides that start from a base model of random weights)."""
    folder = tmp_path_factory.mktemp("task")
    rng = random.Random(0)
    rows = [("".join(rng.choice("abcdefgh") for _ in range(8)) + "=", rng.choice("XYZ")) for _ in range(120)]
    file = write_task(folder, rows)
    config = read_config(file, {})
    data = open_data(config.data, log=lambda line: None)
    base = start_state(make_parts(config, data.tokenizer.vocab_size, 1e-3))
    data.tokenizer.save(folder / "base" / "tokenizer")
    checkpoints = Checkpoints(folder / "base", 1, print)
    meta = {"config": to_json(config), "tokenizer_sha256": data.tokenizer.sha256, "vocab_size": data.tokenizer.vocab_size,
            "peak_lr": 0.1, "best_step": 5}  # fmt: skip
    checkpoints.save(5, base, meta)
    checkpoints.close()
    source = [f"--config.init.source={folder / 'base'}", "--config.data.tokenizer.kind=auto",
              f"--config.data.tokenizer.path={folder / 'base' / 'tokenizer'}", "--config.optim.peak_lr=auto"]  # fmt: skip
    return folder, [f"--config={file}"], source


def test_the_command_leaves_a_ranking_and_the_next_command(task):
    folder, config, source = task
    flags = ["--batches=2", "--trial=2", "--final=3", "--blocks=2", "--exhaustive=3", f"--workdir={folder / 'chosen'}"]
    page = run_alone("-m", "lm.choose_layers", *config, *source, *flags)
    result = json.loads((folder / "chosen" / "layers.json").read_text())
    blocks = ["block_00", "block_01", "block_02"]
    assert sorted(result["ranking"]) == blocks
    scores = result["scores"]
    assert list(scores) == ["final", "trial", "gain", "rgn", "fisher", "snr", "update"]
    assert all(list(values) == blocks for probe, values in scores.items() if probe != "final")
    ordered = {probe: sorted(blocks, key=lambda b: -scores[probe][b]) for probe in ("trial", "gain")}
    nominees = {*ordered["trial"][:2], ordered["gain"][0]}
    assert set(scores["final"]) == nominees
    assert result["ranking"][: len(nominees)] == sorted(nominees, key=lambda name: -scores["final"][name])
    assert result["chosen"] == sorted(result["ranking"][:2])
    assert result["peak_lr"] == pytest.approx(0.01)
    sweep = result["exhaustive"]
    assert (result["cost"]["steps"], sweep["cost"]["steps"]) == (2 + 3 * 2 + len(nominees) * 3, 3 * 3)
    assert sweep["best"] == min(blocks, key=lambda name: sweep["blocks"][name]["loss"])
    losses = {sweep["start"]["loss"], sweep["all"]["loss"], *(sweep["blocks"][name]["loss"] for name in blocks)}
    assert len(losses) == 5
    shapes = param_shapes(make_parts(read_config(config[0].partition("=")[2], {}), 20, 1e-3).model)
    trained = match_table(result["train_table"], list(shapes), "optim.train")
    assert {p.partition("/")[0] for p, on in trained.items() if on} == {*result["chosen"], "norm_out"}
    for name in blocks:
        assert f"{sweep['blocks'][name]['loss']:.4f}" in page
    flag = page.split("--config.optim.train=")[1].split('"')[1]
    assert [list(row) for row in ast.literal_eval(flag)] == result["train_table"]


@pytest.mark.parametrize(
    ("flags", "with_source", "word"),
    [
        ([], False, "init.source is empty"),
        (["--blocks=4"], True, "there are 3 blocks"),
        (["--blocks=0"], True, "at least 1"),
        (["--batches=3"], True, "even number"),
        (["--batches=x"], True, "whole number"),
        (["--batches=64"], True, "64 batches with 4 held out"),
        (["--exhaustive=1"], True, "warmup_steps"),
        (["--exhaustive=5", "--config.data.split.validation=0", "--config.train.eval_every=0"], True, "validation"),
    ],
)
def test_bad_input_is_refused(task, flags, with_source, word):
    folder, config, source = task
    with pytest.raises(UserError, match=word):
        choose_layers.main([*config, *(source if with_source else []), f"--workdir={folder / 'bad'}", *flags])
    assert not (folder / "bad").exists()


LETTERS, WIDTH = string.ascii_lowercase[:20], 5


def planted_rows(shift, number, seed):
    """Five letters and a place k; the answer is the capital of the k-th in an order that only the base model knows.

    A shift permutes the letters of the prompts or the answers. One block alone can hardly sort anew, so what helps is renaming.
    """
    world, rng = random.Random(0), random.Random(seed)
    order, round_about = (world.sample(LETTERS, len(LETTERS)) for _ in range(2))
    rank = {letter: place for place, letter in enumerate(order)}
    renamed = dict(zip(round_about, [*round_about[1:], round_about[0]]))  # one cycle: no letter stays
    found = {}
    while len(found) < number:
        letters, k = rng.choices(LETTERS, k=WIDTH), rng.randrange(WIDTH)
        answer = sorted(letters, key=rank.__getitem__)[k]
        if shift == "alphabet":
            letters = [renamed[letter] for letter in letters]
        found[f"{''.join(letters)}{k}="] = (renamed[answer] if shift == "answers" else answer).upper()
    return list(found.items())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of four layers that knows the task, and the keys of a config that starts from it."""
    folder = tmp_path_factory.mktemp("base")
    model = {
        "data.seq_len": WIDTH + 3, "data.batch_size": 64, "model.layers": 4, "model.dim": 48, "model.heads": 4, "model.scan": True,
        "model.mlp_gated": False, "model.activation": "relu2", "model.qk_norm": True, "model.init_out": "zero",
        "model.tie_embeddings": False, "optim.schedule": "linear", "optim.warmup_steps": 5, "optim.weight_decay": 0.0,
        "optim.end_lr_ratio": 0.05, "train.eval_every": 500, "train.eval_rows": 256, "train.eval_batch_size": 64,
    }  # fmt: skip
    file = write_task(folder, planted_rows("", 40_000, 1), **model, **{"optim.peak_lr": 3e-3, "train.steps": 3000})
    run_alone("launch.py", f"--config={file}", f"--workdir={folder / 'run'}", fast=False)
    assert json.loads((folder / "run" / "summary.json").read_text())["eval/accuracy"] > 0.99
    tokenizer = {"data.tokenizer.kind": "auto", "data.tokenizer.path": str(folder / "run" / "tokenizer")}
    train = {"optim.peak_lr": 5e-3, "optim.train": (("block_.*", True), (".*", False))}
    return {**model, **tokenizer, **train, "init.source": str(folder / "run")}


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "expected"), [("alphabet", "block_00"), ("answers", "block_03")])
def test_a_planted_shift_is_ranked_first_and_is_the_best_to_train(base, tmp_path, shift, expected):
    file = write_task(tmp_path, planted_rows(shift, 12_000, 2), **base)
    flags = [f"--config={file}", f"--workdir={tmp_path}", "--exhaustive=400"]
    print(run_alone("-m", "lm.choose_layers", *flags, fast=False))
    result = json.loads((tmp_path / "layers.json").read_text())
    sweep, gain = result["exhaustive"], result["scores"]["gain"]
    assert result["ranking"][0] == sweep["best"] == max(gain, key=gain.get) == expected
    losses = sorted(block["loss"] for block in sweep["blocks"].values())
    assert losses[0] < 0.5 * losses[1]  # no toss-up
    assert result["cost"]["steps"] < 0.45 * sweep["cost"]["steps"]
