"""Do the pull to the start and the average of weights follow their formulas, on trained leaves alone, and come back from disk?"""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lm.anchor import averaged_weights, start_weights
from lm.checkpoint import Checkpoints
from lm.optim import count_slots
from lm.params import leaf_paths, split_stacks
from lm.parts import make_parts, with_shardings
from lm.run_folder import load_weights

LR, PULL, DECAY = 0.1, 0.5, 0.3
TOP = (("block_01/.*|norm_out/.*|head", True), (".*", False))
SGD = {"name": "sgd", "momentum": 0.0, "peak_lr": LR, "weight_decay": 0.0, "clip_norm": 0.0, "train": TOP}


def numpy_of(params):
    return {path: np.asarray(leaf, np.float64) for path, leaf in split_stacks(params).items()}


@pytest.fixture(scope="module")
def pulled(make_config, start):
    return start(make_config(optim={**SGD, "pull_to_start": PULL}, train={"ema_decay": DECAY}))


@pytest.fixture(scope="module")
def batches(make_batch):
    bad = make_batch(1)
    return [make_batch(0), {**bad, "weights": np.full_like(bad["weights"], np.nan)}, make_batch(1), make_batch(2)]


@pytest.fixture(scope="module")
def states(pulled, batches):
    """The state before and after each step; the second step is skipped."""
    found, state = [pulled.state], pulled.state
    for batch in batches:
        state = pulled.step(state, batch)[0]
        found.append(state)
    return found


def test_a_step_is_the_plain_one_and_the_pull(make_config, start, states, batches):
    """w - rate (gradient + strength (w - w_0)); the first step has nothing to pull."""
    plain = start(make_config(optim=SGD))
    first = numpy_of(states[0].params)
    for before, after, batch in ((states[0], states[1], batches[0]), (states[2], states[3], batches[2])):
        alone = plain.step(replace(plain.state, step=before.step, params=before.params), batch)[0]
        now, w = numpy_of(alone.params), numpy_of(before.params)
        for path, leaf in numpy_of(after.params).items():
            on = path.startswith(("block_01/", "norm_out", "head"))
            expected = now[path] - on * LR * PULL * (w[path] - first[path])
            np.testing.assert_allclose(leaf, expected, atol=1e-6, err_msg=path)
            assert on or np.array_equal(leaf, first[path])
    moved = np.abs(numpy_of(states[3].params)["block_01/attn/q"] - first["block_01/attn/q"]).max()
    assert moved > 1e-4  # so that a pull would be seen


def test_the_average_follows_its_formula_and_skipped_steps_do_not_count(states):
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(states[1].params), jax.tree.leaves(states[2].params))
    )
    expected = numpy_of(states[0].params)
    for t, state in enumerate((states[1], states[3], states[4]), 1):
        d = min(DECAY, t / (t + 9))
        now = numpy_of(state.params)
        expected = {path: d * expected[path] + (1 - d) * now[path] for path in expected}
        for path, leaf in numpy_of(averaged_weights(state.params, state.opt_state)).items():
            np.testing.assert_allclose(leaf, expected[path], atol=1e-6, err_msg=path)
    assert not np.allclose(expected["head"], now["head"], atol=1e-5)


def test_only_trained_leaves_are_held_twice_and_they_are_counted(pulled, states):
    trained = {p for p in states[0].params if p.startswith(("block_01/", "norm_out", "head"))}
    assert set(start_weights(states[-1].opt_state)) == trained
    for path, leaf in start_weights(states[-1].opt_state).items():
        np.testing.assert_array_equal(leaf, states[0].params[path])
    slots = count_slots(states[0].opt_state, states[0].params)
    for path, leaf in states[0].params.items():
        assert slots[path] == (2 * leaf.size if path in trained else 0)


def test_without_either_nothing_is_held(make_config):
    parts = make_parts(make_config(optim=SGD), 32, LR)
    assert start_weights(parts.state.opt_state) is None
    assert averaged_weights(parts.state.params, parts.state.opt_state) is parts.state.params


def test_a_checkpoint_gives_the_average_in_any_grouping_and_on_demand_the_weights(make_config, tmp_path):
    """Sharded, with layers in stacks; then read layer by layer on one device."""
    train = {"ema_decay": DECAY, "remember": "pretraining"}
    config = make_config(
        model={"scan": True, "layers": 4}, optim={"train": TOP}, train=train, mesh={"data": 2, "fsdp": 4}
    )
    parts = make_parts(config, 32, LR)
    shardings = {path: leaf.sharding for path, leaf in parts.state.params.items()}
    held = [(p, leaf) for p, leaf in leaf_paths(parts.state.opt_state) if "/average/" in p or "/start/" in p]
    assert len(held) == 2 * len(start_weights(parts.state.opt_state))
    for path, leaf in held:
        owner = path.partition("/average/")[2] or path.partition("/start/")[2]
        assert leaf.sharding == shardings[owner], path
    paths = [path for path, _ in leaf_paths(parts.state)]
    rng = np.random.default_rng(0)
    leaves = [jax.device_put(rng.normal(size=x.shape).astype(x.dtype), x.sharding) for _, x in leaf_paths(parts.state)]
    state = jax.tree.unflatten(jax.tree.structure(parts.state), leaves)
    assert any("/average/block_01-01/attn/q" in path for path in paths)
    checkpoints = Checkpoints(tmp_path, 1, print)
    checkpoints.save(3, state, {"best_step": 3})
    checkpoints.close()
    single = make_parts(make_config(model={"layers": 4}, mesh={"data": 8}), 32, LR)
    abstract = with_shardings(single.state.params, {p: leaf.sharding for p, leaf in single.state.params.items()})
    average = numpy_of(averaged_weights(state.params, state.opt_state))
    for step, expected in (("best", average), ("3", average), ("best:raw", numpy_of(state.params))):
        found = load_weights(tmp_path, 3, step, abstract)
        assert list(found) == list(abstract)
        for path, leaf in found.items():
            np.testing.assert_array_equal(np.asarray(leaf, np.float64), expected[path], err_msg=f"{step}: {path}")
