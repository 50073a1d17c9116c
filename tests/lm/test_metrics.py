"""Do the cost formula and the units come out as on paper?"""

import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm.metrics import bits, finite_or_none, mean_keys, peak_flops, perplexity, stage_of, token_flops
from lm.model.transformer import Model
from lm.parts import abstract_batch, make_parts, param_shapes

T = 64


def flops_of(config, frozen=()):
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(config)).items()}
    trained = {p: not p.startswith(tuple(frozen)) if frozen else True for p in shapes}
    return token_flops(config, shapes, trained, T), shapes


def matrices(shapes, *starts):
    return sum(math.prod(s) for p, s in shapes.items() if len(s) == 2 and p.startswith(starts))


def test_all_trained_is_six_per_number_and_scores(make_model_config):
    config = make_model_config()
    flops, shapes = flops_of(config)
    blocks, head = matrices(shapes, "block"), matrices(shapes, "head")
    scores = config.layers * 3 * 4 * config.dim * (T + 1) / 2  # forward: 2 products x 2 x dim
    assert sum(flops.values()) == pytest.approx(6 * (blocks + head) + scores)
    assert flops["embed"] == flops["norm_out/scale"] == 0


def test_a_tied_embedding_counts_as_head_and_positions_not_at_all(make_model_config):
    flops, shapes = flops_of(make_model_config("gpt2"))
    assert flops["embed"] == 6 * math.prod(shapes["embed"])
    assert flops["positions"] == 0


def test_a_window_bounds_the_scores(make_model_config):
    wide, _ = flops_of(make_model_config(window=10_000))
    narrow, _ = flops_of(make_model_config(window=8))
    full, _ = flops_of(make_model_config())
    assert wide["block_00/attn/scores"] == full["block_00/attn/scores"]
    share = narrow["block_00/attn/scores"] / wide["block_00/attn/scores"]
    assert share == pytest.approx((8 - 8 * 7 / (2 * T)) / ((T + 1) / 2))


@pytest.mark.parametrize(("length", "window"), [(1, 0), (1, 5), (7, 0), (7, 1), (7, 3), (7, 7), (7, 20), (64, 10)])
def test_mean_keys_counts_the_mask(length, window):
    q, k = np.mgrid[:length, :length]
    mask = (k <= q) & (k > q - (window or length))
    assert mean_keys(length, window) == pytest.approx(mask.sum() / length)


def count_products(jaxpr):
    """2 x the multiplications in all matrix products of a program, as written (no product inside a loop)."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            length = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * length
        values = [v for value in equation.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        inner = [count_products(j) for j in (getattr(v, "jaxpr", v) for v in values) if hasattr(j, "eqns")]
        if equation.primitive.name == "cond":  # one branch a platform, all with the same products
            assert len(set(inner)) == 1
            inner = inner[:1]
        assert not any(inner) or equation.primitive.name not in ("scan", "while")
        total += sum(inner)
    return total


def assert_exact(config):
    """The formula counts the products of a step exactly; only that the plain attention multiplies by all T keys of a row."""
    from jax._src.interpreters.partial_eval import dce_jaxpr

    parts = make_parts(config, 32, 1e-2)
    step, state = parts.make_step(Model(parts.model.config, counted=True), parts.treatment)
    closed = jax.make_jaxpr(step)(state, abstract_batch(config), jax.eval_shape(lambda: jax.random.key(0)))
    live, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)  # as XLA drops dead code
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(parts.model.config)).items()}
    flops = token_flops(parts.model.config, shapes, parts.treatment.trained, T)
    whole = sum(value * (T / mean_keys(T, 0) if path.endswith("/scores") else 1) for path, value in flops.items())
    assert count_products(live) == pytest.approx(whole * config.data.batch_size * T, rel=1e-9)


@pytest.mark.parametrize("style", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize(
    "trained",
    [".*", "block_02/.*", "block_0[12]/.*|norm_out/.*", "block_01/mlp/.*", "block_02/attn/.*", "norm_out/.*", "embed",
     "block_00/norm_attn/.*", ".*/attn/q", ".*/attn/v|norm_out/.*"],
)  # fmt: skip
def test_the_formula_counts_every_product_of_the_step(make_config, style, trained):
    model = {"layers": 3, "attention": "xla", "mlp_dim": 48}
    optim = {"train": ((trained, True), (".*", False)), "name": "sgd"}
    assert_exact(make_config(style, model=model, optim=optim, data={"seq_len": T}))


@pytest.mark.parametrize(
    "trained", [".*", "block_02/.*", "block_01/mlp/router", "block_01/mlp/(up|gate)", "block_01/mlp/down", ".*/attn/q"]
)
@pytest.mark.parametrize("balance", [0.0, 0.1])
def test_the_formula_counts_the_products_of_experts(make_config, trained, balance):
    model = {"layers": 3, "attention": "xla", "mlp_dim": 48, "experts": 4}
    optim = {"train": ((trained, True), (".*", False)), "name": "sgd"}
    assert_exact(make_config(model=model, optim=optim, data={"seq_len": T}, train={"balance_loss": balance}))


@pytest.mark.parametrize(
    ("targets", "trained"),
    [
        (".*", ".*_lora_[ab]"),
        ("block_0[12]/attn/[qv]", ".*_lora_[ab]"),
        ("block_.*/mlp/.*", ".*_lora_[ab]|norm_out/scale|head"),
        ("block_01/(attn/q|attn/v|mlp/down)", ".*_lora_b"),
        ("block_02/attn/v|block_01/mlp/up", ".*"),
    ],
)
@pytest.mark.parametrize("frozen", ["float32", "nf4"])
def test_the_formula_counts_the_products_of_adapters(make_config, targets, trained, frozen):
    if frozen != "float32" and trained == ".*":
        pytest.skip("nothing is frozen")
    model = {"layers": 3, "attention": "xla", "mlp_dim": 48}
    optim = {"train": ((trained, True), *[(".*", False)] * (trained != ".*")), "name": "sgd", "frozen_dtype": frozen}
    lora = {"rank": 3, "targets": (targets,)}
    assert_exact(make_config(model=model, optim=optim, lora=lora, data={"seq_len": T}))


def test_frozen_bottom_saves_two_thirds_of_itself(make_model_config):
    """(2 + 4 (1 - f)) / 6 of the blocks' cost; the lowest trained layer passes nothing on, which is not counted as saved."""
    config = make_model_config(layers=8)
    everything, _ = flops_of(config)
    bottom, _ = flops_of(config, frozen=["embed", *(f"block_{i:02d}" for i in range(6))])
    share = {
        k: sum(v for p, v in f.items() if p.startswith("block")) for k, f in (("all", everything), ("top", bottom))
    }
    assert share["top"] / share["all"] == pytest.approx((2 + 4 * 0.25) / 6)


def test_a_frozen_top_still_passes_the_gradient_down(make_model_config):
    config = make_model_config(layers=8)
    flops, shapes = flops_of(config, frozen=["head", "norm_out", *(f"block_{i:02d}" for i in range(1, 8))])
    assert flops["block_07/mlp/up"] == 4 * math.prod(shapes["block_07/mlp/up"])
    assert flops["block_00/mlp/up"] == 6 * math.prod(shapes["block_00/mlp/up"])


def test_stages_follow_the_forward_pass():
    order = [
        "embed", "block_00/norm_attn/scale", "block_00/attn/q", "block_00/attn/k_scale", "block_00/attn/out",
        "block_00/norm_mlp/bias", "block_00/mlp/gate_bias", "block_00/mlp/down", "block_01/norm_attn/scale",
        "block_11/attn/v", "norm_out/scale", "head",
    ]  # fmt: skip
    stages = [stage_of(path, 12) for path in order]
    assert stages == sorted(set(stages))
    assert stage_of("positions", 12) == 0
    assert stage_of("block_03/attn/q", 12) == stage_of("block_03/attn/v_bias", 12)


def test_units():
    assert bits(math.log(2) * 3) == pytest.approx(3)
    assert perplexity(math.log(50.0)) == pytest.approx(50)
    assert math.isfinite(perplexity(1e9))
    assert [finite_or_none(x) for x in (math.nan, math.inf, -math.inf, 1.5, 3, "a", None)] == [
        None,
        None,
        None,
        1.5,
        3,
        "a",
        None,
    ]


def test_peak_flops_says_where_it_is_from():
    assert peak_flops(2.5) == (2.5e12, "config.train.peak_tflops")
    found, source = peak_flops(0.0)
    assert 1e8 < found < 1e15
    assert "matmul" in source


@pytest.mark.parametrize(("kind", "half", "whole"), [("TPU v5 lite", 197, 197 / 6), ("NVIDIA H100 80GB HBM3", 989, 67)])
def test_float32_has_a_peak_of_its_own(kind, half, whole):
    device = SimpleNamespace(device_kind=kind)
    for dtype, tflops in (("bfloat16", half), ("float32", whole)):
        assert peak_flops(0.0, device, dtype=dtype) == (tflops * 1e12, f"{kind} data sheet, {dtype}")
