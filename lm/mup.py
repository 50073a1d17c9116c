"""How do rates found on a narrow model hold on a wide one? Maximal-update parametrisation (muP, arXiv:2203.03466).

With m = dim / base_dim, after Table 8 (the form in which embedding and head may be tied), at m = 1 what is standard:

                                      start (std)    times     AdamW, Lion   SGD    Muon
    matrices in blocks                1/sqrt(m)      1         1/m           1      1
    router; LoRA's A (wide to few)    1/m; as ever   1         1/m           1/m    1/sqrt(m)
    head, or the tied embedding       1              1/m       1             m      1
    embedding, norms, biases, LoRA's B  1            1         1             m      1

Scores are divided by the head size, not by its root, as far as heads grow (`base_head_dim`). Muon's updates keep their
effect on activations by themselves. All gradients fall as 1/m, so Adam's eps does too. Decay (rate x decay x parameter)
is as on the narrow model. Heads x head size and mlp_dim are taken to grow as dim does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import jax.numpy as jnp

from lm.config import ModelConfig
from lm.params import Params

HIDDEN = re.compile(r"block_[\d-]+/(attn/(q|k|v|out)|mlp/(up|gate|down))")
NARROWING = re.compile(r"block_[\d-]+/.*(router|_lora_a)")


def rate_factor(path: str, optimizer: str, m: float) -> float:
    """By how much the updates of a parameter are multiplied; `m`: ModelConfig.width_multiplier.

    >>> [rate_factor(path, "adamw", 4.0) for path in ("embed", "block_00/attn/q", "block_00/attn/q_bias")]
    [1.0, 0.25, 1.0]
    """
    hidden, narrowing = HIDDEN.fullmatch(path), NARROWING.fullmatch(path)
    if optimizer == "sgd":
        return 1 / m if narrowing else 1.0 if hidden else m
    if optimizer == "muon":
        return m**-0.5 if narrowing else 1.0
    return 1 / m if hidden or narrowing else 1.0


def to_standard(params: Mapping[str, jnp.ndarray], config: ModelConfig) -> tuple[Params, ModelConfig]:
    """Returns the same function in standard parametrisation: what is multiplied stands in the weights, as float32.

    `params` must be without adapters and codes. The head's multiplier goes into the last norm, whose output nothing else
    reads: so a tied embedding stays as it is.
    """
    plain = replace(config, base_dim=0, base_head_dim=0)
    on_queries = math.sqrt(plain.score_scale / config.score_scale)
    on_embed = math.sqrt((config.base_dim or config.dim) / config.dim) if config.embed_scale else 1.0
    on_logits = 1 / config.width_multiplier / (on_embed if config.head_path == "embed" else 1.0)
    normed = config.qk_norm or config.qk_norm_joint
    queries = re.compile(r"block_[\d-]+/attn/" + ("q_scale" if normed else "q(_bias)?"))

    def change(path: str, leaf: jnp.ndarray) -> jnp.ndarray:
        last = path.startswith("norm_out/")
        factor = on_logits if last else on_embed if path == "embed" else on_queries if queries.fullmatch(path) else 1.0
        if factor == 1:
            return leaf
        less = 1 if config.norm_offset and path.endswith("scale") else 0
        return (leaf.astype(jnp.float32) + less) * factor - less

    return {path: change(path, leaf) for path, leaf in params.items()}, plain
