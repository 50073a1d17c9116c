"""Does every attention kernel compute the formula, on packed rows, alone and over devices, or say that it cannot?"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import build
from lm.config import ConfigError, MeshConfig
from lm.model import formula, kernels
from lm.model.kernels import choose, compare, refusal
from lm.model.pieces import attend_in_pieces
from lm.model.products import einsum_f32, matmul
from lm.parts import make_parts
from lm.sharding import make_mesh

T = 256
RNG = np.random.default_rng(0)
SEGMENTS = np.stack([np.repeat([1, 2, 3, 0], [n, 100, 56, 100 - n]) for n in (10, 40, 99, 1)]).astype(np.int32)
SIZES = {"dim": 64, "heads": 8, "kv_heads": 2, "head_dim": 16, "max_len": T}


def mesh_of(**axes):
    return make_mesh(MeshConfig(**axes)) if axes else None


@pytest.mark.parametrize("changes", [{}, {"window": 37}, {"attn_softcap": 3.0}, {"dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("chunked", {}), ("splash", {}), ("xla", {"data": 2, "context": 4}), ("chunked", {"context": 2, "tensor": 2, "fsdp": 2}),
        ("splash", {"context": 2, "tensor": 2, "fsdp": 2}),
    ],
    ids=str,
)  # fmt: skip
def test_a_kernel_is_the_formula(make_model_config, monkeypatch, name, axes, changes):
    """Output and gradients, on packed rows with padding; several pieces, so that keys are cut off."""
    monkeypatch.setattr(kernels, "piece_size", lambda *a: 64)
    config = make_model_config(**SIZES, **changes)
    found = compare(name, config, mesh_of(**axes), SEGMENTS)
    assert set(found) == {"output", "gradient of q", "gradient of k", "gradient of v"}
    assert max(found.values()) < (1e-5 if config.dtype == "float32" else 2e-2), found


@pytest.mark.parametrize(
    ("queries", "size", "window", "cap"), [(100, 32, 0, 0.0), (100, 32, 45, 2.0), (64, 64, 5, 0.0), (7, 3, 2, 0.0)]
)
def test_pieces_that_do_not_divide_the_row(queries, size, window, cap):
    """Output and gradients against the formula, also for queries that start in the middle of the keys."""
    keys, first = queries + 20, 20
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)  # noqa: E731
    operands = draw(2, queries, 2, 3, 8), draw(2, keys, 2, 8), draw(2, keys, 2, 8)
    ids = jnp.asarray(np.sort(RNG.integers(0, 4, (2, keys))), jnp.int32)
    mask = formula.slot_mask(ids[:, first:], ids, first, window)
    cotangent = draw(*operands[0].shape)

    def outputs(function):
        @jax.jit
        def both(*operands):
            y, pull = jax.vjp(function, *operands)
            return [y, *pull(cotangent)]

        return both(*operands)

    expected = outputs(lambda q, k, v: formula.attend(q, k, v, mask, cap))
    for slot, groups in ((first, 1), (jnp.asarray(first), 1), (first, 2)):
        rest = (ids[:, first:], ids, slot, window, cap, size, groups)
        found = outputs(lambda q, k, v, rest=rest: attend_in_pieces(q, k, v, *rest))
        for a, b in zip(found, expected):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["chunked", "splash"])
def test_a_wrong_kernel_is_found(make_model_config, monkeypatch, name):
    """A kernel that lets documents see each other, and one that ignores the window."""
    config = make_model_config(**SIZES, window=20)
    whole = kernels.make_kernel(name, config, None, T)
    monkeypatch.setattr(kernels, "make_kernel", lambda *a: lambda q, k, v, s: whole(q, k, v, jnp.ones_like(s)))
    assert compare(name, config, None, SEGMENTS)["output"] > 0.05
    blind = kernels.make_kernel
    monkeypatch.undo()
    blind = kernels.make_kernel(name, replace(config, window=0), None, T)
    monkeypatch.setattr(kernels, "make_kernel", lambda *a: blind)
    assert compare(name, config, None, SEGMENTS)["output"] > 0.05


def test_a_run_whose_kernel_disagrees_does_not_start(make_config, monkeypatch):
    class Data:
        def train_batches(self, step, rows, state):
            return iter_with_close({"segments": np.ones((8, 128), np.int32)})

    config = make_config(model={"attention": "chunked"}, data={"seq_len": 128}, mesh={"data": 1})
    parts = make_parts(config, 32, 1e-3, jax.devices()[:1])
    lines = []
    build.check_kernel(parts, Data(), lines.append)
    assert "attention by chunked" in lines[0]
    for worst in (0.5, float("nan")):
        monkeypatch.setattr(build, "compare", lambda *a, worst=worst: {"output": 1e-9, "gradient of k": worst})
        with pytest.raises(ConfigError, match=r"gradient of k differs .* this kernel is wrong here"):
            build.check_kernel(parts, Data(), lines.append)


@pytest.mark.parametrize(
    ("platform", "flags", "said"),
    [
        ("cpu", "", False), ("gpu", "", True), ("gpu", "--xla_gpu_deterministic_ops=false", True),
        ("gpu", "--xla_gpu_exclude_nondeterministic_ops=true --xla_dump_to=x", False), ("gpu", "--xla_gpu_deterministic_ops=true", False),
    ],
)  # fmt: skip
def test_a_gpu_says_whether_its_bits_repeat(monkeypatch, platform, flags, said):
    monkeypatch.setattr(build, "platform_of", lambda mesh: platform)
    monkeypatch.setenv("XLA_FLAGS", flags)
    lines = []
    build.say_whether_bits_repeat(mesh_of(data=8), lines.append)
    assert [("last bits" in line) for line in lines] == [True] * said


def iter_with_close(batch):
    class Batches:
        def __next__(self):
            return batch

        def close(self):
            pass

    return Batches()


@pytest.mark.parametrize(
    ("name", "changes", "axes", "words"),
    [
        ("chunked", {"dropout": 0.1}, {}, "cannot drop attention weights"),
        ("splash", {}, {"context": 4, "data": 2}, "seq_len divisible by 512, got 256"),
        ("cudnn", {}, {}, "NVIDIA GPU; it needs config.model.dtype='bfloat16'"),
        ("cudnn", {"attn_softcap": 2.0}, {"context": 8}, "no soft-cap .*cannot share a row"),
    ],
)
def test_a_kernel_that_cannot_says_why(make_config, name, changes, axes, words):
    model = {**SIZES, "attention": name, **changes}
    config = make_config(model=model, data={"seq_len": T}, mesh=axes or {"data": 8})
    with pytest.raises(ConfigError, match=f"model.attention='{name}': .*{words}.* Set it to 'auto'"):
        make_parts(config, 32, 1e-3)


def test_auto_takes_what_fits(make_model_config, monkeypatch):
    tiny, short, long = 32, 1024, 4096
    config = make_model_config()
    assert [choose(config, None, n) for n in (tiny, short, long)] == ["xla", "chunked", "chunked"]
    assert choose(replace(config, dropout=0.1), None, long) == "xla"
    assert choose(config, mesh_of(data=4, context=2), short) == "chunked"
    assert choose(replace(config, attention="xla"), None, long) == "xla"
    monkeypatch.setattr(kernels, "platform_of", lambda mesh: "tpu")
    half = replace(config, dtype="bfloat16", head_dim=8)
    assert [choose(half, None, n) for n in (short, long, 1000)] == ["splash", "splash", "xla"]
    assert [choose(config, None, n) for n in (short, long, 1000)] == ["chunked", "chunked", "xla"]
    assert "float32" in refusal("splash", config, None, short)
    monkeypatch.setattr(kernels, "platform_of", lambda mesh: "gpu")
    assert [choose(c, None, short) for c in (half, config)] == ["cudnn", "chunked"]
    assert [choose(config, None, n) for n in (512, long)] == ["xla", "chunked"]
    assert refusal("splash", config, None, short) == "it needs a TPU"


def test_chunked_attention_never_holds_all_scores(make_model_config, monkeypatch):
    """2,048 places, 2 heads: all scores are 32 MiB in float32; a piece's are 1."""
    monkeypatch.setattr(kernels, "piece_size", lambda *a: 64)
    config = make_model_config(dim=16, heads=2, kv_heads=1, head_dim=8)
    rows = jax.ShapeDtypeStruct((1, 2048, 2, 8), jnp.float32)
    keys = jax.ShapeDtypeStruct((1, 2048, 1, 8), jnp.float32)

    def memory(name):
        kernel = kernels.make_kernel(name, config, None, 2048) or plain

        def loss(q, k, v):
            return jnp.square(kernel(q, k, v, jnp.ones((1, 2048), jnp.int32))).sum()

        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(rows, keys, keys).compile().memory_analysis().temp_size_in_bytes

    def plain(q, k, v, s):
        return formula.attend(q[:, :, None], k, v, formula.slot_mask(s, s, 0, 0))

    assert memory("xla") > 32 * 2**20
    assert memory("chunked") < memory("xla") / 2


def test_einsum_f32_keeps_its_backward_in_the_dtype_of_its_operands():
    a, b = jnp.ones((4, 8), jnp.bfloat16), jnp.ones((8, 2), jnp.bfloat16)
    out, pull = jax.vjp(lambda a, b: einsum_f32("ij,jk->ik", a, b), a, b)
    assert out.dtype == jnp.float32
    assert [g.dtype for g in pull(out)] == [jnp.bfloat16] * 2
    text = str(
        jax.make_jaxpr(lambda a, b, g: jax.vjp(lambda a, b: einsum_f32("ij,jk->ik", a, b), a, b)[1](g))(a, b, out)
    )
    assert text.count("dot_general") == 2 + text.count("preferred_element_type=float32")


def test_einsum_f32_has_the_gradient_of_einsum():
    a, b = (jnp.asarray(RNG.normal(size=s), jnp.float32) for s in ((2, 3, 4), (2, 5, 4)))

    def loss(f, a, b):
        return jnp.sin(f("bij,bkj->bik", a, b)).sum()

    expected = jax.grad(lambda a, b: loss(jnp.einsum, a, b), (0, 1))(a, b)
    found = jax.grad(lambda a, b: loss(einsum_f32, a, b), (0, 1))(a, b)
    for x, y in zip(found, expected):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_matmul_has_the_gradient_of_the_product(dtype):
    x, w, g = (jnp.asarray(RNG.normal(size=s), dtype) for s in ((2, 5, 8), (8, 3), (2, 5, 3)))
    y, pull = jax.vjp(matmul, x, w)
    plain, plain_pull = jax.vjp(lambda x, w: x @ w, x, w)
    for a, b in zip((y, *pull(g)), (plain, *plain_pull(g))):
        assert a.dtype == b.dtype
        size = np.abs(np.float32(b)).max()
        np.testing.assert_allclose(
            np.float32(a), np.float32(b), rtol=0, atol=size * (1e-6 if dtype == "float32" else 1e-2)
        )
