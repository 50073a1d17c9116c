"""What does training only the top layers, or only adapters, save, of time and of memory, beside transformers?

All layers, the top half and the top tenth train (with the last norm), or LoRA of rank 8 on all linear layers; ours with scanned
layers, transformers' GPT-2 of the same shape with requires_grad=False below, and with peft's LoRA. All take turns. `of full` is a step's time as a share of the same side's full
one; theory is (2 + 4 (1 - f)) / 6 with the bottom fraction f frozen: two parts forward, two each for the gradient of weights
and of what comes in (LoRA: 4 / 6, its own products left out). FLOPs are XLA's count of the program. Memory: `XLA` what the compiled step holds on the device, `peak`
the most that the process held (on a GPU: that the device held for it). Needs no TensorFlow; without torch, ours only.

    python benchmarks/freeze.py [--out=FILE.jsonl] [--quick] [--case=20x384/256x8] [--rounds=5] [--seconds=5]
                                [--dtype=float32|bfloat16] [--unrolled] [--sides=ours,transformers]

example: python benchmarks/freeze.py --case=12x768/512x4 --sides=ours --out=freeze.jsonl
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import make_config
from benchmarks.turns import (
    Row,
    Side,
    Table,
    alternate,
    describe_machine,
    measure_once,
    median_row,
    say,
    warn_of_others,
)
from data_pipeline.schema import ConfigError, run_main, split_flags
from lm.config import adapters_only, last_layers

CASES = {"cpu": "20x384/256x8", "gpu": "20x1024/1024x16"}
TREATMENTS = {"all": 1.0, "top half": 0.5, "top tenth": 0.1}  # share of the layers that train
LORA, RANK = "LoRA", 8


def theory(share: float) -> float:
    """A step's arithmetic as a share of a full one, when this share of the layers trains, at the top."""
    return (2 + 4 * share) / 6


def start(side: str, treatment: str, case: str, dtype: str, scan: bool) -> Side:
    layers = make_config(case).model.layers
    adapters = treatment == LORA
    top = layers if adapters else max(round(TREATMENTS[treatment] * layers), 1)
    say(f"{case}: starting {side}, {treatment}")
    spec: dict[str, Any] = {"case": case, "dtype": dtype, "lora_rank": RANK if adapters else 0}
    if side == "ours":
        table = ((".*", True),) if top == layers else last_layers(top, layers)
        table = adapters_only() if adapters else table
        target, spec = "ours:Steps", {**spec, "train": table, "scan": scan, "plan": True}
    else:
        target, spec = "peer_torch:Steps", {**spec, "peer": "huggingface", "train_top": 0 if top == layers else top}
    child = Side(side, target, spec)
    child.facts.update(
        treatment=treatment, theory=4 / 6 if adapters else theory(top / layers), layers=layers, trained_layers=top
    )
    return child


def measure(sides: list[str], case: str, dtype: str, scan: bool, rounds: int, seconds: float) -> list[Row]:
    """Returns a row for each side and treatment; the first of a side is the full one."""
    children = []
    try:
        for side in sides:
            for treatment in (*TREATMENTS, LORA):
                if treatment == LORA and side == "transformers" and not importlib.util.find_spec("peft"):
                    say("left out: transformers, LoRA; peft is not installed")
                    continue
                children.append(start(side, treatment, case, dtype, scan))
        alternate(children, rounds, seconds)
        rows = [median_row(child) for child in children]
    finally:
        for child in children:
            child.close()
    for row in rows:
        full = next(other for other in rows if other["side"] == row["side"])
        row.update(case=case, dtype=dtype, scan=scan, time_share=row["seconds"] / full["seconds"])
        row["flops_share"] = row["flops"] / full["flops"] if "flops" in row else None
    return rows


def cells(row: Row) -> list[str]:
    def mib(size: int | None) -> str:
        return f"{size / 2**20:,.0f}" if size else ""

    return [
        row["side"], row["treatment"], f"{row['seconds'] * 1e3:,.1f}", f"{row['spread']:.0%}",
        f"{row['time_share']:.3f}", f"{row['theory']:.3f}", f"{row['flops_share']:.3f}" if row["flops_share"] else "",
        mib(row.get("xla_bytes")), mib(row.get("device_bytes") or row["rss_bytes"]), f"{row['others_cores']:.2f}",
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "case": "", "rounds": "5", "seconds": "5", "dtype": "",
                "unrolled": "false", "sides": "ours,transformers"}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    rounds, seconds = int(flags["rounds"]), float(flags["seconds"])
    if flags["quick"] == "true":
        rounds, seconds, flags["case"] = 1, 0.2, flags["case"] or "4x64/32x4"
    sides = flags["sides"].split(",")
    if not set(sides) <= {"ours", "transformers"}:
        raise ConfigError(f"--sides: ours, transformers or both, got {flags['sides']}")
    if flags["case"] and make_config(flags["case"]).model.position != "learned" and "transformers" in sides:
        raise ConfigError(f"{flags['case']}: transformers' side is a GPT-2; add --sides=ours")
    if "transformers" in sides and not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        say("left out: transformers; it or torch is not installed")
        sides.remove("transformers")
    where = measure_once("jax", "ours:device", {})
    on_gpu = where["backend"] == "gpu"
    case = flags["case"] or CASES["gpu" if on_gpu else "cpu"]
    dtype = flags["dtype"] or ("bfloat16" if on_gpu else "float32")
    rows = measure(sides, case, dtype, flags["unrolled"] == "false", rounds, seconds)
    machine = describe_machine()
    place = where["device"] if on_gpu else machine["machine"]
    print(f"{case}, {dtype}, {place}, {rounds} rounds of {seconds:g} s, load {machine['load']:.1f}\n")
    columns = ["side", "trained", "ms a step", "spread", "of full", "theory", "FLOPs", "MiB, XLA", "MiB, peak",
               "cores of others"]  # fmt: skip
    table = Table("freeze", columns, flags["out"])
    for row in rows:
        table.add({**row, **where}, cells(row))
    warn_of_others(rows)


if __name__ == "__main__":
    run_main(main)
