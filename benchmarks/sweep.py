"""What do trials of a sweep gain by training side by side in one program?

The same trials (other rates and decays, same batches) take a step each, side by side in one vmapped program, or one after the other
in the program that they share, or each in a program of its own, as so many launches would. `ms` is a step of all trials, the median over
rounds in which the sides take turns; `compiling` what must be compiled for all of them; `whole` all trials of `--steps` steps with
compiling, `of launches` that as a share of programs of their own. Needs no TensorFlow. A case is LAYERSxWIDTH/SEQ_LENxROWS.

    python benchmarks/sweep.py [--out=FILE.jsonl] [--quick] [--cases=1x16/16x4,2x64/32x8] [--trials=8] [--steps=200]
                               [--rounds=5] [--seconds=3]

example: python benchmarks/sweep.py --cases=2x32/32x4 --steps=100 --out=sweep.jsonl
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import make_config
from benchmarks.turns import Row, Side, Table, alternate, describe_machine, median_row, say, warn_of_others
from data_pipeline.schema import run_main, split_flags

CASES = "1x16/16x4,2x32/32x4,2x64/32x8,4x128/64x8"
KEYS = ("optim.peak_lr", "optim.weight_decay")
WAYS = {"side by side": "one program for all at once", "in turn": "one program, one after the other"}


class Trials:
    """All trials of a spec {case, trials, together}; `run` takes so many steps of each."""

    def __init__(self, spec: Mapping[str, Any]):
        import jax

        from lm.memory import keep_memory
        from lm.plan import random_batch
        from lm.sharding import put_batch
        from lm.sweep.program import Program, with_dials

        keep_memory()
        config, trials = make_config(spec["case"]), spec["trials"]
        count = trials if spec["together"] else 1
        vocab_size = config.model.vocab_size
        self.jax, self.program = jax, Program(config, KEYS, vocab_size, count, count > 1, say)
        configs = [with_dials(config, {KEYS[0]: 1e-3 * (n + 1), KEYS[1]: 0.1 + n / 100}) for n in range(trials)]
        groups = [configs] if count > 1 else [[one] for one in configs]
        self.states = [self.program.start(group, "") for group in groups]
        self.arguments = [self.program.arguments(group) for group in groups]
        self.batch = put_batch(random_batch(config, vocab_size), self.program.parts.mesh, config.data.batch_size)
        began = time.perf_counter()
        self.run(1)
        self.compile_seconds = time.perf_counter() - began

    def run(self, steps: int) -> None:
        for at, (keys, dials) in enumerate(self.arguments):
            for _ in range(steps):
                self.states[at], metrics = self.program.step(self.states[at], keys, dials, self.batch)
            self.jax.block_until_ready((self.states[at], metrics))

    def facts(self) -> Row:
        return {"compile_seconds": self.compile_seconds, "trained": self.program.trained_params}


def measure(case: str, trials: int, steps: int, rounds: int, seconds: float) -> list[Row]:
    """Returns a row a way; that of launches follows from the trials in turn."""
    children = []
    try:
        for way in WAYS:
            say(f"{case}: starting {way}")
            spec = {"case": case, "trials": trials, "together": way == "side by side"}
            children.append(Side(way, "sweep:Trials", spec))
        alternate(children, rounds, seconds)
        rows = [median_row(child) for child in children]
    finally:
        for child in children:
            child.close()
    rows.append({**rows[1], "side": "launches", "compile_seconds": trials * rows[1]["compile_seconds"]})
    for row in rows:
        row.update(case=case, trials=trials, whole_seconds=row["compile_seconds"] + steps * row["seconds"])
    for row in rows:
        row["of_turn"] = row["seconds"] / rows[1]["seconds"]
        row["of_launches"] = row["whole_seconds"] / rows[2]["whole_seconds"]
    return rows


def cells(row: Row) -> list[str]:
    return [
        row["case"], f"{row['trained']:,}", row["side"], f"{row['seconds'] * 1e3:,.1f}", f"{row['spread']:.0%}",
        f"{row['of_turn']:.2f}", f"{row['compile_seconds']:.1f}", f"{row['whole_seconds']:.1f}", f"{row['of_launches']:.2f}",
        f"{row['others_cores']:.2f}",
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "cases": "", "trials": "8", "steps": "200", "rounds": "5", "seconds": "3"}
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    rounds, seconds = int(flags["rounds"]), float(flags["seconds"])
    if flags["quick"] == "true":
        rounds, seconds, flags["cases"] = 1, 0.2, flags["cases"] or "1x16/16x4"
    cases = (flags["cases"] or CASES).split(",")
    for case in cases:
        make_config(case)
    machine = describe_machine()
    trials, steps = int(flags["trials"]), int(flags["steps"])
    print(
        f"{machine['machine']}, {trials} trials of {steps} steps, {rounds} rounds of {seconds:g} s, load {machine['load']:.1f}\n"
    )
    columns = ["case", "trained", "trials", "ms", "spread", "of in turn", "compiling, s", "whole, s", "of launches", "cores of others"]  # fmt: skip
    table, found = Table("sweep", columns, flags["out"]), []
    for case in cases:
        rows = measure(case, trials, steps, rounds, seconds)
        for row in rows:
            table.add(row, cells(row))
        found += rows
    warn_of_others(found)


if __name__ == "__main__":
    run_main(main)
