"""What do attention, float32 products and products with experts cost on this device, by each program that there is for them?

Attention: forward and backward of packed rows, [rows, places, heads, 64] in bfloat16, by each kernel of lm/model/kernels.py that
works here; `TFLOP/s` counts the pairs that a causal row has. Products: N x N x N, as JAX multiplies float32 by default, as this
project does (lm/model/products.py: einsum), and in bfloat16; `error` is of 64 rows against float64. Experts: forward and
backward of 16,384 rows by lm/model/grouped.py, by `jax.lax.ragged_dot`, and of one matrix for all. Needs no TensorFlow.

    python benchmarks/kernels.py [--out=FILE.jsonl] [--quick] [--what=attention,products,experts]

example: python benchmarks/kernels.py --what=attention --out=kernels.jsonl
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import make_config
from benchmarks.turns import Row, Table
from data_pipeline.schema import ConfigError, run_main, split_flags
from lm.model.formula import attend, slot_mask
from lm.model.grouped import matmul_grouped
from lm.model.kernels import make_kernel, refusal
from lm.model.products import einsum


class Case(NamedTuple):
    """One program that is timed; `exact`: the first 64 rows of its result in float64, where they are compared."""

    what: str
    program: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    flops: float
    exact: Any = None


def draw(number: int, *shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(number), shape, dtype)


def both_ways(function: Callable[..., Any], cotangent: jax.Array) -> Callable[..., Any]:
    """Forward and backward of a function."""

    def run(*arguments: Any) -> Any:
        y, pull = jax.vjp(function, *arguments)
        return y, pull(cotangent)

    return run


def attention(quick: bool) -> Iterator[Case]:
    B, T, N, H = (2, 128, 2, 64) if quick else (8, 2048, 16, 64)
    segments = jnp.asarray(np.sort(np.random.default_rng(0).integers(1, 6, (B, T)), axis=1), jnp.int32)
    model = make_config("4x256/64x4", "bfloat16").model
    model = replace(model, position="rope", max_len=T, dim=N * H, heads=N, kv_heads=N)

    def formula(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q.reshape(B, T, N, 1, H), k, v, slot_mask(segments, segments, 0, 0)).reshape(q.shape)

    programs: dict[str, Any] = {"xla": formula}
    for name in ("chunked", "cudnn", "splash"):
        if not refusal(name, model, None, T) and not (name == "splash" and jax.default_backend() == "cpu"):
            kernel: Any = make_kernel(name, model, None, T)
            programs[name] = lambda q, k, v, kernel=kernel: kernel(q, k, v, segments)
    if "cudnn" in programs:
        programs["cudnn, one document a row"] = lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, is_causal=True, implementation="cudnn"
        )
    arguments = tuple(draw(i, B, T, N, H) for i in range(3))
    for name, program in programs.items():
        function = both_ways(program, draw(3, B, T, N, H))
        yield Case(f"attention {B}x{T}x{N}x{H}", name, function, arguments, 7.0 * B * N * T * T * H)


def products(quick: bool) -> Iterator[Case]:
    size = 128 if quick else 4096
    a, b = draw(0, size, size, dtype=jnp.float32), draw(1, size, size, dtype=jnp.float32)
    half = a.astype(jnp.bfloat16), b.astype(jnp.bfloat16)
    for name, function, operands in (
        ("float32, JAX's default", jnp.matmul, (a, b)),
        ("float32, ours", lambda a, b: einsum("MK,KN->MN", a, b), (a, b)),
        ("bfloat16", lambda a, b: einsum("MK,KN->MN", a, b), half),
    ):
        exact = np.asarray(operands[0][:64], np.float64) @ np.asarray(operands[1], np.float64)
        yield Case(f"product of {size}", name, function, operands, 2.0 * size**3, exact)


def experts(quick: bool) -> Iterator[Case]:
    for R, D, F, X in [(256, 32, 64, 4)] if quick else [(16384, 1024, 2816, 8), (16384, 1024, 1408, 64)]:
        sizes = jnp.asarray(np.random.default_rng(0).multinomial(R, np.ones(X) / X), jnp.int32)
        programs: dict[str, Any] = {
            "ours": lambda x, w, sizes=sizes: matmul_grouped(x, w, sizes),
            "ragged_dot": lambda x, w, sizes=sizes: jax.lax.ragged_dot(x, w, sizes),
            "one matrix": lambda x, w: x @ w[0],
        }
        arguments = draw(0, R, D), draw(1, X, D, F)
        for name, program in programs.items():
            yield Case(f"{X} experts {D}x{F}", name, both_ways(program, draw(2, R, F)), arguments, 6.0 * R * D * F)


def measure(case: Case, seconds: float) -> Row:
    compiled = jax.jit(case.function).lower(*case.arguments).compile()
    found = jax.block_until_ready(compiled(*case.arguments))
    turns: list[float] = []
    while sum(turns) < seconds or len(turns) < 3:
        began = time.perf_counter()
        jax.block_until_ready([compiled(*case.arguments) for _ in range(5)])
        turns.append((time.perf_counter() - began) / 5)
    error = None
    if case.exact is not None:
        error = float(np.linalg.norm(np.asarray(found[:64], np.float64) - case.exact) / np.linalg.norm(case.exact))
    memory: Any = compiled.memory_analysis()
    return {
        "what": case.what, "program": case.program, "seconds": statistics.median(turns), "flops": case.flops, "error": error,
        "temporary_bytes": memory.temp_size_in_bytes, "device": jax.devices()[0].device_kind,
    }  # fmt: skip


def main(argv: list[str]) -> None:
    parts = {"attention": attention, "products": products, "experts": experts}
    flags, _ = split_flags(argv, {"out": "", "quick": "false", "what": ",".join(parts)}, __doc__ or "")
    quick, wanted = flags["quick"] == "true", flags["what"].split(",")
    if not set(wanted) <= set(parts):
        raise ConfigError(f"--what: some of {', '.join(parts)}, got {flags['what']}")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}\n")
    table = Table("kernels", ["what", "program", "ms", "TFLOP/s", "MiB beside", "error"], flags["out"])
    for name in wanted:
        for case in parts[name](quick):
            row = measure(case, 0.01 if quick else 1.0)
            table.add(row, [
                row["what"], row["program"], f"{row['seconds'] * 1e3:,.2f}", f"{row['flops'] / row['seconds'] / 1e12:,.2f}",
                f"{row['temporary_bytes'] / 2**20:,.0f}", "" if row["error"] is None else f"{row['error']:.1e}",
            ])  # fmt: skip


if __name__ == "__main__":
    run_main(main)
