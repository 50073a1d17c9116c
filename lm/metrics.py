"""How much arithmetic is a step, how fast could this device do it, and how good is a loss in other units?"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.params import block_name

# Dense bfloat16 TFLOP/s of one device, from the makers' data sheets, by a part of jax's device_kind.
PEAK_TFLOPS = {
    "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5p": 459, "TPU v5": 459, "TPU v6": 918, "TPU7x": 1153,
    "H200": 989, "H100": 989, "A100": 312, "B200": 2250, "L4": 121, "V100": 125, "T4": 65,
}  # fmt: skip


def peak_flops(stated_tflops: float, device: Any = None, measure: bool = True) -> tuple[float, str]:
    """Returns FLOP/s of one device and where the figure is from: config, the chip's table, or a measured matmul.

    `device` may be one that is not here (default: the first that is); (0, why) where nothing says and nothing may be run.
    """
    if stated_tflops:
        return stated_tflops * 1e12, "config.train.peak_tflops"
    kind = (device or jax.local_devices()[0]).device_kind
    for name, tflops in PEAK_TFLOPS.items():
        if name in kind:
            return tflops * 1e12, f"{kind} data sheet, bfloat16"
    if not measure:
        return 0.0, f"no figure for {kind}: set config.train.peak_tflops"
    size = 1024
    x = jnp.ones((size, size), jnp.float32)
    matmul = jax.jit(lambda a: a @ a)
    matmul(x).block_until_ready()
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        matmul(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best, f"{kind}, best of five {size}^3 float32 matmuls"


def depth_of(path: str, layers: int) -> int:
    """Order in which a leaf acts: embeddings 0, block i at i + 1, norm_out and head after all blocks."""
    if path.startswith("block_"):
        return int(path.split("/")[0].removeprefix("block_")) + 1
    return 0 if path in ("embed", "positions") else layers + 1


def token_flops(
    config: ModelConfig, shapes: Mapping[str, Sequence[int]], trained: Mapping[str, bool], seq_len: int
) -> dict[str, float]:
    """FLOPs per token of one training step, by per-layer path, plus `block_xx/attn/scores`.

    A matrix of n numbers costs 2n forward, 2n for its own gradient if it is trained, and 2n to pass the gradient down
    if anything at its depth or below is trained: 6n when all is (arXiv:2001.08361 section 2.1). Scores: 4 N H per key,
    over half the row (causal) or the window. Norms, softmax and the embedding look-up are left out.
    """
    lowest = min((depth_of(p, config.layers) for p, on in trained.items() if on), default=config.layers + 2)
    flops: dict[str, float] = {}
    for path, shape in shapes.items():
        tied = path == "embed" and config.tie_embeddings
        if len(shape) < 2 or path == "positions" or (path == "embed" and not tied):
            flops[path] = 0.0
            continue
        depth = config.layers + 1 if tied else depth_of(path, config.layers)
        flops[path] = math.prod(shape) * (2.0 + 2.0 * trained[path] + 2.0 * (lowest <= depth))
    keys = min(config.window, seq_len / 2) if config.window else seq_len / 2
    forward = 4 * config.heads * config.q_head_dim * keys
    for layer in range(config.layers):
        flops[f"{block_name(layer)}/attn/scores"] = forward * (3 if lowest <= layer + 1 else 1)
    return flops


def bits(nats: float) -> float:
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a non-finite float becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
