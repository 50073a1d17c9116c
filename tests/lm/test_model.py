"""Does the decoder see only what it may, and compute what the papers say?"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ModelConfig, RopeScaling
from lm.losses import sum_losses, token_losses
from lm.model.formula import attend, attention_mask
from lm.model.kernels import make_kernels
from lm.model.rope import rope_angles, rotate
from lm.model.transformer import Model
from lm.params import join_stacks, split_stacks
from lm.parts import param_shapes

T = 10
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2]], np.int32)
ONE = (np.arange(T, dtype=np.int32)[None], np.ones((1, T), np.int32))  # positions, segments of one document
TOKENS = np.arange(3, 3 + T, dtype=np.int32)[None]  # all different: row s of embed is the input at s alone
apply = jax.jit(Model.apply, static_argnums=0)
STYLES = pytest.mark.parametrize("style", ["llama", "gpt2"])


def start_weights(model):
    return jax.jit(model.init_params)(jax.random.key(0))


def influence(model, params, positions, segments):
    """[T, S]: how strongly hidden state t depends on the embedding that goes in at s."""
    probe = jax.random.normal(jax.random.key(5), (model.config.dim,))

    def outputs(embed):
        x_BTD, _ = model.hidden({**params, "embed": embed}, TOKENS, positions, segments)
        return x_BTD[0] @ probe

    return np.abs(np.asarray(jax.jit(jax.jacrev(outputs))(params["embed"]))[:, TOKENS[0]]).max(-1)


def visible(segments, positions, window=0):
    """The same rule as attention_mask, pair by pair."""
    B, T = segments.shape
    mask = np.zeros((B, T, T), bool)
    for b in range(B):
        for t in range(T):
            for s in range(t + 1):
                near = not window or positions[b, t] - positions[b, s] < window
                mask[b, t, s] = segments[b, t] == segments[b, s] and near
    return mask


@STYLES
def test_later_inputs_have_no_gradient(make_model, style):
    model, params = make_model(style)
    found = influence(model, params, *ONE)
    assert (found[np.triu_indices(T, 1)] == 0).all()
    assert (found[np.tril_indices(T)] > 0).all()


@STYLES
def test_changing_later_tokens_changes_only_later_logits(make_model, style):
    model, params = make_model(style)
    before = np.asarray(apply(model, params, TOKENS, *ONE))
    for t in range(1, T):
        changed = TOKENS.copy()
        changed[0, t:] = (changed[0, t:] + 7) % model.config.vocab_size
        after = np.asarray(apply(model, params, changed, *ONE))
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        assert (before[:, t:] != after[:, t:]).any(-1).all()


@STYLES
def test_segments_and_padding_do_not_see_each_other_by_gradient(make_model, style):
    model, params = make_model(style)
    found = influence(model, params, POSITIONS, SEGMENTS) > 0
    np.testing.assert_array_equal(found, visible(SEGMENTS, POSITIONS)[0])


def test_window_by_gradient(make_model):
    model, params = make_model(layers=1, window=3)
    found = influence(model, params, *ONE) > 0
    np.testing.assert_array_equal(found, visible(ONE[1], ONE[0], window=3)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_padding_gives_no_nan(make_model, dtype):
    model, params = make_model(window=2, dtype=dtype)
    tokens, zeros = np.concatenate([TOKENS, TOKENS]), np.zeros((2, T), np.int32)
    segments = np.concatenate([SEGMENTS, zeros[:1]])  # the second row is nothing but padding

    def loss(params):
        losses = token_losses(apply(model, params, tokens, zeros, segments), tokens)
        return sum_losses(losses, (segments > 0).astype(np.float32))["nll"]

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in grads.values())


@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (3, 0.0), (0, 2.0), (2, 1.5)])
def test_attention_is_the_formula(window, cap):
    B, K, G, H = 2, 2, 3, 8
    rng = np.random.default_rng(0)
    q = rng.normal(size=(B, T, K, G, H)) * 2
    k, v = rng.normal(size=(2, B, T, K, H))
    segments = np.concatenate([SEGMENTS, ONE[1]])
    positions = np.concatenate([POSITIONS, ONE[0]])
    mask = attention_mask(segments, segments, positions, positions, 0, window)
    expected = np.zeros(q.shape)
    seen = visible(segments, positions, window)
    np.testing.assert_array_equal(mask, seen)
    for b in range(B):
        for n in range(K * G):  # query head n reads key/value head n // G
            scores = q.reshape(B, T, K * G, H)[b, :, n] @ k[b, :, n // G].T / math.sqrt(H)
            scores = cap * np.tanh(scores / cap) if cap else scores
            weights = np.where(seen[b], np.exp(scores - scores.max()), 0.0)
            weights /= weights.sum(-1, keepdims=True)
            expected[b, :, n // G, n % G] = weights @ v[b, :, n // G]
    found = attend(*(jnp.asarray(x, jnp.float32) for x in (q, k, v)), mask, cap)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_bfloat16_attention_has_a_float32_softmax():
    """Scores near 30 lie 0.125 apart in bfloat16: rounded before the softmax they would be wrong by percents."""
    H, S = 16, 64
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(S, H)) + 12, rng.normal(size=(S, H)) / 4 + 1, rng.normal(size=(S, H))
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    found = attend(q[None, :, None, None], k[None, :, None], v[None, :, None], jnp.ones((1, S, S), bool))[0, :, 0, 0]
    assert found.dtype == jnp.bfloat16
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = q @ k.T / math.sqrt(H)
    assert scores.mean() > 30
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ v
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02)


def reference(config, params, tokens, positions, segments):
    """The decoder in float64 numpy, written from the papers; returns logits [B, T, V]."""
    p = {path: np.asarray(leaf, np.float64) for path, leaf in params.items()}
    N, K, H = config.heads, config.n_kv_heads, config.q_head_dim

    def norm(x, name):
        if config.norm == "rmsnorm":
            scale = p[f"{name}scale"] + config.norm_offset
            return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps) * p[f"{name}scale"] + p[f"{name}bias"]

    def dense(x, name):
        return x @ p[name] + p.get(f"{name}_bias", 0.0)

    def rope(x, local):  # [B, T, H]
        R = int(H * config.rope_fraction)
        theta = config.rope_local_theta if local and config.rope_local_theta else config.rope_theta
        pairs = x[..., : R // 2] + 1j * x[..., R // 2 : R]
        angles = positions[..., None] / theta ** (np.arange(R // 2) * 2 / R)
        turned = pairs * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag, x[..., R:]], -1)

    def act(x):
        if config.activation == "silu":
            return x / (1 + np.exp(-x))
        if config.activation == "relu2":
            return np.maximum(x, 0) ** 2
        if config.activation == "gelu":
            return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2

    def one_head(x, name, n, scale, local):
        y = dense(x, name)
        if config.qk_norm_joint and scale:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_eps) * (p[scale] + config.norm_offset)
        y = y[..., n * H : (n + 1) * H]
        if config.qk_norm and scale:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + config.norm_eps) * (p[scale] + config.norm_offset)
        return rope(y, local) if config.position == "rope" and scale else y

    x = p["embed"][tokens] * (math.sqrt(config.dim) if config.embed_scale else 1.0)
    if config.position == "learned":
        x = x + p["positions"][positions]
    before, after = config.norm_order in ("pre", "both"), config.norm_order in ("post", "both")
    for layer in range(config.layers):
        block, local = f"block_{layer:02d}/", config.window > 0 and layer not in config.global_layers
        mask = visible(segments, positions, config.window if local else 0)
        h, heads = norm(x, block + "norm_attn/") if before else x, []
        for n in range(N):
            q = one_head(h, block + "attn/q", n, block + "attn/q_scale", local)
            k = one_head(h, block + "attn/k", n // (N // K), block + "attn/k_scale", local)
            v = one_head(h, block + "attn/v", n // (N // K), "", local)
            scores = q @ k.swapaxes(1, 2) / math.sqrt(config.attn_scale or H)
            if config.attn_softcap:
                scores = config.attn_softcap * np.tanh(scores / config.attn_softcap)
            weights = np.where(mask, np.exp(scores - scores.max()), 0.0)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        y = dense(np.concatenate(heads, -1), block + "attn/out")
        begun, x = x, x + (norm(y, block + "norm_attn_out/") if after else y)
        h = begun if config.parallel else x
        h = norm(h, block + "norm_mlp/") if before else h
        up = dense(h, block + "mlp/up")
        h = act(dense(h, block + "mlp/gate")) * up if config.mlp_gated else act(up)
        y = dense(h, block + "mlp/down")
        x = x + (norm(y, block + "norm_mlp_out/") if after else y)
    x = norm(x, "norm_out/")
    logits = x @ (p["embed"].T if config.tie_embeddings else p["head"])
    return config.logit_softcap * np.tanh(logits / config.logit_softcap) if config.logit_softcap else logits


@pytest.mark.parametrize(
    ("style", "changes"),
    [
        ("llama", {}),
        (
            "llama",
            {"window": 3, "attn_softcap": 3.0, "logit_softcap": 4.0, "embed_scale": True, "tie_embeddings": True},
        ),
        ("llama", {"activation": "relu2", "mlp_gated": False, "head_dim": 8, "rope_theta": 100.0, "attn_bias": True}),
        ("gpt2", {}),
        ("gpt2", {"activation": "gelu", "kv_heads": 1, "mlp_gated": True}),
        ("llama", {"norm_order": "both", "norm_offset": True, "window": 3, "global_layers": (1,), "attn_scale": 9.0}),
        ("llama", {"window": 4, "global_layers": (0,), "rope_local_theta": 50.0}),
        ("llama", {"norm_order": "post", "qk_norm": False, "qk_norm_joint": True}),
        ("gpt2", {"position": "rope", "parallel": True, "rope_fraction": 0.5, "head_dim": 8}),
    ],
)
def test_whole_decoder_against_numpy(make_model, style, changes):
    model, params = make_model(style, layers=2, **changes)
    tokens = np.concatenate([TOKENS, TOKENS + 4])
    inputs = (tokens, np.concatenate([ONE[0], POSITIONS]), np.concatenate([ONE[1], SEGMENTS]))
    found = apply(model, params, *inputs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, reference(model.config, params, *inputs), atol=3e-5)


def test_layers_with_and_without_the_window_share_one_program(make_model):
    """A stack of both kinds, by kernels and by the formula, is the same as the layers one by one; gradients too."""
    changes = {"layers": 3, "window": 3, "global_layers": (1,), "rope_local_theta": 50.0, "qk_norm": False}
    single, params = make_model("llama", **changes)
    inputs = (TOKENS, *ONE)
    stacked = join_stacks(params, list(param_shapes(replace(single, runs=((0, 3),)))))
    kernels = make_kernels("chunked", single.config, None, TOKENS.shape[1])
    assert kernels is not None
    assert kernels[0] is not kernels[1]

    def loss(model):
        return lambda params: jnp.square(apply(model, params, *inputs)).mean()

    wanted = jax.grad(loss(single))(params)
    for model in (replace(single, runs=((0, 3),)), replace(single, runs=((0, 3),), kernels=kernels)):
        np.testing.assert_allclose(apply(model, stacked, *inputs), apply(single, params, *inputs), atol=2e-5)
        found = split_stacks(jax.grad(loss(model))(stacked))
        for path, leaf in wanted.items():
            np.testing.assert_allclose(found[path], leaf, atol=2e-5, err_msg=path)
    blind = replace(single, config=replace(single.config, global_layers=()))
    assert np.abs(apply(blind, params, *inputs) - apply(single, params, *inputs)).max() > 1e-3


SCALINGS = {
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0),
    "yarn": RopeScaling("yarn", 4.0, 64, attention_factor=1.2),
    "dynamic": RopeScaling("dynamic", 2.0, 8),
    "longrope": RopeScaling("longrope", 1.0, 8, 1.1, short_factor=(1, 1.5, 2, 3), long_factor=(2, 4, 8, 16)),
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_rope_scaling_stretches_what_its_paper_says(kind):
    """Turns of each pair of dimensions at position 1 of a short and of a long document."""
    scaling = SCALINGS[kind]
    config = ModelConfig(dim=8, heads=1, rope_theta=100.0, rope_scaling=scaling)
    plain = 100.0 ** -(np.arange(4) / 4)

    def turns(length):
        positions, ones = jnp.arange(length)[None], jnp.ones((1, length), jnp.int32)
        cos, sin = rope_angles(positions, ones, config)
        assert float(cos[0, 0, 0]) == pytest.approx(scaling.attention_factor)
        return np.arctan2(sin[0, 1], cos[0, 1])

    turns_in_64 = 64 * plain / (2 * np.pi)
    grown = 100.0 * (2 * 24 / 8 - 1) ** (8 / 6)
    short, long = {
        "linear": (plain / 4, plain / 4),
        "llama3": (2 * [plain * np.interp(turns_in_64, [1, 4], [1 / 8, 1])]),
        "yarn": (2 * [plain * np.interp(np.arange(4), [0, 3], [1, 1 / 4])]),
        "dynamic": (plain, grown ** -(np.arange(4) / 4)),
        "longrope": (plain / [1, 1.5, 2, 3], plain / [2, 4, 8, 16]),
    }[kind]
    np.testing.assert_allclose(turns(6), short, rtol=1e-5)
    np.testing.assert_allclose(turns(24), long, rtol=1e-5)


def test_a_short_document_beside_a_long_one_is_not_stretched():
    config = ModelConfig(dim=8, heads=1, rope_scaling=SCALINGS["dynamic"])
    positions = jnp.array([[*range(4), *range(20)]])
    packed = rope_angles(positions, jnp.array([[1] * 4 + [2] * 20]), config)
    alone = rope_angles(positions[:, :4], jnp.ones((1, 4), jnp.int32), config)
    np.testing.assert_array_equal(packed[0][:, :4], alone[0])


def test_rope_scores_depend_on_the_distance_only():
    H, ones, config = 8, jnp.ones((1, 1), jnp.int32), ModelConfig(dim=8, heads=1)
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, H))

    def score(t, s):
        q_t = rotate(q, *rope_angles(jnp.full((1, 1), t), ones, config))
        k_s = rotate(k, *rope_angles(jnp.full((1, 1), s), ones, config))
        np.testing.assert_allclose(jnp.linalg.norm(q_t), jnp.linalg.norm(q), rtol=1e-6)
        return float((q_t * k_s).sum())

    near = [score(t, t - 3) for t in (3, 10, 200)]
    np.testing.assert_allclose(near, near[0], atol=1e-4)
    assert abs(score(10, 3) - near[0]) > 1e-2
    assert abs(score(3, 6) - near[0]) > 1e-2  # the direction matters too


@pytest.mark.parametrize(("style", "same"), [("llama", True), ("gpt2", False)])
def test_shifting_all_positions_matters_only_with_learned_positions(make_model, style, same):
    model, params = make_model(style)
    before = apply(model, params, TOKENS, *ONE)
    after = apply(model, params, TOKENS, ONE[0] + 20, ONE[1])
    assert np.allclose(before, after, atol=1e-4) == same


def test_without_positions_only_the_set_of_earlier_tokens_counts(make_model):
    model, params = make_model(position="none", layers=1)
    swapped = TOKENS.copy()
    swapped[0, [1, 4]] = swapped[0, [4, 1]]
    before, after = (np.asarray(apply(model, params, t, *ONE)) for t in (TOKENS, swapped))
    np.testing.assert_allclose(before[:, 5:], after[:, 5:], atol=1e-5)
    assert not np.allclose(before[:, 2], after[:, 2], atol=1e-3)


@STYLES
def test_any_grouping_of_layers_is_the_same_model(make_model, style):
    model, params = make_model(style, layers=3)
    logits = apply(model, params, TOKENS, POSITIONS, SEGMENTS)
    for runs in [((0, 3),), ((0, 1), (1, 3))]:
        other, grouped = make_model(style, runs, layers=3)
        found = apply(other, join_stacks(params, list(grouped)), TOKENS, POSITIONS, SEGMENTS)
        np.testing.assert_allclose(found, logits, atol=1e-5)


@STYLES
def test_any_grouping_starts_from_the_same_numbers(make_model, style):
    flat = start_weights(make_model(style, layers=3)[0])
    for runs in [((0, 3),), ((0, 1), (1, 3))]:
        model, _ = make_model(style, runs, layers=3)
        single = split_stacks(start_weights(model))
        assert list(single) == list(flat)
        for path, leaf in flat.items():
            np.testing.assert_array_equal(single[path], leaf, err_msg=path)


def test_layers_start_different(make_model):
    params = start_weights(make_model()[0])
    assert not np.allclose(params["block_00/attn/q"], params["block_01/attn/q"])
    assert not np.allclose(params["block_00/attn/q"][:, :8], params["block_00/attn/k"])


def test_start_of_output_projections(make_model):
    zero = start_weights(make_model(init_out="zero")[0])
    assert not zero["block_01/attn/out"].any()
    assert not zero["block_01/mlp/down"].any()
    scaled = start_weights(make_model(init_out="scaled", layers=8, dim=64, mlp_dim=256)[0])
    np.testing.assert_allclose(np.std(scaled["block_05/mlp/down"]), 0.2 / math.sqrt(2 * 8), rtol=0.05)
    np.testing.assert_allclose(np.std(scaled["block_05/mlp/up"]), 0.2, rtol=0.05)


def test_remat_saves_memory_and_changes_no_gradient(make_model):
    """With dropout: the recomputed forward must draw the same mask."""

    def gradients(policy, runs, layers):
        model, params = make_model(runs=runs, remat=policy, dropout=0.3, layers=layers)

        def loss(params):
            return jnp.square(model.apply(params, TOKENS, *ONE, jax.random.key(3))).mean()

        program = jax.jit(jax.grad(loss)).lower(params).compile()
        return program(params), program.memory_analysis().temp_size_in_bytes

    for runs, layers, policies in (((), 1, ["none", "full"]), (((0, 16),), 16, ["none", "dots", "full"])):
        found = [gradients(policy, runs, layers) for policy in policies]
        for grads, _ in found[1:]:
            for path, leaf in found[0][0].items():
                np.testing.assert_allclose(grads[path], leaf, atol=1e-5, err_msg=path)
        if runs:  # unrolled, XLA for CPU merges what is recomputed with what was kept
            sizes = [size for _, size in found]
            assert sizes == sorted(set(sizes), reverse=True)


def test_parameter_paths(make_model):
    block = {
        "llama": "attn/k attn/k_scale attn/out attn/q attn/q_scale attn/v mlp/down mlp/gate mlp/up norm_attn/scale norm_mlp/scale",
        "gpt2": "attn/k attn/k_bias attn/out attn/out_bias attn/q attn/q_bias attn/v attn/v_bias mlp/down mlp/down_bias mlp/up"
        " mlp/up_bias norm_attn/bias norm_attn/scale norm_mlp/bias norm_mlp/scale",
    }
    trunk = {
        "llama": {"embed", "head", "norm_out/scale"},
        "gpt2": {"embed", "positions", "norm_out/bias", "norm_out/scale"},
    }
    for style, names in block.items():
        params = param_shapes(make_model(style)[0])
        blocks = {f"block_{i:02d}/{name}" for i in range(2) for name in names.split()}
        assert set(params) == blocks | trunk[style]
        assert list(params) == sorted(params)
        assert all(leaf.dtype == jnp.float32 for leaf in params.values())
    _, scanned = make_model(layers=3, runs=((0, 2), (2, 3)))
    assert scanned["block_00-01/mlp/up"].shape == (2, 16, 32)
    assert scanned["block_02-02/attn/k"].shape == (1, 16, 8)


@pytest.mark.parametrize("runs", [(), ((0, 2),)])
def test_dropout_only_with_a_key(make_model, runs):
    model, params = make_model(runs=runs, dropout=0.5)
    plain, again = apply(model, params, TOKENS, *ONE), apply(model, params, TOKENS, *ONE)
    np.testing.assert_array_equal(plain, again)
    without, _ = make_model(runs=runs, dropout=0.0)
    np.testing.assert_allclose(plain, apply(without, params, TOKENS, *ONE), atol=1e-5)
    first, same, second = (apply(model, params, TOKENS, *ONE, jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, second)
    assert not np.allclose(first, plain)


@pytest.mark.parametrize("runs", [(), ((0, 2),)])
def test_each_layer_draws_its_own_dropout(make_model, runs):
    """Both layers add the constant 1 and nothing else: each place ends as 0, 1 or 2 kept additions, in binomial shares."""
    model, params = make_model("gpt2", runs, dropout=0.25, dim=64)
    params = {p: leaf * (p == "norm_out/scale") + p.endswith("mlp/down_bias") for p, leaf in params.items()}
    params["norm_out/scale"] = np.ones(64, np.float32)
    hidden = jax.jit(model.hidden)(params, TOKENS, *ONE, jax.random.key(0))[0]
    ranks = np.concatenate([np.unique(x.round(3), return_inverse=True)[1] for x in np.asarray(hidden[0])])
    np.testing.assert_allclose(np.bincount(ranks) / ranks.size, [0.0625, 0.375, 0.5625], atol=0.05)


def test_bfloat16_computes_with_float32_master_weights(make_model):
    model, params = make_model(dtype="bfloat16")
    exact, _ = make_model(dtype="float32")
    assert all(leaf.dtype == jnp.float32 for leaf in param_shapes(model).values())
    assert model.hidden(params, TOKENS, *ONE)[0].dtype == jnp.bfloat16
    logits, expected = apply(model, params, TOKENS, *ONE), apply(exact, params, TOKENS, *ONE)
    assert logits.dtype == jnp.float32
    assert 1e-5 < np.abs(logits - expected).max() < 0.3 * np.std(expected)
    grads = jax.jit(jax.grad(lambda p: model.apply(p, TOKENS, *ONE).sum()))(params)
    assert all(leaf.dtype == jnp.float32 for leaf in grads.values())


def test_tied_head_is_the_embedding(make_model):
    for tied in (True, False):
        model, params = make_model(tie_embeddings=tied)
        assert ("head" in params) != tied
        hidden = np.asarray(model.hidden(params, TOKENS, *ONE)[0])
        weights = np.asarray(params["embed"]).T if tied else np.asarray(params["head"])
        np.testing.assert_allclose(apply(model, params, TOKENS, *ONE), hidden @ weights, atol=1e-5)


def test_embed_scale_multiplies_the_input_but_not_the_head(make_model):
    scaled, params = make_model(embed_scale=True, tie_embeddings=True)
    plain, _ = make_model(embed_scale=False, tie_embeddings=True)
    bigger = {**params, "embed": params["embed"] * math.sqrt(scaled.config.dim)}
    found = apply(scaled, params, TOKENS, *ONE) * math.sqrt(scaled.config.dim)
    np.testing.assert_allclose(found, apply(plain, bigger, TOKENS, *ONE), rtol=1e-4, atol=1e-4)


def test_logit_softcap_bounds_and_keeps_the_order(make_model):
    capped, params = make_model(logit_softcap=0.5)
    plain, _ = make_model()
    found, raw = np.asarray(apply(capped, params, TOKENS, *ONE)), np.asarray(apply(plain, params, TOKENS, *ONE))
    assert np.abs(raw).max() > 0.5
    assert np.abs(found).max() <= 0.5
    np.testing.assert_allclose(found, 0.5 * np.tanh(raw / 0.5), atol=1e-5)
    np.testing.assert_array_equal(found.argmax(-1), raw.argmax(-1))
