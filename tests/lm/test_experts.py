"""Do tokens go to the experts that they choose, and does it cost and mean the same however the batch lies?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from lm.check import check_config
from lm.checkpoint import Checkpoints, load
from lm.config import ConfigError, MeshConfig, UserError, adapters_only, last_layers
from lm.generate import generate
from lm.model import grouped
from lm.model.experts import balance, run_experts
from lm.model.grouped import matmul_balanced, matmul_grouped, matmul_grouped_coded, tile_rows
from lm.model.transformer import Model
from lm.params import split_stacks
from lm.parts import make_loss, make_parts, with_shardings
from lm.sampling import Sampling
from lm.serve.slots import Slots, as_arrays
from lm.sharding import make_mesh, param_shardings, param_spec

MOE = {"experts": 4, "experts_per_token": 2, "mlp_dim": 24}
SIZES = [(37, 5, 3, 4), (8, 4, 6, 8), (200, 6, 5, 3), (3, 4, 4, 1)]


def arrays(rows, dim, width, experts, empty=0):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(empty, experts, rows))
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((rows, dim), (experts, dim, width), (rows, width)))
    return x, w, g, ids, jnp.asarray(np.bincount(ids, minlength=experts), jnp.int32)


@pytest.mark.parametrize("sizes", SIZES)
def test_each_row_meets_the_matrix_of_its_expert(sizes):
    x, w, g, ids, counts = arrays(*sizes, empty=min(1, sizes[3] - 1))
    y, pull = jax.vjp(lambda x, w: matmul_grouped(x, w, counts), x, w)
    np.testing.assert_allclose(y, np.einsum("rd,rdf->rf", x, w[ids]), atol=1e-5)
    x_grad, w_grad = pull(g)
    np.testing.assert_allclose(x_grad, np.einsum("rf,rdf->rd", g, w[ids]), atol=1e-5)
    wanted = np.zeros_like(w)
    np.add.at(wanted, ids, np.einsum("rd,rf->rdf", x, g))
    np.testing.assert_allclose(w_grad, wanted, atol=1e-5)


def test_tiles_and_the_tpu_product_give_the_same():
    x, w, g, _, counts = arrays(100, 8, 6, 5)
    np.testing.assert_allclose(grouped._rows_tiled(x, w, counts), jax.lax.ragged_dot(x, w, counts), atol=1e-5)
    ours, theirs = grouped._matrices_tiled(x, g, counts), grouped._matrices_ragged(x, g, counts)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_codes_are_what_they_stand_for():
    from lm.model.codes import decode, encode

    x, w, g, _, counts = arrays(40, 16, 8, 4)
    for kind in ("int8", "nf4"):
        held = encode(jnp.asarray(w), kind)
        y, pull = jax.vjp(lambda x, held=held: matmul_grouped_coded(x, *held, counts), x)
        wanted, pull_plain = jax.vjp(lambda x, held=held: matmul_grouped(x, decode(*held), counts), x)
        np.testing.assert_allclose(y, wanted, atol=1e-6)
        np.testing.assert_allclose(pull(g)[0], pull_plain(g)[0], atol=1e-6)


def test_the_product_that_is_counted_has_as_many_flops_as_rows():
    x, w, *_ = arrays(32, 8, 6, 4)
    flops = jax.jit(matmul_balanced).lower(x, w).cost_analysis()["flops"]
    assert flops == 2 * 32 * 8 * 6
    assert matmul_balanced(x[:30], w).shape == (30, 6)
    assert tile_rows(32, 4) == 8


def reference(config, x, router, up, gate, down):
    """Mixtral's block in float64, token by token."""
    y = np.zeros_like(x)
    for place in np.ndindex(x.shape[:2]):
        logits = x[place] @ router
        p = np.exp(logits - logits.max())
        p /= p.sum()
        chosen = np.argsort(-p, kind="stable")[: config.experts_per_token]
        share = p[chosen] / p[chosen].sum() if config.expert_norm else p[chosen]
        for e, s in zip(chosen, share):
            a = x[place] @ gate[e]
            y[place] += s * ((a / (1 + np.exp(-a)) * (x[place] @ up[e])) @ down[e])
    return y


def draw(config, rows=3, length=7, seed=0):
    rng, (X, D, F) = np.random.default_rng(seed), (config.experts, config.dim, config.mlp_width)
    shapes = ((rows, length, D), (D, X), (X, D, F), (X, D, F), (X, F, D))
    return [rng.normal(size=shape) for shape in shapes]


def dense(config, x, router, up, gate, down):
    """All experts computed, those not chosen masked."""
    probs = jax.nn.softmax(x @ router)
    shares, ids = jax.lax.top_k(probs, config.experts_per_token)
    shares = shares / shares.sum(-1, keepdims=True) if config.expert_norm else shares
    weights = (jax.nn.one_hot(ids, config.experts) * shares[..., None]).sum(2)
    h = jax.nn.silu(jnp.einsum("btd,xdf->btxf", x, gate)) * jnp.einsum("btd,xdf->btxf", x, up)
    return jnp.einsum("btxf,xfd,btx->btd", h, down, weights)


def ours(config, x, router, up, gate, down):
    matrices = {"up": (up,), "gate": (gate,), "down": (down,)}
    return run_experts(config, x, router, matrices, jnp.ones(x.shape[:2], jnp.int32), None)[0]


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "chosen", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)]
)
def test_output_and_gradients(make_model_config, norm, chosen):
    config = make_model_config(**{**MOE, "experts_per_token": chosen, "expert_norm": norm})
    exact = draw(config)
    x, *weights = (jnp.asarray(a, jnp.float32) for a in exact)
    np.testing.assert_allclose(ours(config, x, *weights), reference(config, *exact), rtol=1e-4, atol=1e-4)
    g = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)
    found = jax.vjp(lambda *a: ours(config, *a), x, *weights)[1](g)
    wanted = jax.vjp(lambda *a: dense(config, *a), x, *weights)[1](g)
    for one, other in zip(found, wanted):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(other).max() + 1))


def balance_of_documents(config, probs, ids, segments, weights):
    """The definition, document by document, in float64."""
    total = 0.0
    for row in range(len(probs)):
        for s in np.unique(segments[row]):
            here = segments[row] == s
            w, held = weights[row, here], weights[row, here].sum()
            if held:
                counts = np.zeros(config.experts)
                np.add.at(counts, ids[row, here], np.repeat(w[:, None], ids.shape[-1], 1))
                total += held * config.experts * (counts / held) @ ((w[:, None] * probs[row, here]).sum(0) / held)
    return total


def test_balance_is_what_it_says(make_model_config, make_batch):
    config, batch, rng = make_model_config(**MOE), make_batch(), np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(4), batch["tokens"].shape)
    weights = batch["weights"] * rng.uniform(0.5, 1.5, probs.shape[:2])
    ids = np.argsort(-probs, axis=-1)[..., :2]
    found = balance(
        jnp.asarray(probs, jnp.float32), jnp.asarray(ids), batch["segments"], jnp.asarray(weights, jnp.float32)
    )
    wanted = balance_of_documents(config, probs, ids, batch["segments"], weights)
    np.testing.assert_allclose(found.sum(), wanted, rtol=1e-5)
    even = jnp.full((1, 4, 4), 0.25)
    cycle = jnp.asarray([[[0, 1], [2, 3], [0, 1], [2, 3]]])
    ones = jnp.ones((1, 4))
    np.testing.assert_allclose(balance(even, cycle, ones.astype(int), ones) / 4, [2.0])  # k, when even


def config_of(make_config, **more):
    model = {**MOE, **more.pop("model", {})}
    return make_config(model=model, train={"balance_loss": 0.5, **more.pop("train", {})}, **more)


def test_rows_do_not_depend_on_other_rows(make_model, make_batch):
    model, params = make_model(**MOE)
    batch = make_batch()
    inputs = [jnp.asarray(batch[key]) for key in ("tokens", "positions", "segments")]
    whole = model.apply(params, *inputs)
    for row in (0, 5):
        np.testing.assert_allclose(model.apply(params, *(x[row : row + 1] for x in inputs))[0], whole[row], atol=1e-6)
    tokens = jnp.where(batch["segments"] == 0, 7, batch["tokens"])  # what stands on padding does not matter
    there = batch["segments"] > 0
    np.testing.assert_allclose(model.apply(params, tokens, *inputs[1:])[there], whole[there], atol=1e-6)


def sums_of(run, batch):
    loss = make_loss(run.model, run.config)
    grads, sums = jax.jit(jax.grad(loss, has_aux=True), static_argnums=2)(run.state.params, batch, None)
    return {p: np.asarray(leaf) for p, leaf in grads.items()}, {k: float(v) for k, v in sums.items()}


def assert_same(one, other, rtol=1e-5):
    for (grads, sums), (others, wanted) in [(one, other)]:
        assert set(sums) == set(wanted)
        for key in sums:
            np.testing.assert_allclose(sums[key], wanted[key], rtol=1e-6, err_msg=key)
        for path in grads:
            size = np.abs(others[path]).max()
            np.testing.assert_allclose(grads[path], others[path], atol=rtol * size, err_msg=path)


def test_the_loss_does_not_depend_on_packing_or_batches(make_config, start, pack):
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 32, n) for n in (5, 4, 6, 3, 7, 4)]
    run = start(config_of(make_config, data={"batch_size": 6}))
    alone = sums_of(run, pack(documents, [(d,) for d in range(6)], 12))
    assert alone[1]["balance"] > 2 * alone[1]["weight"]  # uneven
    assert alone[1]["objective"] > alone[1]["nll"] + 0.5 * alone[1]["balance"] - 1e-3
    assert_same(sums_of(run, pack(documents, [(3, 0), (), (1, 2), (4, 5)], 12)), alone)
    parts = [sums_of(run, pack(documents, [(d,) for d in some], 12)) for some in ((0, 1, 2, 3), (4, 5))]
    assert_same(jax.tree.map(lambda a, b: a + b, *parts), alone)


def test_micro_batches_and_stacks_take_the_same_step(make_config, start, make_batch):
    after, metrics = [], []
    for scan, micro in ((False, 1), (False, 4), (True, 2)):
        run = start(config_of(make_config, model={"scan": scan}, train={"micro_batches": micro}, optim={"name": "sgd"}))
        state, found = run.steps([make_batch()])
        after.append({p: np.asarray(leaf) for p, leaf in split_stacks(state.params).items()})
        metrics.append(found)
    assert metrics[0]["train/balance"] > 2
    for other, found in zip(after[1:], metrics[1:]):
        for key in ("train/loss", "train/objective", "train/balance"):
            np.testing.assert_allclose(found[key], metrics[0][key], rtol=1e-6)
        for path in other:
            np.testing.assert_allclose(other[path], after[0][path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    "mesh",
    [
        *(pytest.param(m, marks=pytest.mark.slow) for m in ({"data": 8}, {"fsdp": 8, "data": 1}, {"data": 4, "context": 2})),
        {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "fsdp": 2, "context": 2, "tensor": 2},
    ],
    ids=str,
)  # fmt: skip
def test_every_mesh_takes_the_same_step(make_config, start, start_sharded, make_batch, mesh):
    config = config_of(make_config, model={"scan": True}, optim={"name": "sgd"}, train={"micro_batches": 1})
    alone, metrics = start(config).steps([make_batch()])
    _, state, step = start_sharded(replace(config, mesh=MeshConfig(**mesh)))
    state, found = step(state, make_batch())
    for key in ("train/loss", "train/objective", "train/balance", "grad_norm"):
        np.testing.assert_allclose(found[key], metrics[key], rtol=1e-5)
    for path, leaf in alone.params.items():
        np.testing.assert_allclose(state.params[path], leaf, atol=2e-6, err_msg=path)


def test_matrices_of_experts_lie_as_those_of_an_mlp(make_config):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert param_spec("block_00/mlp/up", (4, 16, 24), mesh) == PartitionSpec(None, "fsdp", "tensor")
    assert param_spec("block_00-03/mlp/down", (4, 4, 24, 16), mesh) == PartitionSpec(None, None, "tensor", "fsdp")
    config = config_of(make_config, model={"scan": True}, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    parts = make_parts(config, 32, 1e-3)
    gate = parts.state.params["block_00-01/mlp/gate"]
    assert gate.sharding.shard_shape(gate.shape) == (2, 4, 8, 12)


def test_frozen_parts_stay_and_cost_nothing(make_config, start, make_batch):
    for table in ((("block_.*/mlp/router", False), (".*", True)), last_layers(1, 2)):
        run = start(config_of(make_config, model={"scan": True}, optim={"train": table}))
        before = {p: np.asarray(leaf) for p, leaf in split_stacks(run.state.params).items()}
        after = run.after([make_batch()])
        moved = {path for path in after if not np.array_equal(after[path], before[path])}
        assert moved == {path for path, on in run.treatment.trained.items() if on}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_frozen_experts_can_be_held_as_codes(make_config, start, start_sharded, make_batch, kind):
    table = (("block_.*/norm.*", True), (".*", False))
    config = config_of(make_config, model={"scan": True, "mlp_dim": 128}, optim={"train": table, "frozen_dtype": kind})
    run = start(config)
    codes = run.state.params["block_00-01/mlp/down"]
    assert codes.dtype == (jnp.int8 if kind == "int8" else jnp.uint8)
    assert run.state.params["block_00-01/mlp/router"].dtype == jnp.bfloat16
    _, metrics = run.steps([make_batch()])
    _, sharded, step = start_sharded(replace(config, mesh=MeshConfig(data=2, fsdp=2, tensor=2)))
    found = step(sharded, make_batch())[1]
    for key in ("train/loss", "train/balance", "grad_norm"):
        np.testing.assert_allclose(found[key], metrics[key], rtol=1e-4)


def test_blocks_of_codes_are_not_cut(make_config, start_sharded, make_batch):
    optim = {"train": (("block_.*/norm.*", True), (".*", False)), "frozen_dtype": "nf4"}
    config = config_of(make_config, model={"mlp_dim": 64}, optim=optim, mesh={"data": 4, "tensor": 2})
    _, state, step = start_sharded(config)
    with pytest.raises(UserError, match="32 rows of mlp/down"):
        step(state, make_batch())


@pytest.mark.slow
def test_generation_with_a_cache_writes_what_the_whole_row_says(make_model):
    model, params = make_model(**MOE)
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    texts = generate(model, params, prompts, max_new_tokens=8, sampling=Sampling(temperature=0.0))
    for prompt, text in zip(prompts, texts):
        row = jnp.asarray([prompt + text])
        logits = model.apply(params, row, jnp.arange(row.shape[1])[None], jnp.ones_like(row))
        assert text == np.asarray(logits[0, len(prompt) - 1 : -1].argmax(-1)).tolist()


@pytest.mark.slow
def test_rows_of_a_server_are_each_as_alone(make_model):
    model, params = make_model(**MOE)
    slots, sampling = Slots(model, params, 3, 64), as_arrays(Sampling(temperature=0.0))
    prompts = [[3, 1, 4, 1, 5], [9, 2, 6]]
    ids, lengths, texts = [0] * 3, [0] * 3, [[], []]
    for row, prompt in enumerate(prompts):
        lengths[row], ids[row] = slots.read(row, prompt, 0, sampling, 0)
        texts[row].append(ids[row])
    for number in range(1, 6):
        ids = slots.step(ids, lengths, [sampling] * 3, [0] * 3, [number] * 3)
        for row in range(2):
            lengths[row] += 1
            texts[row].append(ids[row])
    for prompt, text in zip(prompts, texts):
        assert [text] == generate(model, params, [prompt], max_new_tokens=6, sampling=Sampling(temperature=0.0))


@pytest.mark.slow
def test_new_weights_do_not_depend_on_grouping(make_model_config):
    config = make_model_config(**MOE, layers=4)
    flat = jax.jit(Model(config).init_params)(jax.random.key(0))
    assert flat["block_02/mlp/gate"].shape == (4, 16, 24)
    assert flat["block_02/mlp/router"].shape == (16, 4)
    np.testing.assert_allclose(flat["block_01/mlp/up"].std(), config.init_std, rtol=0.1)
    np.testing.assert_allclose(flat["block_01/mlp/down"].std(), config.init_std / 8**0.5, rtol=0.1)
    zeros = jax.jit(Model(replace(config, init_out="zero")).init_params)(jax.random.key(0))
    assert not zeros["block_01/mlp/down"].any()
    assert np.array_equal(zeros["block_01/mlp/up"], flat["block_01/mlp/up"])
    for runs in (((0, 4),), ((0, 1), (1, 4))):
        grouped_ = split_stacks(jax.jit(Model(config, runs).init_params)(jax.random.key(0)))
        assert all(np.array_equal(grouped_[path], flat[path]) for path in flat)


@pytest.mark.parametrize("style", ["neox", pytest.param("gemma", marks=pytest.mark.slow)])
def test_experts_stand_where_an_mlp_does(make_model, style):
    """In parallel with attention, between two norms, in layers of two kinds: the same whether held as stacks or not."""
    changes = {**MOE, "mlp_gated": True, "mlp_bias": False, "activation": "silu"}
    (model, params), (scanned, stacks) = make_model(style, **changes), make_model(style, runs=((0, 2),), **changes)
    row = jnp.asarray([[3, 1, 4, 1, 5]])
    inputs = (row, jnp.arange(5)[None], jnp.ones_like(row))
    np.testing.assert_allclose(scanned.apply(stacks, *inputs), model.apply(params, *inputs), atol=1e-5)


def test_a_checkpoint_restores_under_another_grouping(make_config, start, make_batch, tmp_path):
    config = config_of(make_config, model={"scan": True})
    run = start(config)
    state, _ = run.steps([make_batch()])
    checkpoints = Checkpoints(tmp_path, 1, lambda line: None)
    checkpoints.save(1, {"params": state.params}, {"best_step": None})
    checkpoints.close()
    single = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), split_stacks(state.params))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    found = load(tmp_path, 1, with_shardings(single, param_shardings(single, mesh)), "params/")
    for path, leaf in split_stacks(state.params).items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)


def test_adapters_pass_experts_over(make_config):
    table = adapters_only()
    config = config_of(make_config, lora={"rank": 2}, optim={"train": table})
    parts = make_parts(config, 32, 1e-3)
    adapted = {path for path in parts.state.params if path.endswith("lora_a")}
    assert adapted == {f"block_{i:02d}/attn/{name}_lora_a" for i in range(2) for name in ("q", "k", "v", "out")}
    with pytest.raises(UserError, match=r"'block_.\*/mlp/up' matches block_00/mlp/up, a stack of experts' matrices"):
        make_parts(config_of(make_config, lora={"rank": 2, "targets": ("block_.*/mlp/up",)}), 32, 1e-3)


@pytest.mark.parametrize("name", ["muon", pytest.param("adafactor", marks=pytest.mark.slow)])
def test_optimizers_treat_each_expert_by_itself(make_config, start, make_batch, name):
    """One step on a stack of layers is that on single layers; with muon, each expert's matrix turns as one alone would."""
    optim = {"name": name, "weight_decay": 0.0}
    one = start(config_of(make_config, optim=optim)).after([make_batch()])
    other = start(config_of(make_config, model={"scan": True}, optim=optim)).after([make_batch()])
    for path in one:
        np.testing.assert_allclose(one[path], other[path], atol=3e-5, err_msg=path)
    if name == "muon":
        run = start(config_of(make_config, optim=optim))
        change = one["block_01/mlp/up"] - np.asarray(run.state.params["block_01/mlp/up"])
        values = np.linalg.svd(change, compute_uv=False)  # of each expert; orthogonal to what five Newton steps reach
        assert (values.max(-1) / values.min(-1) < 3).all()


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model": {"experts_per_token": 5}}, "experts_per_token=5 is more than model.experts=4"),
        ({"model": {"mlp_gated": False}}, "experts need mlp_gated=True"),
        ({"model": {"experts": 0}}, "only a model with model.experts reads it"),
        ({"train": {"balance_loss": -1.0}}, "train.balance_loss: must be >= 0"),
    ],
)
def test_what_cannot_be_is_refused(make_config, keys, says):
    with pytest.raises(ConfigError, match=says):
        check_config(config_of(make_config, **keys))
