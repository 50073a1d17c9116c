"""How does a GGUF file stretch rotary positions, in the words of a config.json?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lm.hf.gguf_metadata import Metadata

Config = dict[str, Any]
ReadFactors = Callable[[str], np.ndarray]


def whole_rope(meta: Metadata, config: Config, read_factors: ReadFactors) -> Config:
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    if (rotated := meta.count("rope.dimension_count", size)) != size:
        raise meta.refuse(f"rotates {rotated} of the {size} dimensions of a head, which this family does not")
    return config | {"rope_scaling": find_scaling(meta, config, read_factors)}


def find_scaling(meta: Metadata, config: Config, read_factors: ReadFactors) -> Config | None:
    """Returns rope_scaling; None: the positions are as they are."""
    kind = "none"
    if f"{meta.arch}.rope.scaling.type" in meta.header.fields:
        meta.read.add("rope.scaling.type")
        kind = meta.text(f"{meta.arch}.rope.scaling.type")
    factor = float(meta.get("rope.scaling.factor", meta.get("rope.scale_linear", 1.0)) or 1.0)
    original = meta.get("rope.scaling.original_context_length", 0)
    attention = meta.get("rope.scaling.attn_factor", 1.0)
    if meta.has("rope_freqs"):
        if kind != "none":
            raise meta.refuse(f"has rope_freqs.weight and rope.scaling.type {kind!r} at once")
        return _llama3(meta, config, read_factors("rope_freqs.weight"), original)
    if kind == "linear" or (kind == "none" and factor != 1):
        if attention != 1:
            raise meta.refuse("scales positions and attention at once")
        return {"rope_type": "linear", "factor": factor} if factor != 1 else None
    if kind == "yarn":
        return _yarn(meta, factor, original, attention)
    if kind != "none" or attention != 1:
        raise meta.refuse(f"rope.scaling.type {kind!r} with attn_factor {attention} is not known for {meta.arch}")
    return None


def _yarn(meta: Metadata, factor: float, original: int, attention: float) -> Config:
    if meta.get("rope.scaling.yarn_ext_factor", 1.0) != 1 or meta.get("rope.scaling.yarn_log_multiplier", 0.0):
        raise meta.refuse("a variant of yarn (yarn_ext_factor, yarn_log_multiplier) that is not known here")
    if not original or factor < 1:
        raise meta.refuse(f"yarn with factor {factor} and original_context_length {original}")
    scaling: Config = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    for name in ("beta_fast", "beta_slow"):
        if (value := meta.get(f"rope.scaling.yarn_{name}", None)) is not None:
            scaling[name] = float(value)
    given = meta.get("rope.scaling.yarn_attn_factor", None)  # as the converter copies it from attention_factor
    if given is not None or attention != 1:
        scaling["attention_factor"] = (given if given is not None else 0.1 * math.log(factor) + 1) * attention
    return scaling


def _llama3(meta: Metadata, config: Config, factors: np.ndarray, original: int) -> Config | None:
    """Finds the four numbers of Llama 3's rope scaling, of which GGUF has only the resulting divisors."""
    size = config["head_dim"]
    if factors.shape != (size // 2,) or not np.isfinite(factors).all() or factors.min() < 1:
        raise meta.refuse("rope_freqs.weight does not hold a divisor for each frequency")
    if factors.max() == 1:
        return None
    inverse = 1.0 / config["rope_theta"] ** (np.arange(0, size, 2) / size) / (2 * math.pi)  # 1 / wavelength
    factor = float(f"{factors.max():.6g}")
    tries = [(1.0, 4.0, original or 8192)]
    inside = (factors > 1) & (factors < factors.max())
    if inside.sum() >= 2:  # smooth = slope / wavelength + shift, and only the ratios of the three numbers count
        smooth = (1 / factors[inside] - 1 / factor) / (1 - 1 / factor)
        slope, shift = np.polyfit(inverse[inside], smooth, 1)
        if shift < 0 < slope:
            tries.append((1.0, round(1 - 1 / shift, 3), round(-slope / shift)))
    for low, high, length in tries:
        smooth = np.clip((length * inverse - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-4):
            return {
                "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }  # fmt: skip
    raise meta.refuse("rope_freqs.weight follows no rope scaling that is known here")
