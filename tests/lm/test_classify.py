"""Is a classifier the same whatever way its texts are laid out, is it weighed as it says, and do its commands hold?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipeline.rows import BATCH_DTYPES
from lm import classify, evaluate
from lm.check import find_problems
from lm.config import MeshConfig
from lm.evaluate import make_eval_step
from lm.losses import token_losses
from lm.model.transformer import Model
from lm.parts import make_loss
from lm.sharding import make_mesh

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


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean"])
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
        told = evaluate.evaluate(make_eval_step(one.model, np.ones(32)), begun, [batch], mesh, 8, one.model.config)
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
        evaluate.evaluate(step, params, [lay((*texts[:2], weights), ORDERS["alone"])], mesh, 8, model.config)
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
