"""How do positions turn queries and keys? RoPE (arXiv:2104.09864), and its stretchings for longer texts.

A pair of dimensions turns by position x frequency. `linear` slows all pairs (arXiv:2306.15595), `dynamic` raises theta with
the length of the document (NTK-aware), `yarn` (arXiv:2309.00071) and `llama3` slow the pairs that turn too seldom in the
pretraining's length, `longrope` (arXiv:2402.13753) has a factor for each pair, one set for short and one for long documents.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import ModelConfig, RopeScaling

Rope = tuple[jax.Array, jax.Array]  # cos and sin [B, T, R/2]; R dimensions of a head are rotated


def rotated_dims(config: ModelConfig) -> int:
    return int(config.q_head_dim * config.rope_fraction)


def rope_angles(positions_BT: jax.Array, segments_BT: jax.Array, config: ModelConfig, local: bool = False) -> Rope:
    """Returns cos and sin [B, T, R/2] in float32; `local`: of the layers with a window."""
    scaling, theta, dims = config.rope_scaling, config.rope_theta, rotated_dims(config)
    if local and config.rope_local_theta:
        scaling, theta = RopeScaling(), config.rope_local_theta
    powers = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    freqs: Any = (1 / np.float32(theta) ** powers)[None, None]
    if scaling.kind in ("dynamic", "longrope"):
        long_BT1 = document_lengths(positions_BT, segments_BT)[..., None].astype(jnp.float32)
        long_BT1 = jnp.maximum(long_BT1, scaling.original_len)
        if scaling.kind == "dynamic":
            growth = scaling.factor * long_BT1 / scaling.original_len - (scaling.factor - 1)
            freqs = 1 / (theta * growth ** (dims / (dims - 2))) ** powers[None, None]
        else:
            short, long = (freqs / np.asarray(f, np.float32) for f in (scaling.short_factor, scaling.long_factor))
            freqs = jnp.where(long_BT1 > scaling.original_len, long, short)
    elif scaling.kind != "none":
        freqs = freqs * slowed(freqs, scaling, theta, dims)
    angles = positions_BT[..., None].astype(jnp.float32) * freqs
    return jnp.cos(angles) * scaling.attention_factor, jnp.sin(angles) * scaling.attention_factor


def slowed(freqs: np.ndarray, scaling: RopeScaling, theta: float, dims: int) -> np.ndarray:
    """What to multiply each pair's frequency by: 1 where it stays, 1 / factor where it is stretched, between in between."""
    if scaling.kind == "linear":
        return np.full_like(freqs, 1 / scaling.factor)
    if scaling.kind == "llama3":
        turns = scaling.original_len * freqs / (2 * math.pi)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
    else:

        def edge(turns: float) -> float:  # the dimension that turns so often in original_len positions
            return dims * math.log(scaling.original_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = edge(scaling.beta_fast), edge(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dims - 1)
        high += 0.001 * (low == high)
        kept = 1 - np.clip((np.arange(dims // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    return (kept + (1 - kept) / scaling.factor).astype(np.float32)


def document_lengths(positions_BT: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """For each token, how far its own document reaches in this row: the highest position + 1. Other documents do not count."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jnp.where(same_BTT, positions_BT[:, None, :], 0).max(-1) + 1


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates the first R dimensions of [B, T, heads, H]; dimension i is paired with i + R/2, as published weights are."""
    rest = x[..., 2 * cos.shape[-1] :]
    first, second = jnp.split(x[..., : 2 * cos.shape[-1]].astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None, :], sin[:, :, None, :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([part.astype(x.dtype) for part in turned] + [rest] * (rest.shape[-1] > 0), axis=-1)
