"""What does each device send, and hold, when more devices take part?

Weak scaling, so the work a device does stays the same, on 1 to 8 virtual CPU devices: rows grow with the devices, or for
`context` the places of a row. `MiB sent` is what the collectives of the compiled step send from one device (lm/collectives.py);
`theory` is what a ring must send, times (n - 1) / n: for `data` every gradient twice, for `fsdp` weights and gradients three times in
all, for `tensor` four activations a layer twice, for `context` keys, values and their gradients once and all gradients twice.
Then TPU slices that are not here, one row a chip, weights sharded over all chips: needs libtpu
(pip install -e ".[tpu-plan]"), else left out. Virtual devices share the cores, so no time is measured. Needs no TensorFlow.

    python benchmarks/scaling.py [--out=FILE.jsonl] [--quick] [--devices=1,2,4,8] [--case=8x512/128x4]
                                 [--topologies=v5e:4x4,v5e:8x8,v5e:16x16] [--model=llama-3-8b] [--seq_len=4096]

example: python benchmarks/scaling.py --devices=1,8 --topologies=v5e:4x4 --model=llama-3.2-1b --out=scaling.jsonl
"""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import make_config
from benchmarks.turns import Row, Table, describe_machine, measure_once, say
from data_pipeline.schema import ConfigError, run_main, split_flags
from lm.aot import ENVIRONMENT, check_topology

AXES = ("data", "fsdp", "tensor", "context")
MIB, GIB = 2**20, 2**30


def grow(case: str, axis: str, devices: int) -> str:
    """The case for that many times the work: more rows, or longer ones."""
    model, seq_len, rows = re.split(r"/|x(?=\d+$)", case)
    return (
        f"{model}/{int(seq_len) * devices}x{rows}" if axis == "context" else f"{model}/{seq_len}x{int(rows) * devices}"
    )


def theory(case: str, axis: str, devices: int, params: int) -> float:
    """Bytes that one device sends a step in a ring, in float32, when nothing is sent in vain."""
    config = make_config(case)
    places = config.model.layers * config.data.batch_size * config.data.seq_len
    arrays = {
        "data": 2 * params,
        "fsdp": 3 * params,
        "tensor": 2 * 4 * places * config.model.dim,
        "context": 2 * params + 2 * 2 * places * config.model.n_kv_heads * config.model.q_head_dim,
    }[axis]
    return 4 * arrays * (devices - 1) / devices


def sent(row: Row) -> float:
    return math.fsum(kind["bytes"] for kind in (row["collectives"] or {}).values())


def kinds(row: Row) -> str:
    if row["collectives"] is None:
        return "XLA cannot print the program"
    return ", ".join(f"{c['count']:,.0f} {kind}" for kind, c in row["collectives"].items())


def on_cpu(case: str, axis: str, devices: int) -> Row:
    """Compiles the step for virtual CPU devices along one axis of the mesh."""
    grown = grow(case, axis, devices)
    say(f"{devices} virtual devices, {axis}: {grown}")
    spec = {"case": grown, "mesh": {"data": 1, axis: devices}}
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    row = measure_once(f"{axis} {devices}", "ours:plan_step", spec, flags)
    needed = theory(grown, axis, devices, row["params"])
    return {**row, "case": grown, "axis": axis, "bytes_sent": sent(row), "bytes_theory": needed}


def on_tpu(model: str, seq_len: int, topology: str) -> Row:
    """Compiles the step for a slice, one row a chip."""
    chips = math.prod(map(int, topology.partition(":")[2].split("x")))
    case = f"{model}/{seq_len}x{chips}"
    say(f"{topology}: {case}")
    spec = {"case": case, "dtype": "bfloat16", "scan": True, "model": {"remat": "full"}, "mesh": {"data": 1, "fsdp": -1},
            "topology": topology}  # fmt: skip
    row = measure_once(topology, "ours:plan_step", spec, {**ENVIRONMENT, "JAX_PLATFORMS": "cpu"})
    return {**row, "case": case, "topology": topology, "bytes_sent": sent(row)}


def main(argv: list[str]) -> None:
    defaults = {"out": "", "quick": "false", "devices": "1,2,4,8", "case": "8x512/128x4",
                "topologies": "v5e:4x4,v5e:8x8,v5e:16x16", "model": "llama-3-8b", "seq_len": "4096"}  # fmt: skip
    flags, _ = split_flags(argv, defaults, __doc__ or "")
    if flags["quick"] == "true":
        flags.update(devices="1,2", case="2x64/32x4", topologies="")
    counts, slices = ([item for item in flags[name].split(",") if item] for name in ("devices", "topologies"))
    make_config(flags["case"])
    make_config(f"{flags['model']}/{flags['seq_len']}x1")
    if slices and importlib.util.find_spec("libtpu") is None:
        say("TPU slices are left out: libtpu is not installed (pip install -e '.[tpu-plan]')")
        slices = []
    for name in slices:
        check_topology(name)
    if not all(count.isdigit() and int(count) > 0 for count in counts):
        raise ConfigError(f"--devices: numbers above 0 with commas between, got {flags['devices']}")
    print(f"float32, {flags['case']} a device, virtual CPU devices, jax {describe_machine()['versions']['jax']}\n")
    table = Table("scaling", ["axis", "devices", "case", "MiB sent", "theory", "collectives", "MiB held"], flags["out"])
    for axis in AXES:
        for count in counts:
            row = on_cpu(flags["case"], axis, int(count))
            table.add(row, [
                axis, count, row["case"], f"{row['bytes_sent'] / MIB:,.1f}", f"{row['bytes_theory'] / MIB:,.1f}",
                kinds(row), f"{row['memory']['total'] / MIB:,.0f}",
            ])  # fmt: skip
    if not slices:
        return
    print(
        f"\n{flags['model']}, one row of {flags['seq_len']} a chip, bfloat16, layers recomputed, fsdp over all chips\n"
    )
    columns = ["slice", "chips", "GiB held a chip", "of", "GiB sent a chip", "collectives", "compile, s"]
    table = Table("scaling", columns, flags["out"])
    for name in slices:
        row = on_tpu(flags["model"], int(flags["seq_len"]), name)
        held = f"{row['memory']['total'] / GIB:.2f}" + (" does not fit" if row["refused"] else "")
        table.add(row, [
            name, str(row["devices"]), held, f"{row['limit_bytes'] / GIB:.2f}", f"{row['bytes_sent'] / GIB:.2f}",
            kinds(row), f"{row['compile_seconds']:.0f}",
        ])  # fmt: skip


if __name__ == "__main__":
    run_main(main)
