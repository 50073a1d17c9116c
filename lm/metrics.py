"""How much arithmetic is a step, how fast could this device do it, and how good is a loss in other units?"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lm.config import ModelConfig
from lm.params import block_name

# Dense TFLOP/s of one device in bfloat16 and in float32, from the makers' data sheets, by a part of jax's device_kind. TPUs
# multiply bfloat16 alone: float32 takes six products of parts (XLA's BF16_BF16_F32_X6).
PEAK_TFLOPS = {
    **{name: (tflops, tflops / 6) for name, tflops in {
        "TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5p": 459, "TPU v5": 459, "TPU v6": 918, "TPU7x": 1153,
    }.items()},
    "H200": (989, 67), "H100": (989, 67), "A100": (312, 19.5), "B200": (2250, 80), "L4": (121, 30), "V100": (125, 15.7), "T4": (65, 8.1),
}  # fmt: skip


def peak_flops(
    stated_tflops: float, device: Any = None, measure: bool = True, dtype: str = "bfloat16"
) -> tuple[float, str]:
    """Returns FLOP/s of one device in `dtype` and where the figure is from: config, the chip's table, or a measured matmul.

    `device` may be one that is not here (default: the first that is); (0, why) where nothing says and nothing may be run.
    """
    if stated_tflops:
        return stated_tflops * 1e12, "config.train.peak_tflops"
    kind = (device or jax.local_devices()[0]).device_kind
    for name, tflops in PEAK_TFLOPS.items():
        if name in kind:
            return tflops[dtype == "float32"] * 1e12, f"{kind} data sheet, {dtype}"
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


# Where in a block a parameter acts; what stands at one place acts side by side.
BESIDE = "(_bias|_lora_[ab]|_dora_scale)?"
IN_BLOCK = (
    r"norm_attn/.*", r"attn/[qkv]" + BESIDE, r"attn/[qk]_scale", r"attn/out" + BESIDE, r"norm_attn_out/.*",
    r"norm_mlp/.*", r"mlp/(up|gate)" + BESIDE, r"mlp/down" + BESIDE, r"mlp/router", r"norm_mlp_out/.*",
)  # fmt: skip


def stage_of(path: str, layers: int) -> int:
    """When a parameter acts in the forward: embeddings 0, then block by block, norm_out and the head last."""
    block, _, rest = path.partition("/")
    if block.startswith("block_"):
        place = next(i for i, pattern in enumerate(IN_BLOCK, 1) if re.fullmatch(pattern, rest))
        return int(block.removeprefix("block_")) * len(IN_BLOCK) + place
    return {"embed": 0, "positions": 0, "norm_out": layers * len(IN_BLOCK) + 1}.get(block, layers * len(IN_BLOCK) + 2)


def branch_of(path: str, config: ModelConfig) -> str:
    """Where the two branches of a block stand side by side: which one a parameter is in; else ""."""
    found = re.match(r"(block_\d+)/(?:norm_)?(attn|mlp)", path)
    return f"{found[1]}/{found[2]}" if found and config.parallel else ""


def _other_branch(branch: str) -> str:
    block, _, name = branch.partition("/")
    return f"{block}/{'mlp' if name == 'attn' else 'attn'}" if branch else "none"


def mean_keys(seq_len: int, window: int) -> float:
    """How many keys a query sees on average in a row that is one document: (T + 1) / 2 without a window.

    >>> mean_keys(4, 0), mean_keys(4, 2)
    (2.5, 1.75)
    """
    window = min(window or seq_len, seq_len)
    return window - window * (window - 1) / (2 * seq_len)


def active_size(config: ModelConfig, path: str, shape: Sequence[int]) -> float:
    """How many numbers of a single layer's parameter a token meets: of experts' matrices, those it chooses."""
    chosen = config.experts > 0 and re.fullmatch(r".*mlp/(up|gate|down)", path) is not None
    return math.prod(shape) * (config.experts_per_token / config.experts if chosen else 1)


def token_flops(
    config: ModelConfig, shapes: Mapping[str, Sequence[int]], trained: Mapping[str, bool], seq_len: int
) -> dict[str, float]:
    """FLOPs per token of one training step, by per-layer path, plus `block_xx/attn/scores`.

    A matrix of n numbers costs 2n forward, 2n for its own gradient if it is trained, and 2n to pass the gradient down
    if anything that acts before it is trained: 6n when all is (arXiv:2001.08361 section 2.1). Of experts' matrices n is what
    a token chooses. Scores are two products
    forward and up to four backward, 2 N H each per key (`mean_keys`). Norms, softmax and the embedding look-up are left
    out, DoRA's norms too (a product of A and B a step, whatever the tokens), and what `remat` computes twice: this is what
    the model needs, not what the program does.
    """
    lowest: dict[str, float] = {}  # stage of the first trained leaf, by branch
    for path, on in trained.items():
        if on:
            branch = branch_of(path, config)
            lowest[branch] = min(lowest.get(branch, math.inf), stage_of(path, config.layers))

    def has_trained_before(path: str, acts_as: str = "") -> bool:
        stage, other = stage_of(acts_as or path, config.layers), _other_branch(branch_of(path, config))
        return any(first < stage for branch, first in lowest.items() if branch != other)

    flops: dict[str, float] = {}
    for path, shape in shapes.items():
        tied = path == "embed" and config.head_path == "embed"
        if len(shape) < 2 or path == "positions" or (path == "embed" and not tied):
            flops[path] = 0.0
            continue
        reads_as = path.replace("router", "up")  # it reads what experts read, and acts on what they made of it
        below = has_trained_before(path, "head" if tied else reads_as)
        below = below or (path.endswith("_lora_b") and trained[path[:-1] + "a"])
        flops[path] = active_size(config, path, shape) * (2.0 + 2.0 * trained[path] + 2.0 * below)
    for layer in range(config.layers):
        attn = f"{block_name(layer)}/attn"
        window = config.window if config.is_local(layer) else 0
        product = 2 * config.heads * config.q_head_dim * mean_keys(seq_len, window)
        below = has_trained_before(f"{attn}/q")
        ends = ("", "_bias", "_scale", "_lora_a", "_lora_b", "_dora_scale")
        q, k, v = (below or any(trained.get(f"{attn}/{x}{end}", False) for end in ends) for x in "qkv")
        flops[f"{attn}/scores"] = product * (2 + v + (q or k) + q + k)  # P = QK, PV; dV, dP, dQ, dK
    return flops


def bits(nats: float) -> float:
    return nats / math.log(2)


def perplexity(nats: float) -> float:
    return math.exp(min(nats, 700.0))


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a non-finite float becomes None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
