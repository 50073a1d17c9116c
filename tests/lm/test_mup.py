"""Do activations and their changes stay as large on wider models, and is muP at its base width the standard model?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from data_pipeline.tokenizer import ByteTokenizer
from lm.checkpoint import Checkpoints
from lm.config import InitConfig, OptimConfig, UserError, to_json
from lm.hf.config_json import write_config
from lm.hf.folder import export_run
from lm.hf.source import find_foreign
from lm.hf.weights import open_weights
from lm.model.transformer import Model, Transformer
from lm.mup import rate_factor, to_standard
from lm.optim import make_optimizer, make_schedule, read_tables
from lm.params import join_stacks, split_stacks
from lm.parts import make_parts, make_step_of, model_config, param_shapes, treat, with_shardings
from lm.sharding import param_shardings
from lm.start import load_params, start_state
from lm.step import TrainState

BASE = 32


def at_width(model, width, mup, heads_grow=True):
    """The model at another width, where heads grow in number, or else in size."""
    sizes = {"heads": width // 8, "kv_heads": width // 16, "head_dim": 8} if heads_grow else {"heads": 4, "kv_heads": 2}
    keys = {"base_dim": BASE, "base_head_dim": 0 if heads_grow else BASE // 4} if mup else {}
    return replace(model, dim=width, mlp_dim=2 * width, **sizes, **keys)


def look(model, params, batch):
    """{what: output} of the blocks, of what is in them, and of the head."""
    inputs = (batch["tokens"], batch["positions"], batch["segments"], None)
    (x_BTD, _, _), seen = Transformer(model.config).apply(
        {"params": unflatten_dict(params, sep="/")}, *inputs, capture_intermediates=True, mutable=["intermediates"]
    )
    outputs = {
        path.removesuffix("/__call__"): out for path, out in flatten_dict(seen["intermediates"], sep="/").items()
    }
    inside = {path: jax.tree.leaves(out)[0] for path, out in outputs.items() if path.endswith(("/attn", "/mlp", "_00"))}
    return {**inside, "logits": model.unembed(params[model.head_path], x_BTD)}


def coordinates(config, batches):
    """{what: (mean |x| at the start, mean |change| after a step on each of `batches`)}."""
    model = Model(config.model)
    treatment = treat(config.optim, param_shapes(model))
    step, _ = make_step_of(config, config.optim.peak_lr)(model, treatment)
    schedule = make_schedule(config.optim, config.optim.peak_lr, config.train.steps)
    stacked = {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}

    @jax.jit
    def run(key):
        params = model.init_params(key)
        optimizer = make_optimizer(config.optim, params, treatment, schedule, width=config.model.width_multiplier)
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
        state, _ = jax.lax.scan(lambda state, batch: (step(state, batch, key)[0], None), state, stacked)
        both = jax.tree.map(lambda *leaves: jnp.stack(leaves), params, state.params)  # one program looks at both
        seen = jax.lax.map(lambda params: look(model, params, {k: v[0] for k, v in stacked.items()}), both)
        return {name: (jnp.abs(x[0]).mean(), jnp.abs(x[1] - x[0]).mean()) for name, x in seen.items()}

    return {name: tuple(map(float, pair)) for name, pair in run(jax.random.key(0)).items()}


def growth(found):
    """{what: exponents of the width in (size at the start, size of the change)} of {width: coordinates}."""
    logs = np.log(list(found))
    return {
        name: tuple(float(np.polyfit(logs, np.log([f[name][i] for f in found.values()]), 1)[0]) for i in (0, 1))
        for name in next(iter(found.values()))
    }


@pytest.fixture
def small(make_config):
    """(peak_lr=, name=, **model) -> a config of one layer with the plainest optimizer."""

    def make(peak_lr=1e-3, name="adamw", **model):
        sizes = {"layers": 1, "init_std": 0.1, "qk_norm": False, "max_len": 12, **model}
        plain = {"clip_norm": 0.0, "weight_decay": 0.0, "momentum": 0.0}
        return make_config(model=sizes, optim={"name": name, "peak_lr": peak_lr, **plain})

    return make


def assert_flat(exponents, most=0.2):
    for name, (start, change) in exponents.items():
        low = 0.7 if name == "logits" else most  # an untrained head's logits fall as the root, as Table 8 has it
        assert -low < start < most, (name, exponents)
        assert -low < change < most, (name, exponents)


def coordinates_by_width(config, batches, mup, *widths):
    models = {width: at_width(config.model, width, mup) for width in widths}
    return {width: coordinates(replace(config, model=model), batches) for width, model in models.items()}


def test_activations_and_their_changes_stay_flat_over_three_widths(small, make_batch):
    config, batches = small(mlp_gated=False, position="none"), [make_batch(i) for i in range(3)]
    assert_flat(growth(coordinates_by_width(config, batches, True, 32, 64, 128)))


@pytest.mark.slow
def test_they_grow_in_standard_parametrisation(small, make_batch):
    config, batches = small(mlp_gated=False, position="none"), [make_batch(i) for i in range(3)]
    standard = growth(coordinates_by_width(config, batches, False, 32, 64, 128))
    for name, (start, change) in standard.items():
        assert start > 0.4, (name, standard)
        assert change > 0.6, (name, standard)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "sgd", "lion", "muon"])
@pytest.mark.parametrize(
    ("tied", "heads_grow", "scan"), [(False, True, False), (True, False, False), (False, False, True)]
)
def test_activations_and_their_changes_stay_flat_to_512(small, make_batch, name, tied, heads_grow, scan):
    rate = {"adamw": 1e-3, "lion": 1e-3, "sgd": 0.3, "muon": 0.02}[name]
    config, batches = small(rate, name, tie_embeddings=tied, layers=2), [make_batch(i) for i in range(4)]
    found = {}
    for width in (64, 128, 256, 512):
        model = at_width(config.model, width, True, heads_grow)
        found[width] = coordinates(replace(config, model=replace(model, scan=scan)), batches)
    assert_flat(growth(found), 0.25)


def lowered(config, vocab=32):
    """The programs of the start and of the step, as text."""
    model = Model(model_config(config, vocab))
    step, state = make_step_of(config, 1e-3)(model, treat(config.optim, param_shapes(model)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    shape = (config.data.batch_size, config.data.seq_len)
    batch = {k: jax.ShapeDtypeStruct(shape, jnp.int32) for k in ("tokens", "targets", "segments", "positions")}
    batch["weights"] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.jit(model.init_params).lower(key).as_text(), jax.jit(step).lower(state, batch, key).as_text()


@pytest.mark.parametrize(
    ("style", "model", "name"),
    [
        ("gemma", {"attn_scale": 9.0}, "adamw"),
        pytest.param("llama", {"experts": 4}, "muon", marks=pytest.mark.slow),
        pytest.param("gpt2", {}, "sgd", marks=pytest.mark.slow),
    ],
)
def test_at_its_base_width_it_is_the_same_program(make_config, style, model, name):
    """So that a run is the same bit for bit; and not the same at any other base."""
    plain, base, other = (
        lowered(make_config(style, model={**model, "base_dim": base, "base_head_dim": head}, optim={"name": name}))
        for base, head in ((0, 0), (16, 4), (8, 2))
    )
    assert plain == base
    assert other[0] != plain[0]
    assert other[1] != plain[1]


def test_start_by_kind_of_parameter(make_model):
    wide = {
        "layers": 1,
        "dim": 64,
        "mlp_dim": 128,
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 8,
        "experts": 32,
        "vocab_size": 64,
    }
    plain, mup = (jax.jit(make_model(**wide, base_dim=base)[0].init_params)(jax.random.key(0)) for base in (0, 4))
    for path, leaf in plain.items():
        narrow = 16 if path.endswith("router") else 4 if path.startswith("block") and leaf.ndim > 1 else 1
        np.testing.assert_allclose(mup[path], leaf / narrow, rtol=1e-6, err_msg=path)


SHAPES = {
    "block_00/attn/q": (6, 4), "block_00/attn/q_bias": (4,), "block_00/attn/q_lora_a": (6, 2), "block_00/attn/q_lora_b": (2, 4),
    "block_00/mlp/router": (6, 3), "block_00/mlp/up": (3, 6, 4), "block_00/norm_attn/scale": (6,), "embed": (5, 6), "head": (6, 5),
}  # fmt: skip
FACTORS = {  # of m = 4: Table 8, and for what narrows within a block Table 3
    "adamw": {"q": 0.25, "up": 0.25, "router": 0.25, "q_lora_a": 0.25},
    "lion": {"q": 0.25, "up": 0.25, "router": 0.25, "q_lora_a": 0.25},
    "sgd": {"q_bias": 4, "q_lora_a": 0.25, "q_lora_b": 4, "router": 0.25, "scale": 4, "embed": 4, "head": 4},
    "muon": {"q_lora_a": 0.5, "router": 0.5},
}


@pytest.mark.parametrize("name", FACTORS)
def test_factors(name):
    for path in SHAPES:
        assert rate_factor(path, name, 4.0) == FACTORS[name].get(path.rpartition("/")[2], 1)
    assert rate_factor("block_00-03/mlp/down", "adamw", 8.0) == 1 / 8


@pytest.mark.parametrize("name", ["adamw", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lion", "sgd", "muon"))])
def test_rates_by_kind_of_parameter_beside_multipliers_and_decay(name):
    """Powers of two are exact. Gradients on a model 4 times as wide are 4 times smaller, and Adam's eps with them."""
    table = (("block_01/.*", 0.5), (".*", 1.0))
    config = OptimConfig(name=name, peak_lr=0.1, schedule="constant", weight_decay=0.5, clip_norm=0.0, eps=0.25)
    config = replace(config, lr_multipliers=table)
    rng = np.random.default_rng(0)
    shapes = SHAPES | {path.replace("_00", "_01"): shape for path, shape in SHAPES.items() if path.startswith("block")}
    params, grads = ({p: rng.normal(size=s).astype(np.float32) for p, s in shapes.items()} for _ in range(2))
    names = [p.replace("_00", "_00-01") for p in params if "_01" not in p]

    def updates(width, divide, stacked=False):
        held, moved = (join_stacks(tree, names) if stacked else tree for tree in (params, grads))
        treatment = read_tables(config, list(params))
        optimizer = make_optimizer(config, held, treatment, make_schedule(config, 0.1, 10), width=width)
        moved = {p: g / divide for p, g in moved.items()}
        state = optimizer.init(held)
        found = optimizer.update(moved, state, held, step=jnp.asarray(0), norm=optax.tree.norm(moved))[0]
        return split_stacks(found) if stacked else found

    divide = 1.0 if name == "sgd" else 4.0
    narrow, wide = updates(1.0, 1.0), updates(4.0, divide, stacked=True)
    for path, u in narrow.items():
        factor = FACTORS[name].get(path.rpartition("/")[2], 1)
        decay = 0.0 if path.endswith(("bias", "scale")) else 0.1 * 0.5 * (0.5 if "_01" in path else 1.0) * params[path]
        np.testing.assert_allclose(wide[path], factor * (u + decay) - decay, rtol=1e-3, atol=1e-6, err_msg=path)


MODELS = [
    ("gemma", {"layers": 1, "global_layers": (), "logit_softcap": 5.0, "attn_scale": 9.0}),
    pytest.param("llama", {"tie_embeddings": True}, marks=pytest.mark.slow),
    pytest.param("llama", {"qk_norm": False, "attn_bias": True}, marks=pytest.mark.slow),
    pytest.param("gpt2", {}, marks=pytest.mark.slow),
]


def inputs():
    tokens = np.random.default_rng(0).integers(0, 32, (2, 9)).astype(np.int32)
    return tokens, np.broadcast_to(np.arange(9, dtype=np.int32), (2, 9)), np.ones((2, 9), np.int32)


@pytest.mark.parametrize(("style", "changes"), MODELS)
def test_standard_weights_of_a_mup_model_make_its_logits(make_model, style, changes):
    model, params = make_model(style, base_dim=4, base_head_dim=2, **changes)
    folded, config = to_standard(params, model.config)
    assert (config.base_dim, config.base_head_dim) == (0, 0)
    logits = model.apply(params, *inputs())
    np.testing.assert_allclose(Model(config).apply(folded, *inputs()), logits, atol=2e-5 * float(jnp.abs(logits).max()))
    ignored = Model(config).apply(params, *inputs())
    assert float(jnp.abs(ignored - logits).max()) > 0.1 * float(jnp.abs(logits).max())
    plain = make_model(style, **changes)
    assert to_standard(plain[1], plain[0].config)[0] == plain[1]


def write_run(folder, config, state, **meta):
    held = {"config": to_json(config), "vocab_size": config.model.vocab_size, "peak_lr": 1e-3, "best_step": 3, **meta}
    checkpoints = Checkpoints(folder, 1, print)
    checkpoints.save(3, state, held)
    checkpoints.close()


@pytest.mark.slow
def test_export_holds_what_the_run_computes(make_config, tmp_path):
    tokenizer = ByteTokenizer()
    keys = {"vocab_size": tokenizer.vocab_size, "base_dim": 4, "base_head_dim": 2, "scan": True, "tie_embeddings": True}
    config = make_config(model=keys)
    parts = make_parts(config, tokenizer.vocab_size, 1e-3)
    state = start_state(parts)
    write_run(tmp_path / "run", config, state, tokenizer_sha256=tokenizer.sha256)
    tokenizer.save(tmp_path / "run/tokenizer")
    export_run(tmp_path / "run", tmp_path / "out", "best", "", "", print)
    found = find_foreign(f"hf:{tmp_path}/out")
    shapes = param_shapes(Model(found.model))
    theirs = open_weights(found, shapes).load(with_shardings(shapes, param_shardings(shapes, parts.mesh)))
    ours = jax.device_get(split_stacks(state.params))
    logits = Model(parts.model.config).apply(ours, *inputs())
    np.testing.assert_allclose(Model(found.model).apply(jax.device_get(theirs), *inputs()), logits, atol=1e-5)
    assert float(jnp.abs(logits).max()) > 0.1


def test_a_mup_model_without_folding_is_no_known_family(make_model_config):
    """As for adapters alone (python -m lm.lora export), which go beside weights that are not folded."""
    with pytest.raises(UserError, match=r"no known model .*base_dim=8"):
        write_config(make_model_config(base_dim=8), 64)
    assert write_config(make_model_config(base_dim=16, base_head_dim=4), 64) == write_config(make_model_config(), 64)


def test_a_start_from_another_base_is_refused(make_config, make_model, tmp_path):
    config = make_config(model={"base_dim": 8, "layers": 1})
    params = make_model(base_dim=8, layers=1)[1]
    write_run(tmp_path, config, {"params": {p: jnp.asarray(leaf) for p, leaf in params.items()}}, tokenizer_sha256="x")

    def load(**model):
        new = make_config(model={"layers": 1, **model})
        load_params(make_parts(replace(new, init=InitConfig(str(tmp_path))), 32, 1e-3), "x", print)

    load(base_dim=8, base_head_dim=4)  # which is what 0 means
    for other in ({}, {"base_dim": 16}, {"base_dim": 8, "base_head_dim": 2}):
        with pytest.raises(UserError, match=r"was trained with model.base_dim=8, .*--config.model.base_dim=8"):
            load(**other)
