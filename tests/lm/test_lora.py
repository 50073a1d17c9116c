"""Do adapters start as nothing, learn alone, melt in and out, and does a frozen matrix in few bits stay what it is?"""

import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.check import find_problems
from lm.checkpoint import Checkpoints
from lm.config import AdaptedModel, InitConfig, LoraConfig, ModelConfig, UserError, adapters_only, to_json, with_layers
from lm.hf.names import module_rows
from lm.lora import join_adapters
from lm.model.adapters import base_of, make_adapters, matrix_of, merge, start_magnitudes, unmerge
from lm.model.codes import NF4, decode, encode, matmul_coded
from lm.model.transformer import Model
from lm.optim import count_slots
from lm.params import hash_leaves, make_runs, split_stacks
from lm.parts import cast_frozen, make_parts, model_config, param_shapes, treat
from lm.peft_folder import load_peft, read_peft_config, save_peft
from lm.start import load_params, start_state


def modules(family, layers):
    model = ModelConfig(layers=layers, vocab_size=32, tie_embeddings=False)
    return module_rows(family, model, list(param_shapes(Model(model))))


ALL = {"rank": 4, "alpha": 8.0}
SOME = {**ALL, "targets": ("block_0[12]/attn/[qv]", "block_.*/mlp/down")}  # layers 0, and 1 and 2, differ
ONLY = {"train": adapters_only()}


def model_of(config, runs=()):
    return Model(model_config(config, 32), runs)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, params, batch, key):
    return model.apply(params, batch["tokens"], batch["positions"], batch["segments"], key)


def logits_of(model, params, batch, key=None):
    return np.asarray(apply(model, params, batch, key))


@pytest.mark.parametrize(("style", "dora"), [("llama", False), ("gpt2", True)])
def test_a_start_is_the_base_and_draws_its_numbers(make_config, make_batch, style, dora):
    plain, adapted = make_config(style), make_config(style, lora={**ALL, "dora": dora})
    base, params = (jax.jit(model_of(c).init_params)(jax.random.key(3)) for c in (plain, adapted))
    assert {p for p in params if base_of(p) == p} == set(base)
    for path, leaf in base.items():
        np.testing.assert_array_equal(params[path], leaf)
    a = np.stack([params[f"block_{i:02d}/attn/q_lora_a"] for i in range(2)])
    bound = 16**-0.5  # kaiming_uniform with a = sqrt(5): 1 / sqrt(D)
    assert 0.9 * bound < np.abs(a).max() <= bound
    assert not np.array_equal(a[0], a[1])
    assert not np.array_equal(a[0], params["block_00/attn/k_lora_a"])
    assert not any(params[p].any() for p in params if p.endswith("_lora_b"))
    batch = make_batch()
    one, two = logits_of(model_of(plain), base, batch), logits_of(model_of(adapted), params, batch)
    if dora:
        np.testing.assert_allclose(two, one, atol=1e-5)
    else:
        np.testing.assert_array_equal(two, one)


def test_the_numbers_are_the_same_for_any_grouping(make_config):
    config = make_config(model={"layers": 4}, lora={**SOME, "dora": True})
    flat = jax.jit(model_of(config).init_params)(jax.random.key(0))
    runs = make_runs(dict.fromkeys(flat, True), 4)
    assert runs == ((0, 1), (1, 3), (3, 4))  # by which adapters there are
    grouped = split_stacks(jax.jit(model_of(config, runs).init_params)(jax.random.key(0)))
    assert list(grouped) == list(flat)
    for path, leaf in flat.items():
        np.testing.assert_array_equal(grouped[path], leaf)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["float32", "nf4"])
def test_scan_and_remat_train_alike_and_nothing_frozen_moves(make_config, make_batch, start, frozen):
    optim = {**ONLY, "frozen_dtype": frozen, "weight_decay": 0.5}
    lora = {**SOME, "dora": frozen == "nf4"}
    config = make_config(model={"layers": 3, "mlp_dim": 48}, lora=lora, optim=optim)
    batches = [make_batch(seed) for seed in range(3)]
    flat = start(config)
    before = hash_leaves({p: leaf for p, leaf in flat.state.params.items() if base_of(p) == p or "_absmax" in p})
    expected = flat.after(batches)
    moved = {p for p, leaf in split_stacks(flat.state.params).items() if not np.array_equal(leaf, expected[p])}
    assert moved == {p for p in expected if p.endswith(("_lora_a", "_lora_b", "_dora_scale"))}
    assert {p: h for p, h in hash_leaves(expected).items() if p in before} == before
    slots = count_slots(flat.state.opt_state, flat.state.params)
    assert {p for p, n in slots.items() if n} == moved
    scanned = start(replace(config, model=replace(config.model, scan=True, remat="full"))).after(batches)
    assert set(scanned) == set(expected)
    for path, leaf in expected.items():
        np.testing.assert_allclose(scanned[path], leaf, atol=2e-5, err_msg=path)


def test_sharded_it_learns_the_same(make_config, make_batch, start, start_sharded):
    optim = {**ONLY, "frozen_dtype": "nf4"}
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    config = make_config(
        model={"layers": 1, "scan": True, "dim": 256, "mlp_dim": 256, "kv_heads": 0}, lora=ALL, optim=optim, mesh=mesh
    )
    batch = make_batch()
    expected = start(config).after([batch])
    parts, state, step = start_sharded(config)
    specs = {p: tuple(leaf.sharding.spec) for p, leaf in parts.state.params.items()}
    assert specs["block_00-00/attn/q"] == specs["block_00-00/attn/q_absmax"] == (None, "fsdp", "tensor")
    assert specs["block_00-00/mlp/down_lora_a"] == (None, "tensor", None)
    found = split_stacks(step(state, batch)[0].params)
    for path, leaf in expected.items():
        np.testing.assert_allclose(found[path], leaf, atol=3e-4, err_msg=path)  # Adam's first step: +-rate


def test_dropout_is_of_training_alone(make_config, make_batch, start):
    config = make_config(model={"layers": 1}, lora={**ALL, "dropout": 0.5}, optim=ONLY)
    run, batch = start(config), make_batch()
    whole, again = (logits_of(run.model, run.state.params, batch) for _ in range(2))
    np.testing.assert_array_equal(whole, again)
    dropped = [logits_of(run.model, run.state.params, batch, jax.random.key(i)) for i in (0, 0, 1)]
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert not np.array_equal(dropped[0], dropped[2])
    assert np.abs(dropped[0] - whole).max() > 1e-3
    same = [run.jitted(run.state, batch, jax.random.key(i))[1]["train/loss"] for i in (0, 1)]
    assert same[0] != same[1]  # the step gives it a key


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "nf4"])
def test_merged_it_computes_the_same_and_comes_apart_again(make_config, make_batch, make_model, kind):
    lora = {**SOME, "rslora": kind == "rslora", "dora": kind in ("dora", "nf4")}
    config = make_config(
        model={"layers": 3}, lora=lora, optim={**ONLY, "frozen_dtype": "nf4" if kind == "nf4" else "float32"}
    )
    model = model_of(config)
    _, params = make_model(layers=3)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    rng = np.random.default_rng(0)
    made = {p: rng.normal(size=s.shape).astype(np.float32) for p, s in shapes.items() if p not in params}
    params = {**params, **{p: jnp.asarray(1 + 0.1 * x if "dora" in p else 0.3 * x) for p, x in made.items()}}
    held = cast_frozen(params, treat(config.optim, shapes), config.optim.frozen_dtype)
    merged, norms = merge(held, model.config.adapters)
    assert all(leaf.dtype == np.float32 for leaf in merged.values())
    plain = model_of(replace(config, lora=LoraConfig()))
    assert set(merged) == set(jax.eval_shape(plain.init_params, jax.random.key(0)))
    batch = make_batch()
    one, two = logits_of(model, held, batch), logits_of(plain, merged, batch)
    tolerance = (
        2e-2 if kind == "nf4" else 1e-5
    )  # there, norms and embeddings are bfloat16: merged alone they are the same
    assert np.abs(one - two).max() < tolerance * max(np.abs(one).max(), 1)
    apart = unmerge(merged, held, model.config.adapters, norms)
    for path in [base_of(p) for p in held if p.endswith("_lora_a")]:
        np.testing.assert_allclose(apart[path], matrix_of(held, path), atol=1e-6)
        assert not np.allclose(merged[path], apart[path], atol=1e-3)
    assert all(np.array_equal(apart[p], held[p]) for p in held if "_lora_" in p)


def test_int8_is_right_to_half_a_step_of_each_column():
    w = np.random.default_rng(0).normal(size=(2, 40, 6)).astype(np.float32) * np.array(
        [1, 10, 0.1, 1, 1, 0], np.float32
    )
    codes, absmax = encode(jnp.asarray(w), "int8")
    assert (codes.dtype, codes.shape, absmax.shape) == (np.int8, (2, 40, 6), (2, 1, 6))
    error = np.abs(decode(codes, absmax) - w)
    assert (error <= absmax / 254 * 1.0001).all()
    assert not error[..., 5].any()


def test_nf4_takes_the_nearest_of_sixteen_in_blocks_of_64():
    w = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    codes, absmax = encode(jnp.asarray(w), "nf4")
    assert (codes.dtype, codes.shape, absmax.shape) == (np.uint8, (50, 5), (2, 5))
    blocks = [slice(0, 64), slice(64, 100)]
    for i, rows in enumerate(blocks):
        largest = np.abs(w[rows]).max(0)
        np.testing.assert_array_equal(absmax[i], largest)
        nearest = NF4[np.abs(w[rows][..., None] / largest[:, None] - NF4).argmin(-1)] * largest
        np.testing.assert_allclose(decode(codes, absmax)[rows], nearest, rtol=1e-6)
    again = encode(decode(codes, absmax), "nf4")
    np.testing.assert_array_equal(again[0], codes)
    assert codes.nbytes + absmax.nbytes == 250 + 40
    with pytest.raises(UserError, match="nf4"):
        encode(jnp.zeros((3, 2)), "nf4")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_product_with_codes_is_that_with_their_numbers(kind):
    rng = np.random.default_rng(1)
    x, w, g = (jnp.asarray(rng.normal(size=s).astype(np.float32)) for s in ((2, 3, 70), (70, 4), (2, 3, 4)))
    codes, absmax = encode(w, kind)
    y, back = jax.vjp(lambda x: matmul_coded(x, codes, absmax), x)
    expected, expected_back = jax.vjp(lambda x: x @ decode(codes, absmax), x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(back(g)[0], expected_back(g)[0], atol=1e-5)


def test_the_backward_keeps_codes_not_numbers(make_config):
    """What a scanned step keeps of all layers for its backward holds no matrix in float."""
    optim = {**ONLY, "frozen_dtype": "int8"}
    config = make_config(model={"layers": 6, "scan": True, "mlp_dim": 40}, lora=ALL, optim=optim)
    parts = make_parts(config, 32, 1e-3)
    shapes = {key: jax.ShapeDtypeStruct((8, 12), "int32") for key in ("tokens", "positions", "segments", "targets")}
    batch = {**shapes, "weights": jax.ShapeDtypeStruct((8, 12), "float32")}
    step, state = parts.make_step(parts.model, parts.treatment)
    text = jax.jit(step).lower(state, batch, jax.eval_shape(lambda: jax.random.key(0))).as_text()
    assert "tensor<6x16x40xi8>" in text
    assert "tensor<6x16x40xf32>" not in text


def test_dora_starts_at_the_norms_of_what_is_held(make_config):
    lora = {"rank": 2, "targets": ("block_01/attn/v",), "dora": True}
    config = make_config(lora=lora, optim={**ONLY, "frozen_dtype": "nf4"})
    model = model_of(config)
    shapes = jax.eval_shape(model.init_params, jax.random.key(0))
    params = jax.jit(model.init_params)(jax.random.key(0))
    held = cast_frozen(params, treat(config.optim, shapes), "nf4")
    found = start_magnitudes(held)
    norms = np.linalg.norm(decode(held["block_01/attn/v"], held["block_01/attn/v_absmax"]), axis=0)
    np.testing.assert_allclose(found["block_01/attn/v_dora_scale"], norms, rtol=1e-6)
    assert not np.allclose(held["block_01/attn/v_dora_scale"], norms, rtol=1e-4)


def test_with_layers_takes_their_adapters_along(make_config):
    model = model_config(make_config(model={"layers": 3}, lora=SOME), 32)
    few = with_layers(model, [0, 2])
    assert (few.layers, few.adapters.layers) == (2, (model.adapters.layers[0], model.adapters.layers[2]))
    assert with_layers(replace(model, adapters=replace(model.adapters, layers=())), [1]).layers == 1


def test_a_source_of_which_nothing_is_kept_gives_random_weights(make_config, tmp_path):
    config = make_config(model={"layers": 1})
    base = start_state(make_parts(config, 32, 1e-3))
    checkpoints = Checkpoints(tmp_path, 1, print)
    checkpoints.save(
        5, base, {"config": to_json(config), "tokenizer_sha256": "x", "vocab_size": 32, "peak_lr": 1.0, "best_step": 5}
    )
    checkpoints.close()
    new = replace(config, init=InitConfig(str(tmp_path), fresh=(".*",)), train=replace(config.train, seed=1))
    parts, said = make_parts(new, 32, 1e-3), []
    params = load_params(parts, "x", said.append)
    for path, leaf in start_state(parts).params.items():
        np.testing.assert_array_equal(params[path], leaf, err_msg=path)
    assert "0 tensors, 0 numbers loaded" in said[-1]


@pytest.mark.slow
@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("frozen", ["bfloat16", "nf4"])
def test_a_base_loads_as_it_is_held_with_new_adapters(make_config, tmp_path, scan, frozen):
    model = {"layers": 3, "dim": 64, "mlp_dim": 64}
    config = make_config(model=model)
    base = start_state(make_parts(config, 32, 1e-3))
    meta = {"config": to_json(config), "tokenizer_sha256": "x", "vocab_size": 32, "peak_lr": 1.0, "best_step": 5}
    checkpoints = Checkpoints(tmp_path, 1, print)
    checkpoints.save(5, base, meta)
    checkpoints.close()
    fresh = ("block_01/attn/q", "head")
    new = make_config(
        model={**model, "scan": scan}, lora={**SOME, "dora": True}, optim={**ONLY, "frozen_dtype": frozen}
    )
    new = replace(new, init=InitConfig(str(tmp_path), fresh=fresh), train=replace(new.train, seed=1))
    parts, said = make_parts(new, 32, 1e-3), []
    params = load_params(parts, "x", said.append)
    assert list(params) == list(parts.state.params)
    for path, leaf in parts.state.params.items():
        found = (params[path].shape, params[path].dtype, params[path].sharding)
        assert found == (leaf.shape, leaf.dtype, leaf.sharding)
    single, expected = split_stacks(params), cast_frozen(base.params, parts.treatment, frozen)
    for path, leaf in expected.items():
        assert np.array_equal(single[path], leaf) == (base_of(path) not in fresh), path
    for path in [p for p in single if p.endswith("_dora_scale")]:
        norms = np.linalg.norm(matrix_of(single, base_of(path)), axis=0)
        np.testing.assert_allclose(single[path], norms, rtol=1e-5)
    assert "random: block_01/attn/q, head, new adapters at 7 matrices" in said[-1]


@pytest.mark.parametrize(
    ("lora", "optim", "words"),
    [
        (
            {**ALL, "targets": ("block_09/.*",)},
            ONLY,
            ["lora.targets", "'block_09/.*'", "block_00 .. block_01", "attn/q"],
        ),
        ({**ALL, "targets": ("embed",)}, ONLY, ["lora.targets", "'embed'"]),
        (
            ALL,
            {"train": (("block_01/.*", True), (".*", False))},
            ["optim.train", "block_00/attn/k_lora_b", "adapters_only"],
        ),
    ],
)
def test_adapters_that_cannot_be_or_never_move_are_named(make_config, lora, optim, words):
    with pytest.raises(UserError) as error:
        make_parts(make_config(lora=lora, optim=optim), 32, 1e-3)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("lora", "word"),
    [
        ({"rank": -1}, "lora.rank"), ({"rank": 2, "alpha": 0.0}, "lora.alpha"), ({"rank": 2, "dropout": 1.0}, "lora.dropout"),
        ({"rank": 2, "targets": ("(",)}, "lora.targets"), ({"rank": 2, "targets": ()}, "lora.targets"),
        ({"dora": True}, "lora.rank=0 means no adapters"),
    ],
)  # fmt: skip
def test_impossible_settings_are_named(make_config, lora, word):
    problems = find_problems(make_config(lora=lora))
    assert any(word in problem for problem in problems)
    assert not find_problems(make_config(lora=ALL))


PEFT = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_dora": True, "target_modules": ["q_proj"], "bias": "none"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"), ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"), ({"bias": "all"}, "bias='all'"), ({"lora_bias": True}, "lora_bias"),
        ({"peft_type": "IA3"}, "IA3"), ({"init_lora_weights": "pissa"}, "pissa"), ({"layer_replication": [[0, 2]]}, "layer_repl"),
        ({"a_thing_of_tomorrow": 1}, "a_thing_of_tomorrow"), ({"r": 0}, "r=0"), ({"r": None}, "not PEFT's"),
    ],
)  # fmt: skip
def test_a_peft_folder_with_what_we_do_not_have_is_refused_by_name(tmp_path, change, word):
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(PEFT))
    assert read_peft_config(path, []) == (LoraConfig(rank=4, alpha=8.0, dora=True), [])
    path.write_text(json.dumps({**PEFT, **change}))
    with pytest.raises(UserError, match=word):
        read_peft_config(path, [])


def test_damaged_or_missing_peft_settings_are_one_line(tmp_path):
    for content in ("{", "[]", None):
        path = tmp_path / "adapter_config.json"
        path.unlink(missing_ok=True)
        if content:
            path.write_text(content)
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            read_peft_config(path, [])


def test_what_peft_cannot_hold_and_what_does_not_fit_is_named(make_config, make_model, tmp_path):
    config = make_config(lora=ALL)
    model = model_of(config)
    params = model.init_params(jax.random.key(0))
    with pytest.raises(UserError, match="no module name for block_00/attn/q_bias"):
        save_peft(tmp_path, params, config.lora, modules("llama", 2), 4, also=["block_00/attn/q_bias"])
    _, base = make_model()
    with pytest.raises(UserError, match="no adapters"):
        save_peft(tmp_path, base, LoraConfig(), modules("llama", 2), 4)
    plain = model_config(replace(config, lora=LoraConfig()), 32)
    adapters = {p: leaf for p, leaf in params.items() if base_of(p) != p}
    assert set(join_adapters(base, plain, config.lora, adapters)) == set(params)
    narrow = {p: leaf[:8] if p == "block_01/attn/q_lora_a" else leaf for p, leaf in adapters.items()}
    with pytest.raises(UserError, match=r"block_01/attn/q_lora_a: .*\[8, 4\].*\[16, 4\]"):
        join_adapters(base, plain, config.lora, narrow)


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_of_one_module_come_apart_as_they_were(tmp_path, dora):
    lora = LoraConfig(rank=4, alpha=8.0, dora=dora, targets=tuple(f"block_.*/attn/{x}" for x in "qkv"))
    plain = ModelConfig(
        layers=2, dim=16, heads=4, mlp_gated=False, vocab_size=32, max_len=16, norm="layernorm", position="learned"
    )
    paths = list(param_shapes(Model(plain)))
    model = Model(AdaptedModel(**vars(plain), adapters=make_adapters(lora, paths, 2)))
    rows = module_rows("gpt2", model.config, [p for p in param_shapes(model) if base_of(p) == p])
    rng = np.random.default_rng(0)
    params = {p: rng.normal(size=leaf.shape).astype(np.float32) for p, leaf in param_shapes(model).items()}
    save_peft(tmp_path, params, lora, rows, model.config.heads)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["target_modules"] == ["c_attn"]
    assert written["fan_in_fan_out"]
    assert set(written["rank_pattern"].values()) == {3 * lora.rank}
    read, found = load_peft(tmp_path, rows, model.config)
    assert read == lora
    assert set(found) == {p for p in params if base_of(p) != p}
    assert all((found[p] == params[p]).all() for p in found)
    some = {p: leaf for p, leaf in params.items() if "attn/k_" not in p}
    if dora:  # its scale of a matrix without an adapter would be the norm of that matrix
        with pytest.raises(UserError, match="without block_00/attn/k"):
            save_peft(tmp_path, some, lora, rows, model.config.heads)
    else:
        save_peft(tmp_path, some, lora, rows, model.config.heads)
        assert load_peft(tmp_path, rows, model.config)[0].targets == ("block_.*/attn/q", "block_.*/attn/v")
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**written, "r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}})
    )
    with pytest.raises(UserError, match=r"no place .*c_attn\.lora_A"):
        load_peft(tmp_path, rows, model.config)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({**written, "rank_pattern": {"transformer.h.0.attn.c_attn": 5}})
    )
    with pytest.raises(UserError, match="rank_pattern"):
        load_peft(tmp_path, rows, model.config)
