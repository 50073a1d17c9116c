"""Does a phase train what it should at the cost it should, and does the next one begin with all that was learned?"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.check import find_problems
from lm.config import ConfigError, OptimConfig, unfreeze_gradually
from lm.optim import make_optimizer, make_schedule, read_tables
from lm.params import leaf_paths, split_stacks
from lm.parts import abstract_batch, cast_frozen, make_parts, needed_flops, param_shapes
from lm.phases import add_phases, carry, check_untouched, lengths, make_later, make_phases, phase_after
from lm.receipt import format_receipt, hash_frozen, make_receipt, xla_flops
from lm.sharding import put_batch
from lm.start import start_state
from lm.step import TrainState

OPTIMIZERS = ("adamw", "sgd", "lion", *(pytest.param(name, marks=pytest.mark.slow) for name in ("adafactor", "muon")))
SMALL = {"layers": 3, "mlp_gated": False, "qk_norm": False, "position": "none"}
TABLE = unfreeze_gradually(layers=3, every=2, blocks=2)
B1, B2, EPS, DECAY, CLIP, RATE = 0.9, 0.999, 1e-4, 0.3, 0.5, 1e-2
OPTIM = {"train": TABLE, "b1": B1, "b2": B2, "eps": EPS, "weight_decay": DECAY, "clip_norm": CLIP}


def test_the_table_of_gradual_unfreezing():
    assert unfreeze_gradually(layers=3, every=5) == (
        ("norm_out/.*|head", True), ("block_02/.*", True), ("block_01/.*", 5), ("block_00/.*", 10), (".*", 15),
    )  # fmt: skip
    assert TABLE[-2:] == (("block_01/.*", 2), (".*", False))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ((("head", True), (".*", 20)), "'.*' from 20 would never train: the run ends at train.steps=20"),
        ((("head", True), (".*", -1)), "must be steps >= 1"),
        ((("head", True), (".*", 0)), "must be steps >= 1"),
        ((("head", 3), (".*", 5)), "nothing trains before step 3; say True in a row"),
    ],
)
def test_impossible_steps_are_listed(make_config, table, words):
    assert [p for p in find_problems(make_config(optim={"train": table})) if "optim.train" in p and words in p]


def test_rows_that_match_nothing_first(make_config):
    """A last '.*' may match nothing, so only the model tells that the first phase would train nothing."""
    with pytest.raises(ConfigError, match="nothing trains before step 4"):
        read_tables(OptimConfig(train=(("a|b", 4), (".*", True))), ["a", "b"])
    with pytest.raises(ValueError, match="only what earlier rows took"):
        read_tables(OptimConfig(train=(("a", True), ("a|b", True), ("b", 4))), ["a", "b"])


def test_rates_fall_with_depth(make_config):
    paths = [
        "block_00/attn/q",
        "block_01/attn/q",
        "block_01/norm/scale",
        "embed",
        "head",
        "norm_out/scale",
        "positions",
    ]
    config = OptimConfig(layer_decay=0.5, lr_multipliers=((".*scale", 3.0), (".*", 1.0)))
    assert read_tables(config, paths).lr_multiplier == dict(zip(paths, (0.25, 0.5, 1.5, 0.125, 1.0, 3.0, 0.125)))
    for value in (0.0, -1.0, 1.5):
        assert any("optim.layer_decay" in p for p in find_problems(make_config(optim={"layer_decay": value})))


@pytest.fixture(scope="module")
def unrolled(make_config):
    return make_phases(make_config(model=SMALL, optim=OPTIM), 32, RATE, jax.devices()[:1])


@pytest.fixture(scope="module", params=["stacks", pytest.param("unrolled", marks=pytest.mark.slow)])
def phased(request, unrolled, make_config, start, make_batch):
    """Two steps in each of two phases, in stacks over eight devices or plainly on one: the phases, what was in the state
    before and after the boundary, the paths of the parameters after it, and the parameters at the end."""
    config = make_config(model={**SMALL, "scan": True}, optim=OPTIM, mesh={"data": 2, "fsdp": 4})
    phases = unrolled if request.param == "unrolled" else make_phases(config, 32, RATE)
    state = start_state(phases[0], params_of(phases[0], start, phases[0].config))
    seen, paths = [], set()
    for first, parts in phases.items():
        if first:
            seen.append(dict(leaf_paths(jax.tree.map(np.asarray, state))))
            state = carry(state, parts)
            seen.append(dict(leaf_paths(jax.tree.map(np.asarray, state))))
            paths = set(state.params)
        for i in range(2):
            batch = put_batch(make_batch(first + i), parts.mesh, 8)
            state, metrics = parts.train_step(state, batch, jax.random.key(7))
        assert metrics["skipped"] == 0
    return phases, seen, paths, split_stacks(jax.tree.map(np.asarray, state.params))


def params_of(parts, start, config):
    params = start(config, parts.model.runs).state.params
    return jax.device_put(params, {p: leaf.sharding for p, leaf in parts.state.params.items()})


def test_two_phases_against_numpy(phased, make_batch, start, make_config):
    """Every leaf has Adam's bias correction by the steps since it began, and the clip's norm is of what trains then."""
    run = start(make_config(model=SMALL, optim=OPTIM))
    grad = jax.jit(jax.grad(loss_of(run.model)))
    params = {p: np.float64(leaf) for p, leaf in run.state.params.items()}
    begins = run.treatment.begins
    m = {p: np.zeros(leaf.shape) for p, leaf in params.items()}
    v = {p: np.zeros(leaf.shape) for p, leaf in params.items()}
    for step in range(4):
        grads = grad({p: jnp.float32(leaf) for p, leaf in params.items()}, make_batch(step))
        grads = {p: np.float64(g) for p, g in grads.items() if begins[p] <= step}
        norm = math.sqrt(sum((g**2).sum() for g in grads.values()))
        for p, g in grads.items():
            g, n = g * min(1.0, CLIP / norm), step + 1 - begins[p]
            m[p], v[p] = B1 * m[p] + (1 - B1) * g, B2 * v[p] + (1 - B2) * g**2
            update = m[p] / (1 - B1**n) / (np.sqrt(v[p] / (1 - B2**n)) + EPS)
            params[p] = params[p] - RATE * (update + (0 if p.endswith(("scale", "bias")) else DECAY) * params[p])
    for p, leaf in params.items():
        np.testing.assert_allclose(phased[-1][p], leaf, atol=2e-5, err_msg=p)


def loss_of(model):
    def loss(params, batch):
        logits = model.apply(params, batch["tokens"], batch["positions"], batch["segments"])
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        return -(log_p * batch["weights"]).sum() / batch["weights"].sum()

    return loss


def test_the_next_phase_begins_with_all_that_was_there_bit_for_bit(phased):
    phases, seen, paths, _ = phased
    before, after = map(split_stacks, seen)
    assert before.keys() < after.keys()
    for path, leaf in before.items():
        assert leaf.tobytes() == after[path].tobytes(), path
    new = after.keys() - before.keys()
    assert {p.split("block_01/")[-1] for p in new} >= {"attn/q", "mlp/up"}
    assert all("block_01/" in p or p.endswith("count") for p in new)
    assert not any(after[p].any() for p in new)
    assert paths == set(phases[2].state.params)
    if phases[0].model.runs:
        assert [parts.model.runs for parts in phases.values()] == [((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 3))]
        spread = {p: leaf.sharding.shard_shape(leaf.shape) != leaf.shape for p, leaf in leaf_paths(phases[2].state)}
        moments = {p for p in spread if "opt_state" in p and p.endswith(("attn/q", "mlp/up"))}
        assert len(moments) == 8  # of two blocks, two of each
        assert all(spread[p] for p in moments)


def test_an_early_phase_costs_what_the_small_set_alone_would(unrolled, make_config):
    config, last = unrolled[0].config, unrolled[2]
    arguments = (config, last.model, last.treatment, last.state.params, last.state.opt_state, last.make_step)
    receipt = add_phases(make_receipt(*arguments, abstract_batch(config), hashes=False), unrolled)
    alone = make_config(model=SMALL, optim={**OPTIM, "train": tuple((p, on is True) for p, on in TABLE)})
    parts = make_parts(alone, 32, RATE, jax.devices()[:1])
    small = xla_flops(parts.make_step, parts.model, parts.treatment, abstract_batch(config))
    one, two = receipt["phases"]
    assert (one["begins"], one["steps"], two["begins"], two["steps"]) == (0, 2, 2, 18)
    assert one["flops_per_step"] == pytest.approx(small, rel=0.01)
    assert one["trained_params"] < two["trained_params"] == receipt["trained_params"]
    assert receipt["optimizer_numbers"] == 2 * receipt["trained_params"]
    assert needed_flops(unrolled[0]) == needed_flops(parts) < needed_flops(last)
    assert one["flops_per_step"] < two["flops_per_step"] == receipt["flops_per_step"]
    assert receipt["flops_of_run"] == 2 * one["flops_per_step"] + 18 * two["flops_per_step"]
    assert one["patterns"] == ["norm_out/.*|head", "block_02/.*"]
    assert two["patterns"] == ["block_01/.*"]
    text = format_receipt(receipt)
    assert "phase 2: after 2 steps, for 18" in text
    assert "FLOPs of the run" in text


def test_a_state_at_a_boundary_is_of_the_phase_that_ends(unrolled):
    phases = unrolled
    assert [phase_after(phases, step) for step in (0, 1, 2, 3, 20)] == [0, 0, 0, 2, 2]
    assert lengths(phases, 20) == {0: 2, 2: 18}
    for step, expected in ((0, [2]), (2, [2]), (3, [])):
        assert [phase.step for phase in make_later(phases, step, {}, dict, print)] == expected
    assert phases[2].treatment.at(1) == phases[0].treatment


def test_a_leaf_that_moved_before_its_phase_is_named(unrolled):
    phases = unrolled
    params = {p: np.full(leaf.shape, 0.5, np.float32) for p, leaf in phases[0].state.params.items()}
    receipt = {"frozen_sha256_before": hash_frozen(params, phases[0].treatment)}
    assert any(p.startswith("block_01") for p in receipt["frozen_sha256_before"])
    check_untouched(receipt, TrainState(None, params, None), phases[0], phases[2])
    moved = {
        **params,
        "block_01/attn/q": params["block_01/attn/q"] + 1e-6,
        "block_02/attn/q": 0 * params["block_02/attn/q"],
    }
    with pytest.raises(AssertionError, match=r"before they were to train: block_01/attn/q$"):
        check_untouched(receipt, TrainState(None, moved, None), phases[0], phases[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "nf4"])
def test_what_trains_later_is_held_whole(make_config, dtype):
    config = make_config(model={**SMALL, "scan": True}, optim={**OPTIM, "frozen_dtype": dtype})
    parts = make_parts(config, 32, RATE, after=0)
    held = {p: leaf.dtype for p, leaf in parts.state.params.items()}
    assert parts.model.runs == ((0, 1), (1, 2), (2, 3))
    for p, found in held.items():
        if not p.endswith("_absmax"):
            assert (found == jnp.float32) == p.startswith(("block_01", "block_02", "norm_out", "head")), p
    assert cast_frozen(param_shapes(parts.model), parts.treatment, dtype).keys() == held.keys()


SHAPES = {
    "block_00/attn/q": (6, 4),
    "block_00/norm/scale": (6,),
    "block_01/attn/q": (6, 4),
    "block_01/norm/scale": (6,),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_part_moves_as_if_trained_alone_from_its_beginning(name):
    """Without a clip parts do not meet: two phases are two runs, the second of which begins later."""
    rng = np.random.default_rng(0)
    params, *grads = ({p: rng.normal(size=s).astype(np.float32) for p, s in SHAPES.items()} for _ in range(5))
    stacked = {p: f"block_00-01/{p[9:]}" for p in SHAPES}

    def update(table, at, steps, stack=False, state=None):
        config = OptimConfig(name=name, train=table, clip_norm=0.0, schedule="constant", b2=0.999)
        treatment, tree = read_tables(config, list(SHAPES)).at(at), {**params}
        put = lambda t: {q: np.stack([t[p] for p in t if stacked[p] == q]) for q in set(stacked.values())}  # noqa: E731
        tree = put(params) if stack else params
        optimizer = make_optimizer(config, tree, treatment, make_schedule(config, 0.1, 9))
        new = optimizer.init(tree)
        if state is not None:
            old = dict(leaf_paths(state))
            new = jax.tree.unflatten(jax.tree.structure(new), [old.get(p, leaf) for p, leaf in leaf_paths(new)])
        found = None
        for g in steps:
            g = put(g) if stack else {p: g[p] if treatment.trained[p] else optax.MaskedNode() for p in params}
            found, new = optimizer.update(g, new, tree, step=jnp.asarray(0), norm=1.0)
        return split_stacks({p: u for p, u in found.items() if not isinstance(u, optax.MaskedNode)}), new

    both = (("block_01/.*", True), ("block_00/.*", 2))
    _, state = update(both, 1, grads[:2])
    top, _ = update((("block_01/.*", True), (".*", False)), 0, grads)
    bottom, _ = update((("block_00/.*", True), (".*", False)), 0, grads[2:])
    for stack in (False, True):
        found, _ = update(both, 2, grads[2:], stack, state)
        assert found.keys() == SHAPES.keys()
        for p, expected in {**top, **bottom}.items():
            np.testing.assert_allclose(found[p], expected, rtol=1e-4, atol=1e-6, err_msg=p)
