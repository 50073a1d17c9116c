"""Does compiling the train step take longer for a deeper model?

Seconds to trace and lower the real train step, and to compile it, scanned for 12 to 96 layers and unrolled for 12 and 24: each
in a fresh process without a compilation cache, depths alternating, medians over rounds. `x first` compares the sum with the
least deep model of the same kind; so does `by CPU time`, which other work on the machine disturbs less. Nothing is run and no weight is made. Needs no TensorFlow.

    python benchmarks/compile_time.py [--out=FILE.jsonl] [--quick] [--scanned=12,24,48,96] [--unrolled=12,24] [--rounds=3]
                                      [--width=256] [--batch=128x8] [--dtype=float32|bfloat16]

example: python benchmarks/compile_time.py --scanned=12,96 --unrolled= --width=768 --batch=1024x8 --out=compile.jsonl
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import make_config
from benchmarks.turns import Row, Table, describe_machine, measure_once, say
from data_pipeline.schema import run_main, split_flags


def measure(depths: list[tuple[bool, int]], shape: tuple[str, str], dtype: str, rounds: int) -> list[Row]:
    """Returns a row for each (scanned, layers)."""
    found: dict[tuple[bool, int], list[Row]] = {depth: [] for depth in depths}
    for number in range(rounds):
        for scan, layers in depths:
            case = f"{layers}x{shape[0]}/{shape[1]}"
            say(f"round {number + 1}: {case}, {'scanned' if scan else 'unrolled'}")
            found[scan, layers].append(
                measure_once(case, "ours:compile_once", {"case": case, "dtype": dtype, "scan": scan})
            )
    rows: list[Row] = []
    for (scan, layers), runs in found.items():
        sums = [run["lower_seconds"] + run["compile_seconds"] for run in runs]
        row: Row = {
            "scan": scan, "layers": layers, "case": f"{layers}x{shape[0]}/{shape[1]}", "dtype": dtype, "rounds": rounds,
            **{key: statistics.median(run[key] for run in runs) for key in ("lower_seconds", "compile_seconds", "cpu_seconds")},
            "seconds": statistics.median(sums), "spread": max(sums) / min(sums) - 1,
        }  # fmt: skip
        first = next((other for other in rows if other["scan"] == scan), row)
        row["to_first"] = row["seconds"] / first["seconds"]
        row["cpu_to_first"] = row["cpu_seconds"] / first["cpu_seconds"]
        rows.append(row)
    return rows


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "scanned": "12,24,48,96", "unrolled": "12,24", "rounds": "3",
                "width": "256", "batch": "128x8", "dtype": "float32"}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    rounds = int(flags["rounds"])
    if flags["quick"] == "true":
        rounds, flags["width"], flags["batch"], flags["scanned"], flags["unrolled"] = 1, "64", "32x4", "2,4", "2"
    depths = [(kind == "scanned", int(n)) for kind in ("scanned", "unrolled") for n in flags[kind].split(",") if n]
    for _, layers in depths:
        make_config(f"{layers}x{flags['width']}/{flags['batch']}")
    rows = measure(depths, (flags["width"], flags["batch"]), flags["dtype"], rounds)
    machine = describe_machine()
    print(f"width {flags['width']}, batch {flags['batch']}, {flags['dtype']}, {machine['machine']}, {rounds} rounds, "
          f"load {machine['load']:.1f}\n")  # fmt: skip
    table = Table(
        "compile_time",
        ["layers", "", "trace and lower, s", "compile, s", "sum", "spread", "x first", "by CPU time"],
        flags["out"],
    )
    for row in rows:
        table.add(row, [
            str(row["layers"]), "scanned" if row["scan"] else "unrolled", f"{row['lower_seconds']:.2f}",
            f"{row['compile_seconds']:.2f}", f"{row['seconds']:.2f}", f"{row['spread']:.0%}", f"{row['to_first']:.2f}", f"{row['cpu_to_first']:.2f}",
        ])  # fmt: skip


if __name__ == "__main__":
    run_main(main)
