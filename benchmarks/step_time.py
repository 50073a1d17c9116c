"""How long does a training step take, beside the same model in PyTorch?

Ours is the step that a run takes (configs/models.py: use_gpt2_blocks). Beside it: the same decoder in compact PyTorch, as
nanoGPT writes it, eager and compiled, and Hugging Face's GPT-2 or Llama; all with AdamW and the gradient clipped at 1.0,
from child processes that take turns. First a check that the peers do the same work: the same losses from the same weights.
`ms` is the median over rounds, `cores of others` what other programs took meanwhile (above 0.1 the rows mislead); `x ours` above 1 means that ours is faster; `MFU` counts 6N FLOPs a token, N the numbers in
matrices; `start` is from the start of the process to the end of its first step. Needs no TensorFlow; without torch (and
transformers) the peers are left out. A case is LAYERSxWIDTH/SEQ_LENxROWS, or NAME/SEQ_LENxROWS of configs/models.py.

    python benchmarks/step_time.py [--out=FILE.jsonl] [--quick] [--cases=4x128/64x12,gpt2/256x4] [--rounds=5] [--seconds=3]
                                   [--dtype=float32|bfloat16] [--scan] [--sides=ours,plain,compiled,huggingface]

example: python benchmarks/step_time.py --cases=6x384/256x16 --sides=ours,plain --out=step_time.jsonl
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import make_config
from benchmarks.turns import (
    Row,
    Side,
    SideFailed,
    Table,
    alternate,
    describe_machine,
    measure_once,
    median_row,
    say,
    warn_of_others,
)
from data_pipeline.schema import ConfigError, UserError, run_main, split_flags

CASES = {
    "cpu": "4x128/64x12,6x384/256x16,gpt2/256x4",
    "gpu": "4x128/64x12,6x384/256x64,gpt2/1024x32,llama-3.2-1b/2048x4",
}
SIDES = {
    "ours": ("ours:Steps", {}),
    "plain": ("peer_torch:Steps", {"peer": "plain"}),
    "compiled": ("peer_torch:Steps", {"peer": "plain", "compiled": True}),
    "huggingface": ("peer_torch:Steps", {"peer": "huggingface"}),
}
LABELS = {
    "ours": "ours", "plain": "PyTorch, eager", "compiled": "PyTorch, compiled", "huggingface": "transformers",
}  # fmt: skip
TOLERANCE = 1e-5  # nats, float32 on the CPU; measured 5e-7


def available(names: list[str]) -> list[str]:
    """Leaves out peers whose packages are not installed, with a line."""
    unknown = [name for name in names if name not in SIDES]
    if unknown:
        raise ConfigError(f"--sides: no {', '.join(unknown)}; there are {', '.join(SIDES)}")
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    out = {n for n in names if n != "ours" and ("torch" in missing or (n == "huggingface" and missing))}
    if out:
        say(f"left out: {', '.join(sorted(out))}; not installed: {', '.join(missing)}")
    return [name for name in names if name not in out]


def check_same_work(sides: list[str]) -> None:
    """Raises UserError when a peer does not train as we do."""
    peers = sorted({SIDES[name][1]["peer"] for name in sides if name != "ours"})
    if not peers or "ours" not in sides:
        return
    on_cpu = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    found = measure_once("the check", "agree:compare", {"case": "2x64/32x4", "peers": peers}, on_cpu)
    moved = found.pop("moved")
    for peer, difference in found.items():
        if not difference <= TOLERANCE < moved:
            raise UserError(
                f"{peer} does other work: its losses differ from ours by {difference:.1e} (ours moved {moved:.1e})"
            )
        say(f"{peer}: from the same weights, the losses of three steps differ from ours by {difference:.0e}")


def start(name: str, case: str, dtype: str, scan: bool, cache: str) -> Side | None:
    """Starts one side; a peer that cannot run this case is left out, with a line."""
    target, spec = SIDES[name]
    say(f"{case}: starting {LABELS[name]}")
    try:
        return Side(
            name, target, {"case": case, "dtype": dtype, "scan": scan, **spec}, {"TORCHINDUCTOR_CACHE_DIR": cache}
        )
    except SideFailed as error:
        if name == "ours":
            raise
        say(f"{case}: left out: {error}")
        return None


def measure(case: str, sides: list[str], dtype: str, scan: bool, rounds: int, seconds: float) -> list[Row]:
    """Returns a row for each side of a case."""
    config = make_config(case)
    if config.model.position != "learned":  # the compact model is a GPT-2
        sides = [name for name in sides if name not in ("plain", "compiled")]
    with tempfile.TemporaryDirectory() as cache:
        children = [child for name in sides if (child := start(name, case, dtype, scan, cache))]
        try:
            alternate(children, rounds, seconds)
            rows = [median_row(child) for child in children]
            if len({row["params"] for row in rows}) > 1:
                sizes = ", ".join(f"{row['side']} {row['params']:,}" for row in rows)
                raise UserError(f"{case}: the sides have not the same number of parameters: {sizes}")
        finally:
            for child in children:
                child.close()
    tokens, first = config.data.seq_len * config.data.batch_size, rows[0]
    for row in rows:
        row.update(case=case, dtype=dtype, scan=scan, tokens_per_sec=tokens / row["seconds"])
        row["to_first"] = row["seconds"] / first["seconds"]
        if "matrix_numbers" in first:
            row["mfu"] = 6 * first["matrix_numbers"] * row["tokens_per_sec"] / first["peak_flops"]
    return rows


def cells(row: Row) -> list[str]:
    return [
        row["case"], LABELS[row["side"]], f"{row['seconds'] * 1e3:,.1f}", f"{row['spread']:.0%}",
        f"{row['tokens_per_sec']:,.0f}", f"{row['to_first']:.2f}", f"{row['mfu']:.3f}" if "mfu" in row else "",
        f"{row['start_seconds']:.1f}", f"{row['others_cores']:.2f}",
    ]  # fmt: skip


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "cases": "", "rounds": "5", "seconds": "3", "dtype": "", "scan": "false",
                "sides": ",".join(SIDES)}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    rounds, seconds = int(flags["rounds"]), float(flags["seconds"])
    if flags["quick"] == "true":
        rounds, seconds, flags["cases"] = 1, 0.2, flags["cases"] or "2x64/32x4"
    for case in filter(None, flags["cases"].split(",")):
        make_config(case)
    sides = available(flags["sides"].split(","))
    where: dict[str, Any] = measure_once("jax", "ours:device", {})
    on_gpu = where["backend"] == "gpu"
    cases = (flags["cases"] or CASES["gpu" if on_gpu else "cpu"]).split(",")
    dtype = flags["dtype"] or ("bfloat16" if on_gpu else "float32")
    check_same_work(sides)
    machine = describe_machine()
    place = where["device"] if on_gpu else machine["machine"]
    print(f"{place}, {dtype}, {rounds} rounds of {seconds:g} s, load {machine['load']:.1f}\n")
    columns = ["case", "side", "ms a step", "spread", "tokens/s", "x ours", "MFU", "start, s", "cores of others"]
    table = Table("step_time", columns, flags["out"])
    rows = []
    for case in cases:
        for row in measure(case, sides, dtype, flags["scan"] == "true", rounds, seconds):
            table.add({**row, **where}, cells(row))
            rows.append(row)
    warn_of_others(rows)


if __name__ == "__main__":
    run_main(main)
