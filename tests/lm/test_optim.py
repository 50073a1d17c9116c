"""Does each optimizer follow its formula on what is trained, and leave the rest alone, bit for bit?"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config import OptimConfig, UserError
from lm.optim import (
    count_slots,
    make_optimizer,
    make_schedule,
    observe_eval,
    plateau_state,
    read_tables,
    restart_points,
    turning_points,
)
from lm.params import join_stacks, leaf_paths, make_runs, split_stacks

OPTIMIZERS = ("adamw", "sgd", "lion", "adafactor", "muon")
FROZEN_BOTTOM = (("embed|head|block_00/.*", False), (".*", True))
SHAPES = {
    "block_00/attn/q": (6, 4), "block_00/attn/q_bias": (4,), "block_00/mlp/up": (4, 8), "block_00/norm_attn/scale": (6,),
    "block_01/attn/q": (6, 4), "block_01/attn/q_bias": (4,), "block_01/mlp/up": (4, 8), "block_01/norm_attn/scale": (6,),
    "embed": (5, 6), "norm_out/bias": (6,), "norm_out/scale": (6,),
}  # fmt: skip
STACKED = [p.replace("block_00", "block_00-01") for p in SHAPES if "block_01" not in p]


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {p: rng.normal(size=shape).astype(np.float32) * scale for p, shape in SHAPES.items()}


def optimizer_of(config, params):
    treatment = read_tables(config, list(split_stacks(params)))
    schedule = make_schedule(config, config.peak_lr, 10)
    optimizer = make_optimizer(config, params, treatment, schedule)
    trained = [p for p in params if treatment.trained[next(iter(split_stacks({p: params[p]})))]]
    return optimizer, trained


def updates_of(config, params, grads_by_step):
    """The update of each step, on fixed parameters; frozen leaves are left out."""
    optimizer, trained = optimizer_of(config, params)
    state, found = optimizer.init(params), []
    for step, grads in enumerate(grads_by_step):
        masked = {p: grads[p] if p in trained else optax.MaskedNode() for p in params}
        norm = optax.tree.norm({p: grads[p] for p in trained})
        updates, state = jax.jit(optimizer.update)(masked, state, params, step=jnp.asarray(step), norm=norm)
        found.append({p: np.asarray(updates[p]) for p in trained})
    return found


def clipped(grads, norm):
    total = math.sqrt(sum((np.float64(g) ** 2).sum() for g in grads.values()))
    return {p: np.float64(g) * min(1.0, norm / total) for p, g in grads.items()}


def is_decayed(path):
    return path.split("/")[-1] in ("q", "up", "embed")


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
@pytest.mark.parametrize("clip", [1.0, 1e6])
def test_two_steps_against_the_formula(name, clip):
    config = OptimConfig(name=name, peak_lr=0.1, schedule="linear", clip_norm=clip, weight_decay=0.3, momentum=0.8)
    params, grads = draw(0), [draw(1, 2.0), draw(2, 2.0)]
    found = updates_of(config, params, grads)
    m = {p: np.zeros(g.shape) for p, g in grads[0].items()}
    v = {p: np.zeros(g.shape) for p, g in grads[0].items()}
    for step in range(2):
        lr = 0.1 * (1 - 0.9 * step / 10)
        for p, g in clipped(grads[step], clip).items():
            if name == "adamw":
                m[p] = config.b1 * m[p] + (1 - config.b1) * g
                v[p] = config.b2 * v[p] + (1 - config.b2) * g**2
                m_hat, v_hat = m[p] / (1 - config.b1 ** (step + 1)), v[p] / (1 - config.b2 ** (step + 1))
                u = m_hat / (np.sqrt(v_hat) + config.eps)
            elif name == "sgd":
                m[p] = u = g + config.momentum * m[p]
            else:
                u = np.sign(config.b1 * m[p] + (1 - config.b1) * g)
                m[p] = config.b2 * m[p] + (1 - config.b2) * g
            u = -lr * (u + (0.3 * params[p] if is_decayed(p) else 0.0))
            np.testing.assert_allclose(found[step][p], u, rtol=1e-4, atol=1e-6, err_msg=f"{p} step {step}")


def test_first_adafactor_step_against_the_formula():
    """With no history the second moment is g^2: the sign, times the size of the parameter (arXiv:1804.04235)."""
    config = OptimConfig(name="adafactor", peak_lr=0.1, schedule="constant", clip_norm=0.0, weight_decay=0.0)
    params, grads = draw(0), draw(1)
    for p, u in updates_of(config, params, [grads])[0].items():
        size = math.sqrt((params[p] ** 2).mean())
        np.testing.assert_allclose(u, -0.1 * np.sign(grads[p]) * size, rtol=1e-4, err_msg=p)


def test_adafactor_holds_rows_and_columns_of_large_matrices_layer_by_layer():
    config = OptimConfig(name="adafactor", peak_lr=0.1, schedule="constant", decay=((".*", True),))
    rng = np.random.default_rng(0)
    single = {f"block_{i:02d}/mlp/up": rng.normal(size=(128, 160)).astype(np.float32) * (1 + i) for i in range(2)}
    grads = {p: rng.normal(size=(128, 160)).astype(np.float32) * (1 + 9 * i) for i, p in enumerate(single)}
    slots = count_slots(optimizer_of(config, single)[0].init(single), single)
    assert all(128 + 160 <= n <= 128 + 160 + 2 for n in slots.values())
    names = ["block_00-01/mlp/up"]
    found = updates_of(config, join_stacks(single, names), [join_stacks(grads, names)])[0]
    for p, u in updates_of(config, single, [grads])[0].items():
        np.testing.assert_allclose(split_stacks(found)[p], u, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("stacked", [False, True])
def test_muon_updates_of_matrices_are_nearly_orthogonal(stacked):
    config = OptimConfig(name="muon", peak_lr=1.0, schedule="constant", weight_decay=0.0)
    params, grads = draw(0), draw(1, 3.0)
    if stacked:
        found = split_stacks(updates_of(config, join_stacks(params, STACKED), [join_stacks(grads, STACKED)])[0])
    else:
        found = updates_of(config, params, [grads])[0]
    for p, u in found.items():
        if p.endswith(("/q", "/up")):
            wide = math.sqrt(max(1.0, u.shape[1] / u.shape[0]))
            values = np.linalg.svd(u / wide, compute_uv=False)
            assert values.min() > 0.5, p
            assert values.max() < 1.5, p
            assert (u * grads[p]).sum() < 0, p  # downhill
        else:  # the first step of Adam with Nesterov momentum: the sign, times 1 + b1 / (1 + b1)
            np.testing.assert_allclose(u, -np.sign(grads[p]) * (1 + 0.9 / 1.9), rtol=1e-3, err_msg=p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_decay_spares_norms_biases_and_frozen(name):
    """With no gradient all that moves a parameter is its decay: rate x decay x parameter."""
    config = OptimConfig(
        name=name, peak_lr=0.1, schedule="constant", weight_decay=0.5, train=(("embed", False), (".*", True))
    )
    params = draw(0)
    zeros = {p: np.zeros_like(x) for p, x in params.items()}
    found = updates_of(config, params, [zeros, zeros])[1]
    assert set(found) == set(params) - {"embed"}
    for p, u in found.items():
        expected = -0.05 * params[p] if is_decayed(p) else np.zeros_like(params[p])
        np.testing.assert_allclose(u, expected, rtol=1e-5, atol=1e-9, err_msg=p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_multipliers_and_decay_scale_updates_exactly_layer_by_layer(name):
    """Powers of two are exact: a stack's layers must each get their own."""
    decay = (("block_01/.*", False), (".*(scale|bias)", False), (".*", True))
    plain = OptimConfig(name=name, peak_lr=0.1, schedule="constant", decay=decay)
    table = (("block_00/attn/.*", 0.5), ("block_01/.*", 4.0), ("embed", 0.0), (".*", 1.0))
    scaled = OptimConfig(name=name, peak_lr=0.1, schedule="constant", decay=decay, lr_multipliers=table)
    params, grads = draw(0), draw(1)
    before = updates_of(plain, params, [grads])[0]
    after = updates_of(scaled, params, [grads])[0]
    stacked = updates_of(scaled, join_stacks(params, STACKED), [join_stacks(grads, STACKED)])[0]
    for p, u in split_stacks(stacked).items():
        factor = (
            0.5 if p.startswith("block_00/attn") else 4.0 if p.startswith("block_01") else 0.0 if p == "embed" else 1.0
        )
        np.testing.assert_array_equal(after[p], factor * before[p], err_msg=p)
        np.testing.assert_allclose(u, after[p], rtol=1e-4, atol=1e-7, err_msg=p)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_exists_for_trained_leaves_only(name):
    config = OptimConfig(name=name, peak_lr=0.1, train=(("embed|block_00/.*", False), (".*", True)))
    params = draw(0)
    state = optimizer_of(config, params)[0].init(params)
    trained = [p for p in params if p != "embed" and not p.startswith("block_00")]
    slots = count_slots(state, params)
    assert set(slots) == set(params)
    assert all(n == 0 for p, n in slots.items() if p not in trained)
    assert all(n > 0 for p, n in slots.items() if p in trained)
    size = sum(math.prod(SHAPES[p]) for p in trained)
    if name in ("adamw", "sgd", "lion"):
        assert sum(slots.values()) == size * (2 if name == "adamw" else 1)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state))
    other = sum(leaf.size for p, leaf in leaf_paths(state) if not p.endswith(tuple(trained)))
    assert numbers == sum(slots.values()) + other
    assert other <= 32  # step counts and Newton-Schulz coefficients, whatever the model's size


@pytest.fixture(scope="module", params=OPTIMIZERS)
def unrolled_and_scanned(request, make_config, start, make_batch):
    """Three layers, the lowest frozen, five steps with decay, momentum and clip: a run unrolled and one in two stacks."""
    optim = {"name": request.param, "train": FROZEN_BOTTOM, "weight_decay": 0.3, "clip_norm": 0.1, "eps": 1e-4}
    model = {"layers": 3, "mlp_gated": False, "qk_norm": False, "position": "none"}
    runs = [start(make_config(model={**model, "scan": scan}, optim=optim)) for scan in (False, True)]
    batches = [make_batch(i) for i in range(5)]
    states = []
    for run in runs:
        state, seen = run.state, [run.state]
        for batch in batches:
            state, metrics = run.step(state, batch)
            seen.append(state)
        assert metrics["skipped"] == 0
        states.append([{p: np.asarray(leaf) for p, leaf in split_stacks(s.params).items()} for s in seen])
    assert runs[1].model.runs == ((0, 1), (1, 3))
    return states


def test_frozen_leaves_are_bit_identical_after_five_steps(unrolled_and_scanned):
    for states in unrolled_and_scanned:
        for p, leaf in states[-1].items():
            frozen = p in ("embed", "head") or p.startswith("block_00")
            same = leaf.tobytes() == states[0][p].tobytes()
            assert same == frozen, p


def test_scanned_is_unrolled_after_three_steps(unrolled_and_scanned):
    unrolled, scanned = unrolled_and_scanned
    for p, leaf in unrolled[3].items():
        np.testing.assert_allclose(scanned[3][p], leaf, atol=1e-5, err_msg=p)


def test_is_plain_optax_on_full_gradients(make_config, start, make_batch):
    """And the clip's norm counts trained leaves only: a frozen gradient of any size changes nothing."""
    optim = {"train": FROZEN_BOTTOM, "weight_decay": 0.3, "clip_norm": 0.5, "eps": 1e-4}
    run = start(make_config(optim=optim))
    frozen = {p: not on for p, on in run.treatment.trained.items()}
    chain = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(1e-2, 0.9, 0.95, 1e-4, weight_decay=0.3, mask={p: not p.endswith("scale") for p in frozen}),
    )
    plain = optax.selective_transform(chain, freeze_mask=frozen)
    params, state = run.state.params, run.state
    plain_state = plain.init(params)
    gradient = jax.jit(jax.grad(full_loss(run.model)))
    for i in range(3):
        batch = make_batch(i)
        grads = gradient(params, batch)
        assert optax.tree.norm({p: g for p, g in grads.items() if frozen[p]}) > 0.1
        norm = optax.tree.norm({p: g for p, g in grads.items() if not frozen[p]})
        assert norm > 0.5  # so the clip works
        updates, plain_state = jax.jit(plain.update)(grads, plain_state, params)
        params = {p: leaf if frozen[p] else leaf + updates[p] for p, leaf in params.items()}
        state, metrics = run.step(state, batch)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        for p, leaf in params.items():
            np.testing.assert_allclose(state.params[p], leaf, atol=1e-6, err_msg=p)


def full_loss(model):
    def loss(params, batch):
        logits = model.apply(params, batch["tokens"], batch["positions"], batch["segments"])
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), batch["targets"][..., None], -1)[..., 0]
        return -(log_p * batch["weights"]).sum() / batch["weights"].sum()

    return loss


def test_tables_that_do_not_fit_name_their_key():
    paths = list(SHAPES)
    for key in ("train", "decay", "lr_multipliers"):
        with pytest.raises(UserError, match=rf"optim\.{key}: pattern 'block_7/\.\*' matches no parameter"):
            read_tables(OptimConfig(**{key: (("block_7/.*", True), (".*", True))}), paths)
        with pytest.raises(UserError, match=rf"optim\.{key}: no pattern matches .*embed"):
            read_tables(OptimConfig(**{key: (("block.*|norm.*", True),)}), paths)


STEPS, WARMUP, PEAK = 100, 10, 0.5
SCHEDULES = ("constant", "linear", "cosine", "exponential", "wsd", "inverse_sqrt", "plateau")


def rates(name, warmup=WARMUP, **keys):
    schedule = make_schedule(OptimConfig(schedule=name, warmup_steps=warmup, **keys), PEAK, STEPS)
    traced = np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(STEPS + 1)))
    assert float(schedule(3)) == pytest.approx(traced[3])
    return traced


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_warms_up_from_above_zero_without_jumps(name):
    lr = rates(name)
    assert (lr > 0).all()
    np.testing.assert_allclose(lr[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-5)
    assert lr.max() == pytest.approx(PEAK)
    assert np.abs(np.diff(lr)).max() <= PEAK / WARMUP * 1.001
    assert (np.diff(lr[WARMUP:]) <= 1e-7).all()  # never up again
    assert rates(name, warmup=0)[0] == pytest.approx(PEAK)


@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("end", [0.0, 0.1, 1.0])
def test_schedule_ends_at_its_ratio(name, end):
    lr = rates(name, end_lr_ratio=end)
    assert lr[STEPS] == pytest.approx(PEAK * end, abs=1e-6)
    assert lr[STEPS - 1] == pytest.approx(PEAK * end, abs=PEAK * 0.06)


def test_shapes_of_schedules():
    assert (rates("constant")[WARMUP:] == np.float32(PEAK)).all()
    assert (rates("plateau")[WARMUP:] == np.float32(PEAK)).all()
    middle = (WARMUP + STEPS) // 2
    assert rates("linear", end_lr_ratio=0.2)[middle] == pytest.approx(PEAK * 0.6)
    assert rates("cosine", end_lr_ratio=0.2)[middle] == pytest.approx(PEAK * 0.6)
    assert rates("exponential", end_lr_ratio=0.01)[middle] == pytest.approx(PEAK / 10)
    wsd = rates("wsd", decay_steps=30, end_lr_ratio=0.0)
    assert (wsd[WARMUP:71] == np.float32(PEAK)).all()
    np.testing.assert_allclose(wsd[70:], np.linspace(PEAK, 0, 31), atol=1e-6)
    assert (rates("wsd")[WARMUP:81] == np.float32(PEAK)).all()  # default: the last fifth
    inverse = rates("inverse_sqrt")
    assert inverse[4 * WARMUP - 1] == pytest.approx(PEAK / 2)
    assert inverse[9 * WARMUP - 1] == pytest.approx(PEAK / 3)


@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine_restarts_at_exact_steps(end):
    """Cycles of 10, 20 and 40 steps after the warm-up, each from half the peak of the one before."""
    keys = {"restart_steps": 10, "restart_length_factor": 2.0, "restart_peak_factor": 0.5, "end_lr_ratio": end}
    lr = rates("cosine_restarts", **keys)
    np.testing.assert_allclose(lr[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-5)
    for begin, length, peak in [(10, 10, PEAK), (20, 20, PEAK / 2), (40, 40, PEAK / 4), (80, 80, PEAK / 8)]:
        done = np.arange(min(length, STEPS + 1 - begin)) / length
        expected = peak * (end + (1 - end) * 0.5 * (1 + np.cos(np.pi * done)))
        np.testing.assert_allclose(lr[begin : begin + length], expected, rtol=1e-4, atol=1e-7)
        assert lr[begin] == np.float32(peak)
    up = np.flatnonzero(np.diff(lr[WARMUP - 1 :]) > 0) + WARMUP
    assert up.tolist() == [20, 40, 80]


def test_cycles_of_uneven_length_leave_no_step_out():
    config = OptimConfig(schedule="cosine_restarts", warmup_steps=3, restart_steps=7, restart_length_factor=1.3)
    points = restart_points(config, 10_000)
    assert next(iter(points)) == 3
    assert [begin + length for begin, length in points.items()][:-1] == list(points)[1:]
    assert max(points) < 10_000 <= max(points) + points[max(points)]
    assert restart_points(OptimConfig(), 100) == {}


def test_turning_points_are_where_the_rate_turns():
    keys = {"restart_steps": 10, "restart_length_factor": 2.0}
    config = OptimConfig(schedule="cosine_restarts", warmup_steps=WARMUP, **keys)
    lr, points = rates("cosine_restarts", **keys), turning_points(config, STEPS)
    assert [step for step, what in points.items() if what == "restart"] == [21, 41, 81]
    assert lr[21 - 1] == np.float32(PEAK)  # the log counts steps from 1
    assert points[WARMUP] == "end of the warm-up"
    assert points[STEPS] == "last step"
    wsd = turning_points(OptimConfig(schedule="wsd", decay_steps=30), STEPS)
    assert wsd == {1: "first step", 71: "decay begins", 100: "last step"}
    assert turning_points(OptimConfig(schedule="constant"), 1) == {1: "last step"}


def test_plateau_lowers_the_rate_after_patience_and_the_state_survives(make_config, start, make_batch):
    optim = {"name": "sgd", "momentum": 0.0, "schedule": "plateau", "plateau_factor": 0.5, "plateau_patience": 2}
    run = start(make_config(optim={**optim, "peak_lr": 0.25, "weight_decay": 0.0, "clip_norm": 0.0}))
    state, batch, seen = run.state, make_batch(), []
    first = run.step(state, batch)[0].params["head"] - state.params["head"]
    for loss in (3.0, 2.0, 2.5, 2.4, 2.3, 2.2, 1.0, 1.5):
        opt_state = observe_eval(run.config.optim, state.opt_state, loss)
        leaves, tree = jax.tree.flatten(opt_state)  # as a checkpoint does it
        opt_state = jax.tree.unflatten(tree, [np.asarray(leaf) for leaf in leaves])
        state = type(state)(state.step, run.state.params, opt_state)
        new, metrics = run.step(state, batch)
        moved = new.params["head"] - run.state.params["head"]
        np.testing.assert_allclose(moved, first * (metrics["lr"] / 0.25), atol=1e-7)
        seen.append(float(metrics["lr"]))
        state = new
    assert seen == [0.25, 0.25, 0.25, 0.125, 0.125, 0.0625, 0.0625, 0.0625]
    assert plateau_state(start(make_config()).state.opt_state) is None


def test_runs_of_the_frozen_bottom(make_config, start):
    run = start(make_config(model={"layers": 3, "scan": True}, optim={"train": FROZEN_BOTTOM}))
    assert run.model.runs == make_runs(run.treatment.trained, 3) == ((0, 1), (1, 3))
    slots = count_slots(run.state.opt_state, run.state.params)
    leaves = split_stacks(run.state.params)
    assert slots == {p: 2 * leaf.size * run.treatment.trained[p] for p, leaf in leaves.items()}
