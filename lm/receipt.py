"""What will a run train, and what does freezing the rest save? The freeze receipt, before step 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax

from lm.config import Adapters, Config, UserError, with_layers
from lm.metrics import active_size, token_flops
from lm.model.adapters import base_of
from lm.model.transformer import Model
from lm.optim import Treatment, count_slots
from lm.params import Params, block_name, hash_leaves, layer_paths, make_runs, match_table

Receipt = dict[str, Any]
StepMaker = Callable[
    ..., tuple[Callable[..., Any], Any]
]  # (model, treatment, micro_batches, whole) -> (step, abstract state)


def xla_flops(make_step: StepMaker, model: Model, treatment: Treatment, batch: Mapping[str, Any]) -> float:
    """FLOPs of one whole-batch step as XLA counts them, from the program before optimisation, on one device.

    The program is lowered unrolled, unsharded, in one micro-batch and with the plain attention and loss, because XLA
    counts the body of a loop only once. Of each run of layers that are treated alike it holds one; how much another
    adds is counted with two, and the rest follows.
    """
    runs = make_runs(treatment.kinds, model.config.layers)
    firsts = [start for start, _ in runs]
    total = base = _flops_of_layers(make_step, model, treatment, batch, firsts)
    for start, stop in runs:
        if stop - start > 1:
            layers = sorted([*firsts, start + 1])
            total += (stop - start - 1) * (_flops_of_layers(make_step, model, treatment, batch, layers) - base)
    return total


def _flops_of_layers(
    make_step: StepMaker, model: Model, treatment: Treatment, batch: Mapping[str, Any], layers: Sequence[int]
) -> float:
    """FLOPs of a step of the model with only these of its `layers`, each treated as in the whole."""
    names = {block_name(layer): block_name(i) for i, layer in enumerate(layers)}

    def keep(values: dict[str, Any]) -> dict[str, Any]:
        parts = {path: path.partition("/") for path in values}
        return {
            names.get(top, top) + slash + rest: values[path]
            for path, (top, slash, rest) in parts.items()
            if top in names or not top.startswith("block_")
        }

    few = replace(with_layers(model.config, layers), scan=False, remat="none")
    step, state = make_step(Model(few, counted=True), Treatment(*map(keep, treatment)), 1, True)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # only JAX_PLATFORMS can leave it out
        raise UserError(
            "JAX_PLATFORMS leaves out the CPU, where FLOPs are counted: add it, as in JAX_PLATFORMS=cuda,cpu"
        ) from None
    with jax.default_device(host):  # plugins of accelerators count nothing before they compile: `cost_analysis` is None
        cost: Any = jax.jit(step).lower(state, batch, key).cost_analysis()
    return float(cost["flops"])


def make_receipt(
    config: Config, model: Model, treatment: Treatment, params: Mapping[str, Any], opt_state: Any, make_step: StepMaker,
    batch: Mapping[str, Any], hashes: bool = True,
) -> Receipt:  # fmt: skip
    """Says, pattern by pattern, what trains, what the optimizer holds and what share of a step's FLOPs it takes.

    `hashes` of the frozen leaves need real arrays; everything else works on shapes.
    """
    single = jax.eval_shape(Model(model.config).init_params, jax.random.key(0))  # of what codes stand for, too
    sizes = {path: leaf.size for path, leaf in single.items()}
    slots = count_slots(opt_state, params)
    shapes = {path: leaf.shape for path, leaf in single.items()}
    flops = token_flops(model.config, shapes, treatment.trained, config.data.seq_len)
    total_flops = sum(flops.values())
    row_of = match_table([(p, row) for row, (p, _) in enumerate(config.optim.train)], list(single), "optim.train")
    rows = []
    for row, (pattern, value) in enumerate(config.optim.train):
        matched = {p for p in single if row_of[p] == row}
        inside = [
            p for p in flops if p in matched or (p.endswith("/scores") and p.replace("/scores", "/out") in matched)
        ]
        rows.append({
            "pattern": pattern,
            "trained": value,
            "layers": len({p.split("/")[0] for p in matched if p.startswith("block_")}),
            "leaves": len(matched),
            "params": sum(sizes[p] for p in matched),
            "optimizer_numbers": sum(slots[p] for p in matched),
            "flops_share": sum(flops[p] for p in inside) / total_flops,
        })  # fmt: skip
    whole = model  # without adapters
    if model.config.adapters.rank:
        whole = replace(model, config=replace(model.config, adapters=Adapters()))
    ours = {p: True for p in single if base_of(p) == p}
    everything = Treatment(ours, treatment.decayed, treatment.lr_multiplier, dict.fromkeys(ours, 0.0))
    all_trained = whole is model and all(treatment.trained.values())
    here = xla_flops(make_step, model, treatment, batch)
    return {
        "trained_params": sum(size for p, size in sizes.items() if treatment.trained[p]),
        "frozen_params": sum(size for p, size in sizes.items() if not treatment.trained[p]),
        "active_params": sum(round(active_size(model.config, p, shape)) for p, shape in shapes.items()),
        "optimizer_numbers": sum(slots.values()),
        "flops_per_step": here,
        "flops_per_step_if_all_trained": here if all_trained else xla_flops(make_step, whole, everything, batch),
        "table": rows,
        "frozen_sha256_before": hash_frozen(params, treatment) if hashes else None,
        "frozen_sha256_after": None,
    }


def format_receipt(receipt: Receipt) -> str:
    """The receipt as the text that is printed before step 1."""
    lines = [f"{'optim.train pattern':34} {'':7} {'layers':>6} {'params':>13} {'optimizer':>13} {'FLOPs':>6}"]
    for row in receipt["table"]:
        kind = "trained" if row["trained"] is True else f"at {row['trained']}" if row["trained"] else "frozen"
        counts = f"{row['layers']:>6} {row['params']:>13,} {row['optimizer_numbers']:>13,} {row['flops_share']:>6.1%}"
        lines.append(f"{row['pattern'][:34]:34} {kind:7} {counts}")
    trained, frozen = receipt["trained_params"], receipt["frozen_params"]
    share = receipt["flops_per_step"] / receipt["flops_per_step_if_all_trained"]
    active = f" || active a token: {receipt['active_params']:,}" if receipt["active_params"] < trained + frozen else ""
    lines.append(
        f"trainable params: {trained:,} || all params: {trained + frozen:,}{active} || trainable%: {100 * trained / (trained + frozen):.4f}"
    )
    lines.append(
        f"optimizer numbers: {receipt['optimizer_numbers']:,} || FLOPs a step: {receipt['flops_per_step']:.4g}"
        f" = {share:.3f} of training everything ({receipt['flops_per_step_if_all_trained']:.4g})"
    )
    for i, phase in enumerate(receipt.get("phases", ())):
        share = phase["flops_per_step"] / receipt["flops_per_step_if_all_trained"]
        lines.append(
            f"phase {i + 1}: after {phase['begins']:,} steps, for {phase['steps']:,}: {phase['trained_params']:,} params train, "
            f"{phase['flops_per_step']:.4g} FLOPs a step = {share:.3f}; begins: {', '.join(phase['patterns'])}"
        )
    if "phases" in receipt:
        share = receipt["flops_of_run"] / receipt["flops_of_run_if_all_trained"]
        lines.append(
            f"FLOPs of the run: {receipt['flops_of_run']:.4g} = {share:.3f} of training everything from step 0 "
            f"({receipt['flops_of_run_if_all_trained']:.4g})"
        )
    return "\n".join(lines)


def format_rates(treatment: Treatment, peak_lr: float) -> str:
    """The peak rate of each block and of what is in none, on one line for all that share it."""
    found: dict[str, set[float]] = {}
    for path, on in treatment.trained.items():
        if on:
            found.setdefault(path.split("/")[0], set()).add(peak_lr * treatment.lr_multiplier[path])
    shared: dict[tuple[float, ...], list[str]] = {}
    for name, rates in found.items():
        shared.setdefault(tuple(sorted(rates)), []).append(name)
    lines = [f"{' and '.join(f'{rate:.3g}' for rate in rates):20} {', '.join(n)}" for rates, n in shared.items()]
    return "\n".join(["peak rate            of", *lines])


def hash_frozen(params: Mapping[str, Any], treatment: Treatment) -> dict[str, str]:
    """SHA-256 of each leaf that does not train now."""
    return hash_leaves({p: leaf for p, leaf in params.items() if not treatment.trained[layer_paths(p)[0]]})


def check_frozen(receipt: Receipt, params: Params, treatment: Treatment) -> Receipt:
    """Returns the receipt with the hashes of the frozen leaves after the run; raises AssertionError if one moved."""
    after, before = hash_frozen(params, treatment), receipt["frozen_sha256_before"]
    moved = [path for path, digest in after.items() if before[path] != digest]
    assert not moved, f"frozen parameters changed: {', '.join(moved)}"
    return {**receipt, "frozen_sha256_after": after}
