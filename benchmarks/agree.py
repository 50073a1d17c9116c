"""Do the sides do the same work? From the same weights, the same losses over a few steps of training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks import ours, peer_torch

STEPS = 3
# our path -> (name in the compact model, name in Hugging Face's GPT-2); {} is the layer. Both join q, k and v.
NAMES = {
    "embed": ("embed.weight", "model.transformer.wte.weight"),
    "positions": ("positions.weight", "model.transformer.wpe.weight"),
    "norm_out/": ("norm_out.", "model.transformer.ln_f."),
    "norm_attn/": ("blocks.{}.norm_attn.", "model.transformer.h.{}.ln_1."),
    "norm_mlp/": ("blocks.{}.norm_mlp.", "model.transformer.h.{}.ln_2."),
    "attn/qkv": ("blocks.{}.qkv.", "model.transformer.h.{}.attn.c_attn."),
    "attn/out": ("blocks.{}.out.", "model.transformer.h.{}.attn.c_proj."),
    "mlp/up": ("blocks.{}.up.", "model.transformer.h.{}.mlp.c_fc."),
    "mlp/down": ("blocks.{}.down.", "model.transformer.h.{}.mlp.c_proj."),
}


def to_torch(params: Mapping[str, Any], layers: int, peer: str) -> dict[str, torch.Tensor]:
    """Our weights under a peer's names; nn.Linear holds its matrix transposed, GPT-2's own layer does not."""
    column = list(peer_torch.MODELS).index(peer)
    turn = (lambda x: x.T) if peer == "plain" else (lambda x: x)
    values: dict[str, Any] = {NAMES[name][column]: params[name] for name in ("embed", "positions")}

    def norm(ours_at: str, theirs: str) -> None:
        values.update({theirs + "weight": params[ours_at + "scale"], theirs + "bias": params[ours_at + "bias"]})

    norm("norm_out/", NAMES["norm_out/"][column])
    for layer in range(layers):
        block = f"block_{layer:02d}/"
        for name in ("norm_attn/", "norm_mlp/"):
            norm(block + name, NAMES[name][column].format(layer))
        for name in ("attn/qkv", "attn/out", "mlp/up", "mlp/down"):
            parts = [f"attn/{letter}" for letter in "qkv"] if name == "attn/qkv" else [name]
            theirs = NAMES[name][column].format(layer)
            values[theirs + "weight"] = turn(np.concatenate([params[block + part] for part in parts], axis=1))
            values[theirs + "bias"] = np.concatenate([params[f"{block}{part}_bias"] for part in parts])
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in values.items()}


def compare(spec: Mapping[str, Any]) -> dict[str, float]:
    """Returns for each peer the largest difference of a loss from ours, and `moved`: how far ours went. Needs jax and torch."""
    mine = ours.Steps({**spec, "warm": False})
    start = {path: np.array(leaf) for path, leaf in mine.state.params.items()}
    layers = mine.parts.model.config.layers
    losses = []
    for _ in range(STEPS):
        mine.state, metrics = mine.parts.train_step(mine.state, mine.batch, mine.key)
        losses.append(float(metrics["train/loss"]))
    found = {"moved": abs(losses[-1] - losses[0])}
    for peer in spec["peers"]:
        theirs = peer_torch.Steps({**spec, "peer": peer, "warm": False})
        missing = theirs.model.load_state_dict(to_torch(start, layers, peer), strict=False).missing_keys
        missing = [name for name in missing if name != "model.lm_head.weight"]  # tied
        if missing:
            raise AssertionError(f"{peer}: no weights for {', '.join(missing)}")
        found[peer] = max([abs(float(theirs.step()) - loss) for loss in losses])
    return found
