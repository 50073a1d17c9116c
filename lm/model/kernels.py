"""Which program computes attention here, and does it agree with the formula?

Five ways to the same numbers: `xla` (the plain formula, the reference), `chunked` (a piece at a time, lm/model/pieces.py),
`cudnn` (flash attention on NVIDIA GPUs), `splash` (Pallas on TPUs; interpreted elsewhere, for tests), and `auto`,
which picks one. Each honours documents, causality, sliding window, soft-cap and grouped heads, or says what it cannot do.
With a `context` axis in the mesh every device holds a slice of the queries and gathers all keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.config import ModelConfig
from lm.model.formula import attend, slot_mask
from lm.model.pieces import attend_in_pieces, piece_size, row_groups
from lm.sharding import ROWS, row_shards

# (q [B, T, N, H], k [B, T, K, H], v [B, T, K, H], segments [B, T]) -> [B, T, N, H]
Kernel = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
LONG = {"cpu": 64}  # from this row length on, `auto` never forms all scores at once; elsewhere 1024


def attend_cudnn(q_BTNH: jax.Array, k_BSKH: jax.Array, v_BSKH: jax.Array, segments_BT: jax.Array, window: int) -> Any:
    """cuDNN flash attention; the mask carries the documents, the kernel knows causality and the window."""
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=same_BTS[:, None], is_causal=True, implementation="cudnn",
        local_window_size=(window - 1, 0) if window else None,
    )  # fmt: skip


def _make_splash(heads: int, seq_len: int, shards: int, window: int, cap: float, interpret: bool) -> Any:
    """The splash kernel of one device: `heads` query heads, one of `shards` slices of the queries, all keys."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    shape = (seq_len, seq_len)
    mask = masks.LocalMask(shape, (window - 1, 0), 0, shards) if window else masks.CausalMask(shape, 0, shards)
    block = next(n for n in (512, 256, 128) if seq_len // shards % n == 0)
    sizes = splash.BlockSizes(
        block_q=block, block_kv=block, block_kv_compute=block, block_q_dkv=block, block_kv_dkv=block,
        block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block,
    )  # fmt: skip
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=shards,
        attn_logits_soft_cap=cap or None, interpret=interpret,
    )  # fmt: skip
    return jax.tree.map(np.asarray, kernel)


def attend_splash(kernel: Any, q: jax.Array, k: jax.Array, v: jax.Array, q_segments: Any, k_segments: Any) -> jax.Array:
    """Runs a splash kernel on [B, T, heads, H] arrays."""
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

    q, k, v = (x.swapaxes(1, 2) for x in (q / math.sqrt(q.shape[-1]), k, v))
    return jax.vmap(kernel)(q, k, v, SegmentIds(q_segments, k_segments)).swapaxes(1, 2)


def platform_of(mesh: Mesh | None) -> str:
    """cpu, gpu or tpu: of the mesh's devices, which need not be this machine's."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return "gpu" if platform in ("cuda", "rocm") else platform


def refusal(name: str, config: ModelConfig, mesh: Mesh | None, seq_len: int) -> str:
    """Says why a kernel cannot do what the config asks; "" when it can."""
    context, platform = 1 if mesh is None else mesh.shape["context"], platform_of(mesh)
    reasons = []
    if name != "xla" and config.dropout:
        reasons.append(f"it cannot drop attention weights (config.model.dropout={config.dropout:g})")
    if name == "cudnn":
        reasons += ["it needs an NVIDIA GPU"] * (platform != "gpu")
        reasons += ["it needs config.model.dtype='bfloat16'"] * (config.dtype != "bfloat16")
        reasons += ["it has no soft-cap (config.model.attn_softcap)"] * bool(config.attn_softcap)
        reasons += ["it cannot share a row between devices (config.mesh.context)"] * (context > 1)
        reasons += [f"it needs a head size that 8 divides, got {config.q_head_dim}"] * bool(config.q_head_dim % 8)
    if name == "splash" and seq_len % (128 * context):
        reasons.append(f"it needs config.data.seq_len divisible by {128 * context}, got {seq_len}")
    if name == "splash" and platform == "gpu":
        reasons.append("it needs a TPU")
    if name == "splash" and platform == "tpu" and config.dtype == "float32":
        reasons.append("it multiplies float32 as bfloat16 (config.model.dtype)")
    return "; ".join(reasons)


def choose(config: ModelConfig, mesh: Mesh | None, seq_len: int) -> str:
    """Resolves `model.attention`: "auto" takes the fastest kernel that can do what the config asks."""
    if config.attention != "auto":
        return config.attention
    platform = platform_of(mesh)
    fast = {"tpu": "splash", "gpu": "cudnn"}.get(platform)
    if fast and not refusal(fast, config, mesh, seq_len):
        return fast
    long = seq_len >= LONG.get(platform, 1024) or (mesh is not None and mesh.shape["context"] > 1)
    return "chunked" if long and not refusal("chunked", config, mesh, seq_len) else "xla"


def make_kernel(name: str, config: ModelConfig, mesh: Mesh | None, seq_len: int) -> Kernel | None:
    """Returns the attention of a whole batch; None for the plain formula on rows that no two devices share."""
    context = 1 if mesh is None else mesh.shape["context"]
    tensor = 1 if mesh is None else mesh.shape["tensor"]
    if name == "xla" and context == 1:
        return None
    window, cap, splash, size = config.window, config.attn_softcap, None, piece_size(seq_len, platform_of(mesh))
    if name == "splash":
        splash = _make_splash(config.heads // tensor, seq_len, context, window, cap, platform_of(mesh) != "tpu")

    def local(splash: Any, q: Any, k: Any, v: Any, q_segments: Any, k_segments: Any, first_slot: Any) -> jax.Array:
        if splash is not None:
            return attend_splash(splash, q, k, v, q_segments, k_segments)
        if name == "cudnn":
            return attend_cudnn(q, k, v, q_segments, window)
        (B, T, N, H), K = q.shape, k.shape[2]
        grouped = q.reshape(B, T, K, N // K, H)
        if name == "chunked":
            groups = row_groups(B, N, T, platform_of(mesh))
            y = attend_in_pieces(grouped, k, v, q_segments, k_segments, first_slot, window, cap, size, groups)
        else:
            y = attend(grouped, k, v, slot_mask(q_segments, k_segments, first_slot, window), cap)
        return y.reshape(q.shape)

    if mesh is None:
        return lambda q, k, v, segments: local(splash, q, k, v, segments, segments, 0)

    def shard(splash: Any, q: Any, k: Any, v: Any, segments: Any) -> jax.Array:
        if context == 1:
            return local(splash, q, k, v, segments, segments, 0)
        gather = partial(jax.lax.all_gather, axis_name="context", axis=1, tiled=True)
        first = jax.lax.axis_index("context") * q.shape[1]
        return local(splash, q, gather(k), gather(v), segments, gather(segments), first)

    whole = PartitionSpec(None, "context" if context > 1 else None)
    info = None if splash is None else splash.manual_sharding_spec(NamedSharding(mesh, whole))
    heads, rows = PartitionSpec(ROWS, "context", "tensor"), PartitionSpec(ROWS, "context")
    # check_vma off: a Pallas call does not say over which axes its result varies.
    run = jax.shard_map(shard, mesh=mesh, in_specs=(info, heads, heads, heads, rows), out_specs=heads, check_vma=False)
    return lambda q, k, v, segments: run(splash, q, k, v, segments)


def make_kernels(name: str, config: ModelConfig, mesh: Mesh | None, seq_len: int) -> tuple[Kernel, Kernel] | None:
    """Returns the attention of layers without and with the window, one of them twice where the model has but one kind."""
    made = {w: make_kernel(name, replace(config, window=w), mesh, seq_len) for w in windows(config)}
    first, last = made[min(made)], made[max(made)]
    return None if first is None or last is None else (first, last)


def windows(config: ModelConfig) -> set[int]:
    """The windows that layers of this model have; 0: all earlier tokens."""
    return {config.window if config.is_local(layer) else 0 for layer in range(config.layers)} or {0}


def compare(name: str, config: ModelConfig, mesh: Mesh | None, segments: np.ndarray) -> dict[str, float]:
    """Largest difference between a kernel and the formula in float32, relative to the formula's largest number.

    On random q, k, v and the documents of a real batch (`segments` [rows, T]); of the output and of each gradient.
    One group of heads a device is enough: heads do not mix.
    """
    tensor, rows = (1, 1) if mesh is None else (mesh.shape["tensor"], row_shards(mesh))
    group = config.heads // config.n_kv_heads
    config = replace(config, heads=group * tensor, kv_heads=tensor, head_dim=config.q_head_dim)
    T = segments.shape[1]
    kernel = make_kernel(name, config, mesh, T)
    if kernel is None:
        return {}
    segments_BT = jnp.asarray(np.resize(segments, (rows, T)))

    def spread(x: jax.Array) -> jax.Array:
        if mesh is None:
            return x
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(ROWS, "context", "tensor")))

    def run(key: jax.Array) -> dict[str, jax.Array]:
        shapes = {"q": group * tensor, "k": tensor, "v": tensor, "cotangent": group * tensor}
        draws = {
            part: spread(
                jax.random.normal(jax.random.fold_in(key, i), (rows, T, heads, config.q_head_dim), config.dtype)
            )
            for i, (part, heads) in enumerate(shapes.items())
        }

        def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            mask = slot_mask(segments_BT, segments_BT, 0, config.window)
            y = attend(q.reshape(rows, T, tensor, group, -1), k, v, mask, config.attn_softcap)
            return y.reshape(q.shape)

        def outputs(function: Any, dtype: Any) -> list[jax.Array]:
            q, k, v, cotangent = (x.astype(dtype) for x in draws.values())
            y, pull = jax.vjp(function, q, k, v)
            return [y, *pull(cotangent)]

        theirs = outputs(lambda q, k, v: kernel(q, k, v, segments_BT), config.dtype)
        ours = outputs(plain, jnp.float32)
        parts = ("output", "gradient of q", "gradient of k", "gradient of v")
        return {
            part: jnp.max(jnp.abs(a.astype(jnp.float32) - b)) / jnp.max(jnp.abs(b))
            for part, a, b in zip(parts, theirs, ours)
        }

    whole = None if mesh is None else NamedSharding(mesh, PartitionSpec())
    return {part: float(x) for part, x in jax.jit(run, out_shardings=whole)(jax.random.key(0)).items()}
