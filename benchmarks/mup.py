"""Does the best rate of a narrow model stay the best of a wide one? Standard parametrisation beside muP (lm/mup.py).

Characters of one text, two layers, AdamW with a warm-up and a cosine; each width at each rate, from the same seed. One
program a model: the rate is an argument of it. Prints the validation loss of each, and the best rate of a row. --quick: a text of ours,
narrow models, few steps.

    python benchmarks/mup.py [--out=FILE.jsonl] [--quick] --path=FILE [--widths=64,256] [--rates=1e-3,2e-3,...] [--steps=150]

example: python benchmarks/mup.py --path=input.txt --widths=64,128,256
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from benchmarks.turns import Table
from configs import base, models
from data_pipeline.batch import open_data
from data_pipeline.schema import from_mapping, run_main, split_flags
from lm.config import Config, ConfigError
from lm.evaluate import evaluate, make_eval_step
from lm.parts import make_parts, make_step_of
from lm.sharding import local_rows, put_batch
from lm.start import start_state

ROOT = Path(__file__).resolve().parent.parent
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
        result = evaluate(eval_step, state.params, held_out, parts.mesh, 128, parts.model.config, 256)
        found[rate] = float("nan") if result is None else float(result["loss"])
        print(f"  {config.model.dim} base {config.model.base_dim} rate {rate:g}: {found[rate]:.3f}", file=sys.stderr)
    return found


def main(argv: list[str]) -> None:
    flags = {"path": "", "widths": "64,256", "rates": "1e-3,2e-3,4e-3,8e-3,1.6e-2,3.2e-2", "steps": "150"}
    flags, extra = split_flags(argv, {**flags, "out": "", "quick": "false"}, __doc__ or "")
    if flags["quick"] == "true":
        path = flags["path"] or str(ROOT / "docs/learning-rate.md")
        flags |= {"path": path, "widths": "16,32", "rates": "1e-3,1e-2", "steps": "3"}
    if extra or not flags["path"]:
        raise ConfigError("name a text: python benchmarks/mup.py --path=input.txt; see --help")
    widths, rates = [int(w) for w in flags["widths"].split(",")], [float(r) for r in flags["rates"].split(",")]
    began, table = time.perf_counter(), Table("mup", ["width", *(f"{r:g}" for r in rates), "best rate"], flags["out"])
    for base_dim in (0, widths[0]):
        for width in widths:
            if base_dim == width:
                continue  # the standard one, bit for bit
            losses = losses_by_rate(make_config(flags["path"], width, base_dim, int(flags["steps"])), rates)
            best = min(losses, key=losses.__getitem__)
            cells = [f"**{loss:.3f}**" if rate == best else f"{loss:.3f}" for rate, loss in losses.items()]
            row = {"width": width, "base_dim": base_dim, "losses": losses, "best": best}
            table.add(row, [f"{width}{f', muP from {base_dim}' * bool(base_dim)}", *cells, f"{best:g}"])
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    run_main(main)
