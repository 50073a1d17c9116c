"""Does our classifier compute what transformers computes from the same folder, text by text and padded?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.config import UserError
from lm.model.transformer import Model
from lm.params import Params

TOLERANCE = 1e-4  # of a logit in float32; of the largest logit where that is above 1
TEXTS, LONGEST = 20, 40


def verify_classes(
    folder: Path, names: tuple[str, ...], model: Model, params: Params, log: Callable[[str], None]
) -> dict[str, Any]:
    """Compares logits of texts of random ids, alone and padded to one length, with transformers.

    Returns family, max_abs_diff, labels_equal (names of the classes and the likeliest of each text), ok.
    """
    import torch
    import transformers

    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", local_files_only=True, trust_remote_code=False
    ).eval()
    pad, config = theirs.config.pad_token_id, model.config
    if pad is None:
        raise UserError(f"{folder}: config.json has no pad_token_id, without which transformers reads no padded texts")
    longest = min(LONGEST, config.rope_scaling.original_len or LONGEST)
    longest = min(longest, config.max_len) if config.position == "learned" else longest
    rng = np.random.default_rng(0)
    sizes = np.linspace(1, longest, TEXTS).round().astype(int).tolist()
    ids = np.delete(np.arange(config.vocab_size), pad)
    rows = np.full((TEXTS, longest), pad, np.int32)
    for row, size in zip(rows, sizes):
        row[:size] = rng.choice(ids, size)
    there = np.arange(longest) < np.array(sizes)[:, None]

    def ask(row: np.ndarray, mask: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return theirs(input_ids=torch.tensor(row).long(), attention_mask=torch.tensor(mask).long()).logits.numpy()

    padded = ask(rows, there)
    alone = np.concatenate([ask(row[None, :n], np.ones((1, n))) for row, n in zip(rows, sizes)])
    plain = Model(config, model.runs)
    positions = np.where(there, np.arange(longest), 0)
    logits = jax.jit(plain.apply)(params, jnp.asarray(rows), jnp.asarray(positions), jnp.asarray(there, jnp.int32))
    ours = np.asarray(logits)[np.arange(TEXTS), np.array(sizes) - 1]
    worst = float(max(np.abs(ours - padded).max(), np.abs(ours - alone).max()))
    labels = [theirs.config.id2label[number] for number in range(config.classes)]
    same = tuple(labels) == names and bool((ours.argmax(1) == alone.argmax(1)).all())
    log(f"{TEXTS} texts, alone and padded: max difference {worst:.1e}; classes {'equal' if same else 'DIFFER'}")
    ok = worst <= TOLERANCE * max(1.0, float(np.abs(alone).max())) and same
    return {"family": theirs.config.model_type, "max_abs_diff": worst, "labels_equal": same, "ok": ok}
