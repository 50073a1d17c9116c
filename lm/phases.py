"""When does which part of a model begin to train, and how does a run's state go from one such phase into the next?

A row `(pattern, 200)` of `optim.train` trains after 200 steps. Each stretch between such steps has a step function of its own,
so that what does not train yet costs no backward pass and no moments. A checkpoint is of the phase of the last step taken: at a
boundary, of the one that ends there.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from lm.config import Config
from lm.model.transformer import Model
from lm.params import Params, hash_leaves, join_stacks, layer_paths, leaf_paths, split_stacks
from lm.parts import Parts, abstract_batch, lower_step, make_parts, param_shapes
from lm.receipt import Receipt, xla_flops
from lm.run import Phase
from lm.start import start_state
from lm.step import TrainState

Phases = dict[int, Parts]  # {steps done when it begins: its parts}, in order; the last one trains most


def make_phases(config: Config, vocab_size: int, peak_lr: float, devices: list[Any] | None = None) -> Phases:
    """The parts of each phase; of a run whose trained set stays the same, one."""
    last = make_parts(config, vocab_size, peak_lr, devices)
    steps = sorted({0, *(int(step) for step in last.treatment.begins.values() if step < math.inf)})
    earlier = {step: make_parts(config, vocab_size, peak_lr, devices, step) for step in steps[:-1]}
    return {**earlier, steps[-1]: last}


def phase_after(phases: Phases, step: int) -> int:
    """The first step of the phase that a state after `step` steps is of."""
    return max(first for first in phases if first < max(step, 1))


def lengths(phases: Phases, steps: int) -> dict[int, int]:
    """How many of a run's steps each phase has."""
    return {first: stop - first for first, stop in itertools.pairwise([*phases, steps])}


def carry(state: TrainState, parts: Parts) -> TrainState:
    """Returns `state` as a state of `parts`, where more trains: what it held bit for bit, and fresh moments for the rest.

    Arrays that stay as they are grouped are the same ones. Of the others one after the other is copied and deleted.
    """
    have, wanted = dict(leaf_paths(state)), dict(leaf_paths(parts.state))
    place = {name: (path, i) for path in have for i, name in enumerate(layer_paths(path))}
    made = {p: have[p] for p in wanted if p in have}
    left = Counter(place[name][0] for p in wanted if p not in made for name in layer_paths(p) if name in place)
    order = sorted(wanted.keys() - made.keys(), key=lambda p: p[::-1])  # what is alike in all layers, together

    def take(path: str, fresh: Params) -> None:
        names = layer_paths(path)
        sources = {name: place[name] for name in names if name in place}
        arrays = {p: have[p] for p, _ in sources.values()}
        whole = {p for p in arrays if layer_paths(p) == [p]}

        def join(arrays: Params, fresh: Params) -> jax.Array:
            found = {n: arrays[p] if p in whole else arrays[p][i] for n, (p, i) in sources.items()}
            return join_stacks({**split_stacks(fresh), **found}, [path])[path]

        made[path] = jax.jit(join, out_shardings=wanted[path].sharding)(arrays, fresh)
        made[path].block_until_ready()
        left.subtract(p for p, _ in sources.values())
        for source in arrays:
            if not left[source]:
                have[source].delete()

    for path in order:
        if path.startswith("params/"):
            take(path, {})
    missing = {p: leaf.sharding for p, leaf in wanted.items() if not place.keys() >= {*layer_paths(p)}}

    def begin(params: Params) -> Params:
        leaves = dict(leaf_paths(start_state(parts, params)))
        return {path: leaves[path] for path in missing}

    fresh = jax.jit(begin, out_shardings=missing)({p: made[f"params/{p}"] for p in parts.state.params})
    for path in order:
        if path not in made:
            take(path, {path: fresh[path]} if path in fresh else {})
    return jax.tree.unflatten(jax.tree.structure(parts.state), [made[p] for p in wanted])


def check_untouched(receipt: Receipt, state: TrainState, before: Parts, parts: Parts) -> None:
    """Raises AssertionError if a leaf that begins to train with `parts` is not, bit for bit, what it was at the start."""
    begun = {p for p, on in parts.treatment.trained.items() if on and not before.treatment.trained[p]}
    leaves = split_stacks({p: leaf for p, leaf in state.params.items() if not begun.isdisjoint(layer_paths(p))})
    hashes = hash_leaves({p: leaf for p, leaf in leaves.items() if p in begun})
    moved = [p for p, digest in hashes.items() if receipt["frozen_sha256_before"][p] != digest]
    assert not moved, f"parameters changed before they were to train: {', '.join(moved)}"


def make_later(
    phases: Phases, step: int, receipt: Receipt, programs_of: Callable[[Parts], dict[str, Any]], log: Callable[[str], None]
) -> list[Phase]:  # fmt: skip
    """The phases that a run at `step` has still to enter. `programs_of` says what of a `Run` its parts decide."""
    order = list(phases)

    def enter(first: int, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        before, parts = phases[order[order.index(first) - 1]], phases[first]
        check_untouched(receipt, state, before, parts)
        state = carry(state, parts)
        began = time.perf_counter()
        programs = {**programs_of(parts), "train_step": lower_step(parts).compile()}
        if parts.model.runs == before.model.runs:  # evaluation and samples need no other program
            programs = {key: value for key, value in programs.items() if key not in ("eval_step", "sample")}
        trained = parts.treatment.trained.values()
        log(
            f"step {first}: phase {order.index(first) + 1} of {len(order)} begins, {sum(trained)} of {len(trained)} tensors "
            f"train; compiled in {time.perf_counter() - began:.1f} s"
        )
        return state, programs

    return [Phase(first, partial(enter, first)) for first in order if first > phase_after(phases, step)]


def add_phases(receipt: Receipt, phases: Phases) -> Receipt:
    """Returns the receipt of the last phase with what each of several costs, and the whole run."""
    if len(phases) == 1:
        return receipt
    config, last, rows = phases[0].config, max(phases), []
    for first, steps in lengths(phases, config.train.steps).items():
        parts = phases[first]
        flops = receipt["flops_per_step"]
        if first != last:
            flops = xla_flops(parts.make_step, parts.model, parts.treatment, abstract_batch(config))
        shapes = param_shapes(Model(parts.model.config))
        rows.append({
            "begins": first,
            "steps": steps,
            "patterns": [p for p, value in config.optim.train if value is not False and first == (value is not True) * value],
            "trained_params": sum(leaf.size for p, leaf in shapes.items() if parts.treatment.trained[p]),
            "flops_per_step": flops,
        })  # fmt: skip
    return {
        **receipt,
        "phases": rows,
        "flops_of_run": sum(row["steps"] * row["flops_per_step"] for row in rows),
        "flops_of_run_if_all_trained": config.train.steps * receipt["flops_per_step_if_all_trained"],
    }
