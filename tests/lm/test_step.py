"""Is a step the same however the batch is cut, packed or spread, and harmless when it fails?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.params import split_stacks

SMOOTH = {"eps": 1e-4, "weight_decay": 0.1, "clip_norm": 1.0}  # eps: no sign flips of gradients that are all but zero


def assert_same(found, expected, atol=1e-5):
    found, expected = split_stacks(found), split_stacks(expected)
    assert list(found) == list(expected)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=atol, err_msg=path)


def assert_bit_equal(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def run(make_config, start):
    return start(make_config(optim=SMOOTH))


@pytest.fixture(scope="module")
def three_steps(run, make_batch):
    return run.steps([make_batch(i) for i in range(3)])


def test_micro_batches_change_nothing(make_config, start, make_batch, three_steps):
    """The parts hold unequal numbers of targets, where a mean of means would differ."""
    cut = start(make_config(optim=SMOOTH, train={"micro_batches": 4}))
    batches = [make_batch(i) for i in range(3)]
    assert len(set(batches[0]["weights"].reshape(4, 2, -1).sum((1, 2)))) > 1
    state, metrics = cut.steps(batches)
    assert_same(state.params, three_steps[0].params)
    for key in ("train/loss", "train/objective", "grad_norm", "targets", "tokens"):
        np.testing.assert_allclose(metrics[key], three_steps[1][key], rtol=1e-5, err_msg=key)


@pytest.mark.parametrize(
    ("mesh", "scan", "chunk"),
    [
        ({"data": 2, "fsdp": 4}, False, 0),
        ({"data": 2, "fsdp": 2, "tensor": 2}, False, 0),
        ({"fsdp": -1, "data": 1}, True, 4),
        ({"data": 1, "fsdp": 2, "context": 2, "tensor": 2}, True, 0),
        ({"data": 2, "context": 4}, False, 3),
    ],
)
def test_eight_devices_are_one(make_config, start_sharded, make_batch, three_steps, mesh, scan, chunk):
    """Also with a row over several devices, and with the loss in pieces."""
    config = make_config(model={"scan": scan}, optim=SMOOTH, mesh=mesh, train={"loss_chunk": chunk})
    parts, state, step = start_sharded(config)
    assert parts.mesh.size == 8
    for i in range(3):
        state, metrics = step(state, make_batch(i))
    assert_same(state.params, three_steps[0].params)
    np.testing.assert_allclose(metrics["train/loss"], three_steps[1]["train/loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], three_steps[1]["grad_norm"], rtol=1e-4)


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_packed_is_padded(make_config, start, pack, style):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 32, n) for n in (5, 9, 3, 8, 2, 7)]
    layouts = {
        "one a row": pack(documents, [(i,) for i in range(6)], 12),
        "two a row": pack(documents, [(0, 3), (2, 1), (5, 4), (), (), ()], 12),
        "other order": pack(documents, [(), (4, 2, 0), (1,), (), (5,), (3,)], 12),
    }
    run = start(make_config(style, optim=SMOOTH))
    found = {name: run.step(run.state, batch) for name, batch in layouts.items()}
    plain, metrics = found.pop("one a row")
    assert metrics["targets"] == sum(len(d) - 1 for d in documents)
    for state, other in found.values():
        for key in ("train/loss", "grad_norm", "targets", "tokens"):
            np.testing.assert_allclose(other[key], metrics[key], rtol=1e-5, err_msg=key)
        assert_same(state.params, plain.params)


def test_metrics_against_numpy(run, make_batch):
    batch = make_batch()
    metrics = run.step(run.state, batch)[1]
    logits = jax.jit(run.model.apply)(run.state.params, batch["tokens"], batch["positions"], batch["segments"])
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, batch["targets"][..., None], -1)[..., 0]
    np.testing.assert_allclose(metrics["train/loss"], np.average(nll, weights=batch["weights"]), rtol=1e-5)
    assert metrics["targets"] == batch["weights"].sum()
    assert metrics["tokens"] == (batch["segments"] > 0).sum()
    assert metrics["lr"] == np.float32(1e-2)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_step_that_is_not_finite_changes_only_the_count(run, make_batch, bad):
    before = run.step(run.state, make_batch(0))[0]
    poisoned = make_batch(1)
    poisoned["weights"][2, 0] = bad
    after, metrics = run.step(before, poisoned)
    assert metrics["skipped"] == 1
    assert after.step == before.step + 1 == 2
    assert_bit_equal((after.params, after.opt_state), (before.params, before.opt_state))
    good, metrics = run.step(after, make_batch(2))
    assert metrics["skipped"] == 0
    assert good.step == 3
    expected = run.step(type(before)(before.step + 1, before.params, before.opt_state), make_batch(2))[0]
    assert_bit_equal(good, expected)
    assert not np.array_equal(good.params["embed"], after.params["embed"])


def test_a_parameter_that_is_not_finite_is_never_stepped_over_in_silence(run, make_batch):
    params = {**run.state.params, "head": run.state.params["head"].at[0, 0].set(np.nan)}
    _, metrics = run.step(type(run.state)(run.state.step, params, run.state.opt_state), make_batch())
    assert metrics["skipped"] == 1


def test_a_batch_without_weight_is_finite_and_teaches_nothing(make_config, start, make_batch):
    run = start(make_config(optim={**SMOOTH, "weight_decay": 0.0}))
    batch = make_batch()
    batch["weights"] = np.zeros_like(batch["weights"])
    state, metrics = run.step(run.state, batch)
    assert metrics["train/loss"] == metrics["grad_norm"] == metrics["targets"] == 0
    assert_bit_equal(state.params, run.state.params)


def test_rows_without_weight_add_nothing(run, make_batch):
    small = make_batch(0, rows=4)
    padded = {key: np.concatenate([value, np.zeros_like(value)]) for key, value in small.items()}
    assert_same(run.step(run.state, padded)[0].params, run.step(run.state, small)[0].params)


def test_dropout_depends_on_the_step_and_the_key_alone(make_config, start, make_batch):
    run = start(make_config(model={"dropout": 0.5}, optim={**SMOOTH, "peak_lr": 1e-9}))
    batch = make_batch()

    def loss(step, key=run.key):
        state = type(run.state)(run.state.step + step, run.state.params, run.state.opt_state)
        return float(run.jitted(state, batch, key)[1]["train/loss"])

    assert loss(0) == loss(0)
    assert len({loss(0), loss(1), loss(2), loss(0, jax.random.key(8))}) == 4


def test_the_step_learns_a_batch_by_heart(run, make_batch):
    batch, state = make_batch(), run.state
    first = run.step(state, batch)[1]["train/loss"]
    for _ in range(40):
        state, metrics = run.step(state, batch)
    assert metrics["train/loss"] < 0.5 * first
    assert state.step == 40


def test_frozen_weights_may_lie_in_bfloat16(make_config, start_sharded, make_batch):
    """They stay as they are, the trained ones stay float32, and the loss is that of the rounded weights."""
    table = (("block_01/.*", True), (".*", False))
    optim = {**SMOOTH, "train": table, "frozen_dtype": "bfloat16"}
    parts, state, step = start_sharded(make_config(model={"scan": True}, optim=optim))
    before = {path: np.asarray(leaf) for path, leaf in state.params.items()}
    kinds = {path: str(leaf.dtype) for path, leaf in parts.state.params.items()}
    assert {kind for path, kind in kinds.items() if path.startswith("block_01")} == {"float32"}
    assert {kind for path, kind in kinds.items() if not path.startswith("block_01")} == {"bfloat16"}
    rounded = {p: np.asarray(leaf.astype(kinds[p])) for p, leaf in before.items()}
    held = {p: jnp.asarray(leaf) for p, leaf in rounded.items()}
    state, metrics = step(type(state)(state.step, held, state.opt_state), make_batch())
    for path, leaf in state.params.items():
        assert str(leaf.dtype) == kinds[path]
        same = np.array_equal(np.asarray(leaf), rounded[path])
        assert same == (kinds[path] == "bfloat16")
    assert np.isfinite(metrics["train/loss"])
