"""Are change and KL what the formulas say, however the forward is cut, and is text that cannot be measured refused?"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.config import DataConfig
from lm.check import find_problems
from lm.checkpoint import Checkpoints
from lm.config import Config, ConfigError, InitConfig, TrainConfig, UserError, adapters_only, from_mapping, to_json
from lm.forgetting import Remembered, criterion, make_compare_step, make_meter, measure, open_remembered
from lm.interpolate import choose, mix, read_shares
from lm.model.transformer import Model
from lm.parts import make_parts, model_config

from .conftest import random_params

SUMS = ("nll", "start_nll", "kl", "weight")


def by_formula(model, params, start, batch):
    """Per-row sums in float64 from whole logits."""

    def log_p(weights):
        logits = model.apply(weights, batch["tokens"], batch["positions"], batch["segments"])
        return np.asarray(jax.nn.log_softmax(logits.astype(jnp.float32)), np.float64)

    now, before, w = log_p(params), log_p(start), batch["weights"]
    at = batch["targets"][..., None]
    losses = {
        "nll": -np.take_along_axis(now, at, -1)[..., 0],
        "start_nll": -np.take_along_axis(before, at, -1)[..., 0],
        "kl": (np.exp(before) * (before - now)).sum(-1),
    }
    return {**{key: (value * w).sum(1) for key, value in losses.items()}, "weight": w.sum(1)}


@pytest.mark.parametrize(("style", "chunk"), [("llama", 0), ("gpt2", 7)])
def test_the_sums_are_those_of_the_formula(make_model, make_batch, style, chunk):
    """Tied and untied head, whole and in pieces; of the start only some leaves are given."""
    model, params = make_model(style)
    batch = {**make_batch(0)}
    batch["weights"] = batch["weights"] * np.linspace(0.5, 2.0, batch["weights"].shape[1], dtype=np.float32)
    changed = ("block_01/mlp/up", "norm_out/scale", model.head_path)
    start = {path: leaf for path, leaf in make_model(style, seed=1)[1].items() if path in changed}
    expected = by_formula(model, params, {**params, **start}, batch)
    assert expected["kl"].min() > 0.1
    found = make_compare_step(model, chunk)(params, start, batch)
    for key in SUMS:
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-5, err_msg=key)


def test_eight_devices_stacks_and_adapters_measure_the_same(make_config, make_batch):
    """The start of a LoRA run differs by its adapters alone, and nothing has changed before they have."""
    lora = {"rank": 2, "alpha": 4.0}
    config = make_config(
        model={"scan": True, "layers": 3}, lora=lora, optim={"train": adapters_only(), "frozen_dtype": "bfloat16"},
        mesh={"data": 2, "fsdp": 2, "context": 2}, train={"eval_batch_size": 3, "remember_rows": 11},
    )  # fmt: skip
    parts = make_parts(config, 32, 1e-3)
    params = {p: jnp.asarray(leaf, parts.state.params[p].dtype) for p, leaf in random_params(parts.model).items()}
    put = {p: jax.device_put(leaf, parts.state.params[p].sharding) for p, leaf in params.items()}
    start = {p: jnp.zeros_like(leaf) if p.endswith("lora_b") else leaf for p, leaf in put.items() if "_lora_" in p}
    rows = make_batch(0, rows=16)

    class Text:
        def eval_batches(self, split, size, rows_of_host):
            assert (split, size, rows_of_host) == ("validation", 4, (0, 4))  # a whole number of rows a device
            for first in range(0, 16, 4):
                yield {key: leaf[first : first + 4] for key, leaf in rows.items()}

    meter = make_meter(Remembered("x", Text(), "validation"), parts.model, parts.mesh, config.train)
    found = measure(meter, put, start)
    whole = Model(model_config(config, 32), parts.model.runs)
    here = {p: np.asarray(leaf) for p, leaf in start.items()}
    sums = by_formula(whole, params, {**params, **here}, {key: leaf[:11] for key, leaf in rows.items()})
    weight = sums["weight"].sum()
    assert found["tokens"] == weight
    for key, value in (("loss", "nll"), ("start_loss", "start_nll"), ("kl", "kl")):
        assert found[key] == pytest.approx(sums[value].sum() / weight, rel=1e-3), key
    assert found["change"] == pytest.approx(found["loss"] - found["start_loss"], abs=1e-9)
    gap = sums["nll"] - sums["start_nll"] - found["change"] * sums["weight"]
    assert found["change_stderr"] == pytest.approx(np.sqrt((gap**2).sum() * 11 / 10) / weight, rel=1e-2)
    same = measure(meter, put, {p: leaf for p, leaf in put.items() if p in start})
    assert (same["change"], same["kl"], same["change_stderr"]) == (0.0, 0.0, 0.0)
    assert measure(meter, put, start, stopped=lambda: True) is None


def test_the_criterion_is_loss_plus_weight_times_what_was_forgotten():
    forgotten = {"change": 0.5, "kl": 0.25}
    for stop_on, expected in (("loss", 3.0), ("loss+change", 4.0), ("loss+kl", 3.5)):
        assert criterion(TrainConfig(stop_on=stop_on, forget_weight=2.0), 3.0, forgotten) == expected
    rows = [
        {"share": s, "eval/loss": loss, "forget/change": c}
        for s, loss, c in ((0, 3.0, 0.0), (0.5, 2.2, 0.3), (1, 2.0, 1.0))
    ]
    chosen = [choose(rows, TrainConfig(stop_on="loss+change", forget_weight=w))["share"] for w in (0.0, 0.5, 1.0, 10.0)]
    assert chosen == [1, 0.5, 0.5, 0]


def test_a_mix_is_a_straight_line_with_exact_ends():
    start, tuned = ({"a": np.float32([1.0, x])} for x in (0.1, 0.7))
    assert mix(start, tuned, 0.0) is start
    assert mix(start, tuned, 1.0) is tuned
    np.testing.assert_allclose(mix(start, tuned, 0.25)["a"], [1.0, 0.25], rtol=1e-6)
    for text in ("", "0,2", "nan", "-0.1", "half"):
        with pytest.raises(ConfigError, match=r"from 0 \(the start\) to 1"):
            read_shares(text)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train": {"remember": "pretraining"}}, "random weights have nothing to forget"),
        ({"train": {"remember": "pretraining"}, "init": {"source": "hf:x"}}, "does not bring the text it was trained on"),
        ({"train": {"remember": "no/such.txt"}, "init": {"source": "runs/x"}}, "no/such.txt does not exist"),
        ({"train": {"stop_on": "loss+kl"}, "init": {"source": "runs/x"}}, "needs train.remember"),
        ({"train": {"stop_on": "kl"}}, "train.stop_on: 'kl' is not one of"),
        ({"train": {"forget_weight": 2.0}}, "train.forget_weight: only"),
        ({"train": {"ema_decay": 1.0}}, "train.ema_decay: must be in [0, 1)"),
        ({"train": {"remember_rows": -1}}, "train.remember_rows: must be >= 0"),
        ({"optim": {"pull_to_start": 0.1}}, "only a run with init.source has a start"),
        ({"optim": {"pull_to_start": -0.1}, "init": {"source": "runs/x"}}, "optim.pull_to_start: must be >= 0"),
        ({"optim": {"pull_to_start": 2e3}, "init": {"source": "runs/x"}}, "is more than 1"),
        ({"train": {"remember": "pretraining", "eval_every": 0}, "init": {"source": "runs/x"}, "data": {"split": {"validation": 0.0}}},
         "train.remember needs validation data"),
        ({"init": {"source": "runs/x", "step": "raw"}}, "init.step: must be"),
    ],
)  # fmt: skip
def test_impossible_keys_are_named(keys, words):
    keys = {**keys, "data": {"path": "x.txt", **keys.get("data", {})}}
    problems = find_problems(from_mapping(Config, keys))
    assert any(words in problem for problem in problems), problems


@pytest.mark.parametrize("key", ["optim.pull_to_start", "train.ema_decay", "train.forget_weight", "data.replay"])
def test_a_strength_that_is_no_number_is_refused(key):
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError, match=f"{key}: must be a finite number"):
        from_mapping(Config, {section: {name: float("nan")}})


@dataclass
class Opened:
    config: DataConfig
    tokenizer: object
    splits: tuple
    fingerprint: str = "f"

    def has_split(self, split):
        return split in self.splits

    def summary(self):
        return {"rows": dict.fromkeys(self.splits, 7)}


def open_as(asked, sha="t", splits=("train", "validation")):
    def opened(config, *, log):
        asked.append(config)
        return Opened(config, type("T", (), {"sha256": sha}), splits)

    return opened


@pytest.fixture
def base(tmp_path):
    """A config of a run from a folder with a checkpoint of a run on `old.txt`, in rows of 64."""
    theirs = Config(data=DataConfig(path="old.txt", seq_len=64))
    checkpoints = Checkpoints(tmp_path / "base", 1, print)
    meta = {"config": to_json(theirs), "data_sha256": "f", "best_step": 3, "tokenizer_sha256": "t"}
    checkpoints.save(3, {"params": {"embed": jnp.zeros((2, 2))}}, meta)
    checkpoints.close()
    source = InitConfig(source=str(tmp_path / "base"))
    return Config(data=DataConfig(path="new.jsonl", seq_len=32), init=source, train=TrainConfig(remember="pretraining"))


def test_the_pretraining_text_is_opened_in_rows_of_this_run(base):
    asked, said = [], []
    text = open_remembered(base, "t", open_as(asked), said.append)
    assert text.split == "validation"
    assert [(config.path, config.seq_len) for config in asked] == [("old.txt", 64), ("old.txt", 32)]
    assert not any("warning" in line for line in said)
    assert open_remembered(replace(base, train=TrainConfig()), "t", None, said.append) is None


def test_text_that_cannot_be_measured_is_refused(base, tmp_path):
    def gone(config, *, log):
        raise UserError("old.txt does not exist")

    for opener, words in (
        (gone, "old.txt does not exist.*Name a file"),
        (open_as([], sha="other"), "its tokenizer .* is not this run's"),
        (open_as([], splits=("train",)), "no validation rows"),
    ):
        with pytest.raises(UserError, match=words):
            open_remembered(base, "t", opener, print)
    foreign = replace(base, init=InitConfig(source="hf:x"))
    with pytest.raises(UserError, match="does not bring the text"):
        open_remembered(foreign, "t", open_as([]), print)


def test_data_that_changed_since_are_said(base):
    said = []

    def changed(config, *, log):
        return replace(open_as([])(config, log=log), fingerprint="g")

    open_remembered(base, "t", changed, said.append)
    assert any("may hold text that it learned from" in line for line in said)


def test_a_file_is_read_whole_with_the_tokenizer_of_the_start(base, tmp_path):
    asked = []
    place = tmp_path / "kept.txt"
    place.write_text("text")
    config = replace(base, train=TrainConfig(remember=str(place)))
    assert open_remembered(config, "t", open_as(asked, splits=("train",)), print).split == "train"
    assert asked[0].path == str(tmp_path / "kept.txt")
    assert asked[0].tokenizer.path == str(tmp_path / "base/tokenizer")
    assert (asked[0].split.validation, asked[0].split.test, asked[0].seq_len) == (0.0, 0.0, 32)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/manifest.json").write_text("{}")
    config = replace(base, train=TrainConfig(remember=str(tmp_path / "folder")))
    assert open_remembered(config, "t", open_as(asked), print).split == "validation"
    assert (asked[-1].prepared, asked[-1].path) == (str(tmp_path / "folder"), "")
