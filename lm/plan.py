"""What will a run need, before it runs? Memory a device, FLOPs, time, disk; and what to change when it does not fit.

The real sharded step is compiled, for the devices here or for a TPU slice that is not (`lm/aot.py`), and XLA is asked.
"""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lm import aot
from lm.batch import BATCH_KEYS
from lm.checkpoint import state_bytes
from lm.collectives import count_collectives
from lm.config import Config, ConfigError
from lm.logger import duration
from lm.metrics import peak_flops
from lm.params import layer_paths
from lm.parts import Parts, abstract_batch, lower_step, make_parts, needed_flops
from lm.phases import add_phases, lengths, make_phases
from lm.receipt import Receipt, format_receipt, make_receipt
from lm.sharding import local_rows, put_batch, row_shards
from lm.start import start_state

Log = Callable[[str], None]
Plan = dict[str, Any]
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
GIB = 2**30


@dataclass(frozen=True)
class Program:
    """A compiled step, and what XLA says of it."""

    memory: dict[str, int]  # bytes a device: arguments, temporaries, output (beside donated arguments), total
    seconds: float  # to compile
    collectives: dict[str, dict[str, float]] | None  # None: XLA could not print the program
    refused: str = ""  # XLA's words, when the program does not fit the device


def compile_step(parts: Parts) -> Program:
    """Compiles the run's step; a program that its device cannot hold is an answer too, not an error."""
    lowered = lower_step(parts)
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        text, held = " ".join(str(error).split()), shard_bytes(parts.state)
        found = re.search(r"\(([\d.]+)([KMGT])\) exceeds|Used ([\d.]+)([KMGT]) of", text)
        size, unit = (float(found[1] or found[3]), found[2] or found[4]) if found else (math.nan, "G")
        used = int(size * UNITS[unit]) if found else held
        temporaries = used if found and found[1] else max(used - held, 0)  # one wording names temporaries alone
        memory = {"arguments": held, "temporaries": temporaries, "output": 0, "total": held + temporaries}
        return Program(memory, time.perf_counter() - began, {}, text[:300])
    seconds = time.perf_counter() - began
    size = compiled.memory_analysis()
    output = max(size.output_size_in_bytes - size.alias_size_in_bytes, 0)
    memory = {
        "arguments": size.argument_size_in_bytes, "temporaries": size.temp_size_in_bytes, "output": output,
        "total": size.argument_size_in_bytes + size.temp_size_in_bytes + output,
    }  # fmt: skip
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError:  # XLA cannot print some programs for v5p (jaxlib 0.10.2)
        return Program(memory, seconds, None)
    return Program(memory, seconds, count_collectives(text))


def is_out_of_memory(error: BaseException) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def shard_bytes(tree: Any) -> int:
    """Bytes that one device holds of ShapeDtypeStructs with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves if x.sharding is not None)


def random_batch(config: Config, vocab_size: int) -> dict[str, np.ndarray]:
    """Random ids in one document a row; targets are random too, of a classifier too at every place."""
    rng, shape = np.random.default_rng(0), (config.data.batch_size, config.data.seq_len)
    tokens, targets = (
        rng.integers(0, n, shape, dtype=np.int32) for n in (vocab_size, config.model.classes or vocab_size)
    )
    ones = np.ones(shape, np.int32)
    places = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return dict(zip(BATCH_KEYS, (tokens, targets, ones.astype(np.float32), ones, places)))


def time_steps(parts: Parts, batch: Mapping[str, Any] | None, steps: int = 3) -> tuple[float, float]:
    """Runs the step on random weights; returns seconds of the first, compiling included, and the median of the others.

    Without a `batch` of real rows, on random ids.
    """
    config = parts.config
    batch = random_batch(config, parts.model.config.vocab_size) if batch is None else batch
    start, stop = local_rows(parts.mesh, config.data.batch_size)
    batch = {name: array[start:stop] for name, array in batch.items()}
    arrays, key = put_batch(batch, parts.mesh, config.data.batch_size), jax.random.key(0)
    state, times = start_state(parts), []
    jax.block_until_ready(state)
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, metrics = parts.train_step(state, arrays, key)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - began)
    return times[0], statistics.median(times[1:])


def variants(config: Config, devices: int) -> list[tuple[str, Config]]:
    """What could be changed to save memory, each on top of the ones before: (the flags to add, the config)."""
    found, flags = [], ""

    def add(text: str, changed: Config) -> None:
        nonlocal config, flags
        flags, config = f"{flags} {text}".strip(), changed
        found.append((flags, config))

    if any(not on for _, on in config.optim.train) and config.optim.frozen_dtype == "float32":
        add(
            "--config.optim.frozen_dtype=bfloat16",
            replace(config, optim=replace(config.optim, frozen_dtype="bfloat16")),
        )
    whole = config.mesh.tensor == 1 and config.mesh.context == 1 and config.mesh.fsdp not in (-1, devices)
    if devices > 1 and whole and config.model.dim % devices == 0:
        add("--config.mesh.data=1 --config.mesh.fsdp=-1", replace(config, mesh=replace(config.mesh, data=1, fsdp=-1)))
    if config.model.remat != "full":
        add("--config.model.remat=full", replace(config, model=replace(config.model, remat="full")))
    if not config.model.scan and config.model.layers >= 8:  # unrolled, the backward may keep more alive at once
        add("--config.model.scan=true", replace(config, model=replace(config.model, scan=True)))
    shards = devices // max(config.mesh.tensor, 1) // max(config.mesh.context, 1)
    rows = config.data.batch_size // config.train.micro_batches
    for parts in (2, 4, 8, 16, 32):
        if rows % (parts * shards) == 0:
            n = config.train.micro_batches * parts
            add_to = replace(config, train=replace(config.train, micro_batches=n))
            found.append((f"{flags} --config.train.micro_batches={n}".strip(), add_to))
    return found


def advise(
    config: Config, vocab_size: int, peak_lr: float, limit: int, log: Log, devices: list[Any] | None = None
) -> list[Plan]:
    """Compiles what `variants` offers until one fits in `limit` bytes; returns each with the memory it would take."""
    rows: list[Plan] = []
    for flags, changed in variants(config, len(devices or jax.devices())):
        try:
            total = compile_step(make_parts(changed, vocab_size, peak_lr, devices)).memory["total"]
        except ConfigError:
            continue
        rows.append({"flags": flags, "total": total, "fits": total <= limit})
        log(f"  {flags}: {total / GIB:.2f} GiB a device{', fits' if total <= limit else ''}")
        if total <= limit:
            break
    return rows


def describe_shortage(error: BaseException, parts: Parts) -> str:
    """What a run that ran out of memory should be told: XLA's words, what the step needs, and what would lower it."""
    words = " ".join(str(error).split())[:160]
    try:
        devices = list(parts.mesh.devices.flat)
        total = compile_step(parts).memory["total"]
        rows = advise(
            parts.config, parts.model.config.vocab_size, parts.peak_lr, int(0.8 * total), lambda line: None, devices
        )
        wins = "; ".join(f"{row['flags']}: {row['total'] / GIB:.2f} GiB" for row in rows if row["total"] < total)
        return f"{words}. The step takes {total / GIB:.2f} GiB a device. Try {wins or 'more devices or a shorter data.seq_len'}"
    except jax.errors.JaxRuntimeError:  # not even room to compile
        return f"{words}. See what would fit with --plan"


def make_plan(
    config: Config, vocab_size: int, peak_lr: float, log: Log, *, topology: str = "", data: Any = None,
    host_bytes: int | None = None, batch: Mapping[str, Any] | None = None,
) -> tuple[Plan, Receipt]:  # fmt: skip
    """Returns the plan as JSON values, and the freeze receipt. `data`, an opened one, tells how many epochs there are."""
    devices = aot.topology_devices(topology) if topology else jax.devices()
    phases = make_phases(config, vocab_size, peak_lr, devices)
    parts = phases[max(phases)]  # which takes most memory
    state = parts.state
    log(f"compiling the step for {len(devices)} x {devices[0].device_kind}")
    program = compile_step(parts)
    log(f"compiled in {program.seconds:.1f} s")
    receipt = add_phases(make_receipt(
        config, parts.model, parts.treatment, state.params, state.opt_state, parts.make_step, abstract_batch(config),
        hashes=False,
    ), phases)  # fmt: skip
    limit = aot.memory_limit(devices[0])
    total = program.memory["total"]
    fits = not program.refused and (limit is None or total <= limit)
    trained = {p: leaf for p, leaf in state.params.items() if parts.treatment.trained[layer_paths(p)[0]]}
    weights, gradients = shard_bytes(state.params), shard_bytes(trained)
    per_token, steps_of = needed_flops(parts), lengths(phases, config.train.steps)
    places = config.data.batch_size * config.data.seq_len
    peak, source = peak_flops(config.train.peak_tflops, devices[0], not topology, config.model.dtype)
    rows = data.summary()["rows"]["train"] if data is not None else 0
    plan: Plan = {
        "devices": len(devices),
        "device": devices[0].device_kind,
        "topology": topology or None,
        "mesh": dict(parts.mesh.shape),
        "rows_per_device": config.data.batch_size // config.train.micro_batches / row_shards(parts.mesh),
        "attention": parts.attention,
        "trained_params": receipt["trained_params"],
        "frozen_params": receipt["frozen_params"],
        "optimizer_numbers": receipt["optimizer_numbers"],
        "flops_per_step": receipt["flops_per_step"],
        "flops_per_step_if_all_trained": receipt["flops_per_step_if_all_trained"],
        "model_flops_per_step": per_token * places,
        "hbm_bytes_per_device": program.memory,
        "weights_bytes": weights,
        "moments_bytes": shard_bytes(state.opt_state),
        "gradients_bytes": gradients,
        "activations_bytes": max(program.memory["temporaries"] - gradients, 0),
        "limit_bytes": limit,
        "fits": fits,
        "refused": program.refused or None,
        "compile_seconds": round(program.seconds, 2),
        "collectives": program.collectives,
        "checkpoint_bytes": state_bytes(state),
        "checkpoints_kept": config.train.keep_last + 1,
        "host_bytes": host_bytes,
        "steps": config.train.steps,
        "tokens_per_step": places,
        "tokens": places * config.train.steps,
        "epochs": places * config.train.steps / (rows * config.data.seq_len) if rows else None,
        "peak_flops": peak * len(devices),
        "peak_source": source,
        "seconds_per_step": None,
        "seconds_of_run": None,
        "advice": [],
    }
    if fits and not topology:
        log("timing three steps on random weights")
        try:
            plan["first_step_seconds"], seconds = time_steps(parts, batch)
            plan["seconds_per_step"] = seconds
            earlier = {first: time_steps(each, batch)[1] for first, each in phases.items() if each is not parts}
            plan["seconds_of_run"] = sum(steps_of[first] * s for first, s in (earlier | {max(phases): seconds}).items())
        except jax.errors.JaxRuntimeError as error:
            if not is_out_of_memory(error):
                raise
            plan["fits"], plan["refused"] = False, " ".join(str(error).split())[:300]
    if not plan["fits"]:
        log("it does not fit; what would:")
        plan["advice"] = advise(config, vocab_size, peak_lr, limit or total, log, devices)
    seconds = plan["seconds_per_step"]
    plan["mfu"] = per_token * places / seconds / plan["peak_flops"] if seconds and peak else None
    plan["least_seconds_per_step"] = per_token * places / plan["peak_flops"] if peak else None
    work = sum(steps_of[first] * needed_flops(each) * places for first, each in phases.items())
    plan["least_seconds_of_run"] = work / plan["peak_flops"] if peak else None
    return plan, receipt


def format_plan(plan: Plan, receipt: Receipt) -> str:
    """The plan as the page that is printed."""
    memory, mesh = plan["hbm_bytes_per_device"], " x ".join(f"{k} {n}" for k, n in plan["mesh"].items() if n > 1)

    def gib(size: float) -> str:
        return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"

    limit = f" of {gib(plan['limit_bytes'])}" if plan["limit_bytes"] else ""
    lines = [
        format_receipt(receipt),
        "",
        f"devices          {plan['devices']} x {plan['device']} ({plan['topology'] or 'here'}); mesh {mesh or 'of one'}; "
        f"{plan['rows_per_device']:g} rows a device at a time; attention by {plan['attention']}",
        f"memory a device  {gib(memory['total'])}{limit}: {'fits' if plan['fits'] else 'DOES NOT FIT'}. State and batch "
        f"{gib(memory['arguments'])} (weights {gib(plan['weights_bytes'])}, moments {gib(plan['moments_bytes'])}), "
        f"temporaries {gib(memory['temporaries'])} (gradients {gib(plan['gradients_bytes'])}, activations and the rest "
        f"{gib(plan['activations_bytes'])}), output {gib(memory['output'])}; by XLA, compiled in {plan['compile_seconds']:.1f} s",
    ]
    if plan["host_bytes"] is not None:
        lines.append(f"memory, host     {gib(plan['host_bytes'])} more with the input pipeline open and read from")
    moved = plan["collectives"]
    if moved:
        parts = ", ".join(f"{c['count']:,.0f} {kind} {gib(c['bytes'])}" for kind, c in moved.items())
        lines.append(f"collectives      a step, sent by each device: {parts}")
    lines.append(
        f"arithmetic       {plan['flops_per_step']:.4g} FLOPs a step by XLA, {plan['model_flops_per_step']:.4g} by formula (6N and causal attention, trained share)"
    )
    epochs = f", {plan['epochs']:.2f} epochs" if plan["epochs"] is not None else ""
    lines.append(
        f"tokens           {plan['tokens_per_step']:,} a step at most, {plan['tokens']:,} in {plan['steps']:,} steps{epochs}"
    )
    seconds, least = plan["seconds_per_step"], plan["least_seconds_per_step"]
    if seconds:
        lines.append(
            f"time             {seconds:.3g} s a step (median of three; the first {plan['first_step_seconds']:.1f} s): "
            f"{duration(plan['seconds_of_run'])} for the run, {plan['tokens_per_step'] / seconds:,.0f} tokens/s, MFU {plan['mfu']:.3f} ({plan['peak_source']})"
        )
    elif least:
        lines.append(
            f"time             {least:.3g} s a step at the chips' peak ({plan['peak_source']}), {least / 0.4:.3g} s at 40 % MFU: "
            f"{duration(plan['least_seconds_of_run'] / 0.4)} for the run. Not measured: the chips are not here"
        )
    else:
        lines.append(f"time             unknown: {plan['peak_source']}")
    lines.append(
        f"disk             {gib(plan['checkpoint_bytes'])} a checkpoint, {plan['checkpoints_kept']} kept and one being written"
    )
    if not plan["fits"]:
        lines += ["", "It does not fit. What would change that:"]
        lines += [f"  {row['flags']}: {gib(row['total'])}{' fits' if row['fits'] else ''}" for row in plan["advice"]]
        if not any(row["fits"] for row in plan["advice"]):
            lines.append("  none of these is enough: use more devices, a shorter data.seq_len, or train fewer layers")
    return "\n".join(lines)
