"""On an NVIDIA GPU: is float32 float32, is a run the CPU's run, do the same bits come again, does a plan hold? `make test-gpu`."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import ModelConfig, adapters_only, last_layers
from lm.generate import generate
from lm.model.formula import attend, slot_mask
from lm.model.grouped import matmul_grouped
from lm.model.kernels import choose, compare, make_kernel
from lm.model.products import matmul
from lm.params import split_stacks
from lm.parts import abstract_batch, make_parts
from lm.plan import compile_step, random_batch
from lm.profile import top_operations
from lm.receipt import xla_flops
from lm.sampling import Sampling
from lm.sharding import put_batch
from lm.start import start_state

ROOT = Path(__file__).resolve().parents[2]
if jax.default_backend() != "gpu":
    pytest.skip("needs an NVIDIA GPU: make test-gpu", allow_module_level=True)
KINDS = {
    "gpt2": {"style": "gpt2", "model": {"dropout": 0.1}},
    "llama": {"style": "llama"},
    "bfloat16, cudnn": {"style": "llama", "model": {"dtype": "bfloat16", "dim": 64, "max_len": 128}, "data": {"seq_len": 128}},
    "experts": {"style": "llama", "model": {"experts": 4, "experts_per_token": 2}},
    "adapters beside codes": {"style": "llama", "lora": {"rank": 2}, "optim": {"train": adapters_only(), "frozen_dtype": "int8"}},
    "top layer": {"style": "llama", "optim": {"train": last_layers(1, 2)}},
}  # fmt: skip


def steps(config, count, devices=None, first=0, state=None):
    """Some steps of a run on random documents; returns (state, losses)."""
    parts = make_parts(config, config.model.vocab_size, 1e-2, devices or jax.devices()[:1])
    state, losses = start_state(parts) if state is None else state, []
    for step in range(first, first + count):
        batch = random_batch(config, config.model.vocab_size)
        batch["tokens"] = np.roll(batch["tokens"], step, axis=1)
        batch["segments"] = np.sort(batch["tokens"] % 3 + 1, axis=1).astype(np.int32)
        arrays = put_batch(batch, parts.mesh, config.data.batch_size)
        state, metrics = parts.train_step(state, arrays, jax.random.key(step))
        losses.append(float(metrics["train/loss"]))
    return state, losses


def bits(state):
    leaves = [np.asarray(leaf).tobytes() for _, leaf in sorted(split_stacks(state.params).items())]
    return hashlib.sha256(b"".join(leaves)).hexdigest()


def test_float32_is_float32():
    """TF32 would be 3e-4 away."""
    x, w, g = (np.random.default_rng(i).normal(size=(1, 512, 512)).astype(np.float32) for i in range(3))
    y, pull = jax.vjp(matmul, jnp.asarray(x), jnp.asarray(w[0]))
    wide = [array[0].astype(np.float64) for array in (x, w, g)]
    wanted = (wide[0] @ wide[1], wide[2] @ wide[1].T, wide[0].T @ wide[2])
    for found, want in zip((y[0], pull(jnp.asarray(g))[0][0], pull(jnp.asarray(g))[1]), wanted):
        assert np.linalg.norm(found - want) / np.linalg.norm(want) < 3e-6


@pytest.mark.parametrize("kind", ["gpt2", "llama", "experts", "adapters beside codes", "top layer"])
def test_a_run_is_the_run_on_the_cpu(make_config, kind):
    config = make_config(**KINDS[kind])
    config = replace(config, model=replace(config.model, dropout=0.0))
    _, here = steps(config, 6)
    _, there = steps(config, 6, jax.devices("cpu")[:1])
    assert here == pytest.approx(there, abs=2e-5)
    assert abs(there[-1] - there[0]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_come_again_and_from_the_middle(make_config, kind):
    config = make_config(**KINDS[kind])
    state, losses = steps(config, 8)
    middle, _ = steps(config, 4)
    again, rest = steps(config, 4, first=4, state=middle)
    assert (bits(state), losses[4:]) == (bits(again), rest)


def test_another_process_goes_on_with_the_same_bits():
    """XLA chooses a product's program by timing it, each time anew: a resumed run must get the one it had."""
    program = (
        "import sys; from benchmarks.ours import Steps; from tests.lm.test_gpu import bits\n"
        "for dtype in ('float32', 'bfloat16'):\n"
        "    work = Steps({'case': '4x512/512x16', 'dtype': dtype}); work.run(5); print(bits(work.state))"
    )
    found = {
        subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(found) == 1


@pytest.mark.parametrize("name", ["cudnn", "chunked"])
@pytest.mark.parametrize("changes", [{}, {"window": 37}, {"kv_heads": 2}, {"head_dim": 128}], ids=str)
def test_a_kernel_is_the_formula(make_model_config, name, changes):
    segments = np.sort(np.random.default_rng(0).integers(0, 5, (2, 384)), axis=1).astype(np.int32)
    sizes = {"dim": 256, "heads": 4, "kv_heads": 4, "max_len": 384, "dtype": "bfloat16"}
    config = make_model_config(**{**sizes, **changes})
    assert choose(config, None, 384) == "cudnn"
    found = compare(name, config, None, segments)
    assert max(found.values()) < 2e-2, found


def test_cudnn_lets_no_document_see_another():
    """What stands in the others changes nothing, to the bit."""
    config = {"dim": 256, "heads": 4, "kv_heads": 4, "max_len": 256, "dtype": "bfloat16"}
    kernel = make_kernel("cudnn", ModelConfig(layers=1, vocab_size=8, **config), None, 256)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 256, 4, 64), jnp.bfloat16) for i in range(3))
    segments = jnp.asarray(np.repeat([[1, 2]], [100, 156], axis=1), jnp.int32)
    one = kernel(q, k, v, segments)
    other = kernel(q, k.at[:, :100].set(3), v.at[:, :100].set(-9), segments)
    assert (one[:, 100:] == other[:, 100:]).all()
    assert not (one[:, :100] == other[:, :100]).all()
    mask = slot_mask(segments, segments, 0, 0)
    wanted = attend(
        *(x.astype(jnp.float32).reshape(1, 256, 4, *([1] if i == 0 else []), 64) for i, x in enumerate((q, k, v))), mask
    )
    np.testing.assert_allclose(one.astype(jnp.float32), wanted.reshape(one.shape), atol=3e-2)


def test_experts_get_their_rows():
    rng = np.random.default_rng(0)
    x, w, g = (rng.normal(size=s).astype(np.float32) for s in ((300, 64), (7, 64, 48), (300, 48)))
    ids = np.sort(rng.integers(1, 7, 300))
    counts = jnp.asarray(np.bincount(ids, minlength=7), jnp.int32)
    y, pull = jax.jit(lambda x, w: jax.vjp(lambda x, w: matmul_grouped(x, w, counts), x, w))(x, w)
    x_grad, w_grad = pull(jnp.asarray(g))
    np.testing.assert_allclose(y, np.einsum("rd,rdf->rf", x, w[ids]), atol=1e-4)
    np.testing.assert_allclose(x_grad, np.einsum("rf,rdf->rd", g, w[ids]), atol=1e-4)
    wanted = np.zeros_like(w)
    np.add.at(wanted, ids, np.einsum("rd,rf->rdf", x, g))
    np.testing.assert_allclose(w_grad, wanted, atol=1e-4)


def test_a_text_is_the_text_of_the_cpu(make_model):
    model, params = make_model(layers=3)
    prompts, greedy = [[5, 9, 2], [7], [1 + i % 30 for i in range(33)]], Sampling(temperature=0.0)
    here = generate(model, params, prompts, max_new_tokens=20, sampling=greedy)
    with jax.default_device(jax.devices("cpu")[0]):
        assert here == generate(model, params, prompts, max_new_tokens=20, sampling=greedy)


PEAK = """
import json
from benchmarks.ours import Steps
work = Steps({"case": "6x512/512x32", "dtype": "bfloat16", "model": {"vocab_size": 32000}, "plan": True, "train": %s}); work.run(3)
print(json.dumps(work.facts()))
"""


def test_a_plan_says_what_the_device_holds_and_freezing_saves_it():
    found = {}
    for name, table in {"all": ((".*", True),), "top": last_layers(1, 6)}.items():
        out = subprocess.run(
            [sys.executable, "-c", PEAK % repr(table)], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        )  # fmt: skip
        found[name] = json.loads(out.stdout)
    for facts in found.values():
        assert facts["xla_bytes"] == pytest.approx(facts["device_bytes"], rel=0.1)
    assert found["top"]["device_bytes"] < 0.6 * found["all"]["device_bytes"]
    assert found["top"]["flops"] < 0.6 * found["all"]["flops"]


def test_more_than_the_device_has_is_refused_before_it_runs(make_config):
    config = make_config(
        model={"layers": 4, "dim": 4096, "heads": 32, "vocab_size": 100_000, "mlp_dim": 16384, "max_len": 4096},
        data={"seq_len": 4096, "batch_size": 512},
    )
    parts = make_parts(config, 100_000, 1e-3, jax.devices()[:1])
    program = compile_step(parts)
    assert program.refused or program.memory["total"] > jax.local_devices()[0].memory_stats()["bytes_limit"]


def test_a_profile_names_the_products(tmp_path):
    program = jax.jit(lambda x: jax.lax.fori_loop(0, 8, lambda _, y: jnp.tanh(y @ x), x))
    x = jnp.ones((2048, 2048), jnp.bfloat16)
    program(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        program(x).block_until_ready()
    found = top_operations(next(tmp_path.glob("plugins/profile/*/*.xplane.pb")))
    assert sum(operation.calls for operation in found) >= 8
    assert any(word in operation.name for operation in found[:3] for word in ("dot", "gemm", "cublas")), found[:5]


def test_flops_are_counted(make_config):
    """A plugin's `cost_analysis` before compiling is None."""
    parts = make_parts(make_config(), 32, 1e-3, jax.devices()[:1])
    assert xla_flops(parts.make_step, parts.model, parts.treatment, abstract_batch(parts.config)) > 0
