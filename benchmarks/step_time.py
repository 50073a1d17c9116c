"""How long does a training step take, trained whole and with the lower layers frozen? `make bench`

Prints one JSON line a row and a Markdown table. Rows alternate (A B A B) in one process, so that a noisy machine
disturbs them alike; `time` is the median over rounds, `share` is to the full step of the same size. Needs no TensorFlow.

    python benchmarks/step_time.py [--sizes=4x128/64x12,8x128/256x8] [--rounds=5] [--steps=5] [--dtype=float32]
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp

from data_pipeline.config import DataConfig
from data_pipeline.schema import run_main, split_flags
from lm.build import start_state
from lm.config import Config, ModelConfig, OptimConfig, TrainConfig, last_layers
from lm.parts import abstract_batch, make_parts
from lm.receipt import xla_flops


def make_case(size: str, train: tuple[tuple[str, bool], ...], dtype: str, scan: bool) -> dict[str, Any]:
    """Builds one step; `size` is LAYERSxDIM/SEQ_LENxROWS."""
    model, data = (tuple(map(int, part.split("x"))) for part in size.split("/"))
    config = Config(
        data=DataConfig(path="-", seq_len=data[0], batch_size=data[1]),
        model=ModelConfig(layers=model[0], dim=model[1], heads=max(model[1] // 64, 2), dtype=dtype, scan=scan),
        optim=OptimConfig(train=train),
        train=TrainConfig(steps=1000),
    )
    parts = make_parts(config, 256, 1e-3)
    key = jax.random.key(0)
    tokens = jax.random.randint(key, (data[1], data[0]), 0, 256)
    ones = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(data[0])[None], tokens.shape)
    batch = {"tokens": tokens, "targets": tokens, "segments": ones, "positions": positions, "weights": ones * 1.0}
    flops = xla_flops(parts.make_step, parts.model, parts.treatment, abstract_batch(config))
    state = start_state(parts)
    state, metrics = parts.train_step(state, batch, key)
    jax.block_until_ready(metrics)
    return {"step": parts.train_step, "state": state, "batch": batch, "key": key, "flops": flops, "times": []}


def measure(case: dict[str, Any], steps: int) -> None:
    began = time.perf_counter()
    for _ in range(steps):
        case["state"], metrics = case["step"](case["state"], case["batch"], case["key"])
    jax.block_until_ready(metrics)
    case["times"].append((time.perf_counter() - began) / steps)


def main(argv: list[str]) -> None:
    defaults = {"sizes": "4x128/64x12,8x128/256x8", "rounds": "5", "steps": "5", "dtype": "float32", "scan": "false"}
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    device = jax.devices()[0].device_kind
    print(
        f"| size | trained | ms a step | spread | tokens/s | share of time | share of FLOPs |   ({device}, {flags['dtype']})"
    )
    print("|---|---|---|---|---|---|---|")
    for size in flags["sizes"].split(","):
        layers = int(size.split("x")[0])
        tables = {"all": ((".*", True),), "top quarter": last_layers(max(layers // 4, 1), layers)}
        cases = {
            name: make_case(size, table, flags["dtype"], flags["scan"] == "true") for name, table in tables.items()
        }
        for _ in range(int(flags["rounds"])):
            for case in cases.values():
                measure(case, int(flags["steps"]))
        full = cases["all"]
        for name, case in cases.items():
            median = statistics.median(case["times"])
            seq_len, rows = map(int, size.split("/")[1].split("x"))
            row = {
                "size": size, "trained": name, "seconds": median, "spread": max(case["times"]) / min(case["times"]) - 1,
                "tokens_per_sec": seq_len * rows / median, "time_share": median / statistics.median(full["times"]),
                "flops_share": case["flops"] / full["flops"], "device": device, "jax": jax.__version__,
            }  # fmt: skip
            print(json.dumps(row), file=sys.stderr)
            shares = f"{row['time_share']:.2f} | {row['flops_share']:.2f}"
            print(
                f"| {size} | {name} | {median * 1e3:.1f} | {row['spread']:.0%} | {row['tokens_per_sec']:,.0f} | {shares} |"
            )


if __name__ == "__main__":
    run_main(main)
