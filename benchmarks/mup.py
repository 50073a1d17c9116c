"""Does the best rate of a narrow model stay the best of a wide one? Standard parametrisation beside muP (lm/mup.py).

    python benchmarks/mup.py --path=FILE [--widths=64,256] [--rates=1e-3,2e-3,...] [--steps=150] [--out=FILE.json]

Characters of one text, two layers, AdamW with a warm-up and a cosine; each width at each rate, from the same seed. One
program a model: the rate is an argument of it. Prints the validation loss of each, and the best rate of a row.

example: python benchmarks/mup.py --path=input.txt --widths=64,128,256
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from configs import base, models
from data_pipeline.batch import open_data
from data_pipeline.schema import from_mapping, run_main, split_flags
from lm.config import Config, ConfigError
from lm.evaluate import evaluate, make_eval_step
from lm.parts import make_parts, make_step_of
from lm.sharding import local_rows, put_batch
from lm.start import start_state

HEAD = 16  # heads grow in number


def make_config(path: str, width: int, base_dim: int, steps: int) -> Config:
    c: Any = base.get_config()
    c.data.path, c.data.seq_len, c.data.batch_size = path, 32, 8
    c.data.clean.rules, c.data.clean.exact_dedup = (), False
    c.data.split.by, c.data.split.validation, c.data.split.test = "position", 0.1, 0.0
    c.data.tokenizer.kind = "char"
    models.use_gpt2_blocks(c.model)
    c.model.update({"layers": 2, "dim": width, "heads": width // HEAD, "base_dim": base_dim, "tie_embeddings": False})
    c.optim.warmup_steps, c.optim.weight_decay = 10, 0.0
    c.train.steps = steps
    return from_mapping(Config, c)


def losses_by_rate(config: Config, rates: list[float]) -> dict[float, float]:
    """Trains at each rate; returns the validation losses over 256 rows, in nats a character."""
    data = open_data(config.data)
    parts = make_parts(config, data.tokenizer.vocab_size, 1.0)
    step = jax.jit(
        lambda state, batch, key, peak: make_step_of(config, peak)(parts.model, parts.treatment)[0](state, batch, key)
    )
    eval_step = make_eval_step(parts.model, data.tokenizer.token_bytes(), 0)
    rows, key, found = local_rows(parts.mesh, config.data.batch_size), jax.random.key(0), {}
    for rate in rates:
        state, batches = start_state(parts), data.train_batches(0, rows, None)
        for _ in range(config.train.steps):
            batch = put_batch(next(batches), parts.mesh, config.data.batch_size)
            state, _ = step(state, batch, key, jnp.float32(rate))
        batches.close()
        held_out = data.eval_batches("validation", 128, local_rows(parts.mesh, 128))
        vocab = parts.model.config.vocab_size
        result = evaluate(eval_step, state.params, held_out, parts.mesh, 128, vocab, 256, lambda: False)
        found[rate] = float("nan") if result is None else float(result["loss"])
        print(f"  {config.model.dim} base {config.model.base_dim} rate {rate:g}: {found[rate]:.3f}", file=sys.stderr)
    return found


def main(argv: list[str]) -> None:
    flags = {"path": "", "widths": "64,256", "rates": "1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2", "steps": "150", "out": ""}
    flags, extra = split_flags(argv, flags, __doc__ or "")
    if extra or not flags["path"]:
        raise ConfigError("name a text: python benchmarks/mup.py --path=input.txt; see --help")
    widths, rates = [int(w) for w in flags["widths"].split(",")], [float(r) for r in flags["rates"].split(",")]
    began, rows = time.perf_counter(), []
    for base_dim in (0, widths[0]):
        for width in widths:
            if base_dim == width:
                continue  # the standard one, bit for bit
            config = make_config(flags["path"], width, base_dim, int(flags["steps"]))
            losses = losses_by_rate(config, rates)
            rows.append(
                {"width": width, "base_dim": base_dim, "losses": losses, "best": min(losses, key=losses.__getitem__)}
            )
    print("| | " + " | ".join(f"{rate:g}" for rate in rates) + " | best rate |")
    print("|---" * (len(rates) + 2) + "|")
    for row in rows:
        name = f"{row['width']}" + (f", muP from {row['base_dim']}" if row["base_dim"] else "")
        cells = [f"**{loss:.3f}**" if rate == row["best"] else f"{loss:.3f}" for rate, loss in row["losses"].items()]
        print(f"| {name} | {' | '.join(cells)} | {row['best']:g} |")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    if flags["out"]:
        Path(flags["out"]).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
