"""Which parameters move, by how much? Optimizers, schedules, and the masks that keep the rest still.

Everything stands inside one `optax.selective_transform`, the clip included: a frozen leaf has no gradient, no moment,
no share in the norm, no update and no decay.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, reduce_on_plateau, scale_by_muon

from lm.anchor import average_weights, pull_to_start
from lm.config import ConfigError, OptimConfig, TrainConfig, is_off
from lm.mup import rate_factor
from lm.params import STACK, Params, in_stacks, join_stacks, layer_paths, leaf_paths, match_table, split_stacks

Schedule = Callable[[jax.Array | int], jax.Array]


class Treatment(NamedTuple):
    """What the config's tables say of each per-layer path."""

    trained: dict[str, bool]
    decayed: dict[str, bool]
    lr_multiplier: dict[str, float]
    begins: dict[str, float]  # how many steps are done when it begins to train; inf: never

    @property
    def kinds(self) -> dict[str, tuple[bool, bool]]:
        """(trained now, trained later): what parameters in one stack have in common."""
        return {p: (on, not on and self.begins[p] < math.inf) for p, on in self.trained.items()}

    def at(self, step: int) -> Treatment:
        """What trains in the step that is taken after `step` others."""
        return self._replace(trained={p: begins <= step for p, begins in self.begins.items()})


def read_tables(config: OptimConfig, paths: list[str]) -> Treatment:
    """Matches the three tables against per-layer paths; raises UserError naming what does not match.

    `trained` is what trains at the end; `Treatment.at` says it of a step.
    """
    train = match_table(config.train, paths, "optim.train")
    begins = {p: (0 if value else math.inf) if isinstance(value, bool) else value for p, value in train.items()}
    if 0 not in begins.values() and min(begins.values()) < math.inf:
        raise ConfigError(
            f"config.optim.train: nothing trains before step {min(begins.values())}; say True of some parameters"
        )
    multipliers, depths = match_table(config.lr_multipliers, paths, "optim.lr_multipliers"), _depths(paths)
    return Treatment(
        {p: step < math.inf for p, step in begins.items()},
        match_table(config.decay, paths, "optim.decay"),
        {p: multipliers[p] * config.layer_decay ** depths[p] for p in paths},
        begins,
    )


def _depths(paths: list[str]) -> dict[str, int]:
    """How many layers below the output each stands: head and norm_out 0, the last block 1, embeddings below the first.

    >>> _depths(["block_00/attn/q", "block_01/attn/q", "embed", "head"])
    {'block_00/attn/q': 2, 'block_01/attn/q': 1, 'embed': 3, 'head': 0}
    """
    found = {p: re.match(r"block_(\d+)/", p) for p in paths}
    layers = 1 + max((int(match[1]) for match in found.values() if match), default=-1)
    return {p: layers - int(m[1]) if m else (layers + 1) * (p in ("embed", "positions")) for p, m in found.items()}


def make_schedule(config: OptimConfig, peak_lr: float, steps: int) -> Schedule:
    """Returns lr(step). Warm-up is linear and its first step is not zero; then the named shape until `steps`."""
    warmup, end = config.warmup_steps, config.end_lr_ratio
    decay = config.decay_steps or max(steps // 5, 1)
    cycles = [
        (begin, length, config.restart_peak_factor**i)
        for i, (begin, length) in enumerate(restart_points(config, steps).items())
    ]

    def in_cycle(step: jax.Array) -> jax.Array:
        begins, lengths, factors = jnp.array(cycles, jnp.float32).T
        at = jnp.maximum(jnp.searchsorted(begins, step, side="right") - 1, 0)
        done = jnp.clip((step - begins[at]) / lengths[at], 0.0, 1.0)
        return factors[at] * (end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * done)))

    def schedule(step: jax.Array | int) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
        shape = {
            "constant": lambda: jnp.ones(()),
            "plateau": lambda: jnp.ones(()),  # times the scale that `observe_eval` lowers
            "linear": lambda: 1 - (1 - end) * done,
            "cosine": lambda: end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "cosine_restarts": lambda: in_cycle(step),
            "exponential": lambda: jnp.exp(math.log(end) * done),
            "wsd": lambda: 1 - (1 - end) * jnp.clip((step - (steps - decay)) / decay, 0.0, 1.0),
            "inverse_sqrt": lambda: jnp.sqrt(jnp.maximum(warmup, 1) / jnp.maximum(step + 1, jnp.maximum(warmup, 1))),
        }[config.schedule]()
        rise = 1.0 if is_off(warmup) else jnp.minimum((step + 1) / warmup, 1.0)
        return jnp.asarray(peak_lr * rise * shape, jnp.float32)

    return schedule


def restart_points(config: OptimConfig, steps: int) -> dict[int, int]:
    """Returns {first step: length} of each cycle of cosine_restarts (SGDR, arXiv:1608.03983) in a run of `steps`.

    >>> restart_points(OptimConfig(warmup_steps=5, restart_steps=10, restart_length_factor=2.0), 100)
    {5: 10, 15: 20, 35: 40, 75: 80}
    """
    found, begin, length = {}, config.warmup_steps, float(config.restart_steps)
    while length >= 1 and (begin < steps or not found):
        found[begin] = round(length)
        begin += round(length)
        length *= config.restart_length_factor
    return found


def turning_points(config: OptimConfig, steps: int) -> dict[int, str]:
    """Returns {step: what begins or ends there}, in order, for a table of rates; steps as the log counts them, from 1."""
    points = {1: "first step"}
    if config.warmup_steps:
        points[config.warmup_steps] = "end of the warm-up"
    if config.schedule == "wsd":
        points[steps - (config.decay_steps or max(steps // 5, 1)) + 1] = "decay begins"
    for number, begin in enumerate(restart_points(config, steps) if config.schedule == "cosine_restarts" else ()):
        if number:
            points |= {begin: f"end of cycle {number}", begin + 1: "restart"}
    if config.schedule in ("linear", "cosine", "exponential", "inverse_sqrt"):
        points.setdefault((config.warmup_steps + steps) // 2, "halfway")
    points[steps] = "last step"
    return dict(sorted(points.items()))


def is_matrix_in_block(path: str, leaf: Any) -> bool:
    stacked = bool(STACK.search(path))
    return path.startswith("block_") and leaf.ndim - stacked >= 2


def _muon(config: OptimConfig, params: Mapping[str, Any], eps: float) -> optax.GradientTransformation:
    """Muon on the matrices inside blocks (each layer of a stack and each expert by itself), Adam on everything else."""
    labels = {p: "muon" if is_matrix_in_block(p, leaf) else "adam" for p, leaf in params.items()}

    def dims(updates: Any) -> Any:
        return {
            p: leaf if isinstance(leaf, optax.MaskedNode) else MuonDimensionNumbers((leaf.ndim - 2,), (leaf.ndim - 1,))
            for p, leaf in updates.items()
        }

    muon = optax.chain(
        scale_by_muon(beta=config.momentum, weight_dimension_numbers=dims),
        _per_leaf(lambda p, u: u * max(1.0, u.shape[-1] / u.shape[-2]) ** 0.5),  # width transfer, as optax's muon
    )
    adam = optax.scale_by_adam(config.b1, config.b2, eps, nesterov=True)
    return optax.partition({"muon": muon, "adam": adam}, labels)


def _per_leaf(change: Callable[[str, jax.Array], jax.Array]) -> optax.GradientTransformation:
    """A stateless transformation of each update by its path; leaves that a mask took out stay out."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return {p: u if isinstance(u, optax.MaskedNode) else change(p, u) for p, u in updates.items()}, state

    return optax.GradientTransformation(optax.init_empty_state, update)


def _decay(rate: Callable[[str, jax.Array], Any]) -> optax.GradientTransformation:
    """Adds rate x parameter to each update (decoupled weight decay, arXiv:1711.05101)."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return _per_leaf(lambda p, u: u + rate(p, u) * params[p]).update(updates, state)

    return optax.GradientTransformation(optax.init_empty_state, update)


def _per_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Runs `inner` on single layers, for optimizers whose result depends on the whole leaf (adafactor)."""

    def present(tree: Any) -> Params:
        return split_stacks({p: leaf for p, leaf in tree.items() if not isinstance(leaf, optax.MaskedNode)})

    def init(params: Any) -> Any:
        return inner.init(present(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        changed: Any
        changed, state = inner.update(present(updates), state, present(params))
        real = [p for p, u in updates.items() if not isinstance(u, optax.MaskedNode)]
        return {**updates, **join_stacks(changed, real)}, state

    return optax.GradientTransformation(init, update)


def _core(config: OptimConfig, params: Mapping[str, Any], eps: float) -> optax.GradientTransformation:
    if config.name == "adamw":
        return optax.scale_by_adam(config.b1, config.b2, eps)
    if config.name == "sgd":
        return optax.trace(config.momentum) if not is_off(config.momentum) else optax.identity()
    if config.name == "lion":
        return optax.scale_by_lion(config.b1, config.b2)
    if config.name == "adafactor":
        rms = optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())
        return _per_layer(rms)
    assert config.name == "muon", config.name
    return _muon(config, params, eps)


def _core_by_phase(
    config: OptimConfig, params: Mapping[str, Any], treatment: Treatment, eps: float
) -> optax.GradientTransformation:
    """The core; where parts of the model begin to train later, one for each beginning, with a step count of its own.

    With the count of the others, Adam would take a moment of one gradient for that of many: for b2 = 0.999 steps three times too
    large, and more after. Layers of one stack may begin apart, so the moments are held by single layers.
    """
    begins = {p: str(n) for p, n in treatment.begins.items() if treatment.trained[p]}
    if all(n in (0, math.inf) for n in treatment.begins.values()):
        return _core(config, params, eps)
    single = {path: leaf for path, leaf in jax.eval_shape(split_stacks, dict(params)).items() if path in begins}
    core = _core(config, single, eps)
    by_begin = optax.partition(dict.fromkeys(begins.values(), core), lambda tree: {p: begins[p] for p in tree})
    return _per_layer(by_begin)


def _plateau(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    return reduce_on_plateau(config.plateau_factor, config.plateau_patience)


def _scale_by_plateau(config: OptimConfig) -> optax.GradientTransformation:
    """Scales updates by a state that only `observe_eval` changes."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: u * state.scale, updates), state

    return optax.GradientTransformation(_plateau(config).init, update)


def plateau_state(opt_state: Any) -> Any:
    """Returns the reduce-on-plateau state inside `opt_state`, or None."""
    found = [leaf for leaf in jax.tree.leaves(opt_state, is_leaf=_is_plateau) if _is_plateau(leaf)]
    return found[0] if found else None


def _is_plateau(node: Any) -> bool:
    return type(node).__name__ == "ReduceLROnPlateauState"


def observe_eval(config: OptimConfig, opt_state: Any, eval_loss: float) -> Any:
    """Tells reduce-on-plateau the validation loss; returns the new optimizer state."""

    def observe(node: Any) -> Any:
        if not _is_plateau(node):
            return node
        return _plateau(config).update({}, node, value=jnp.asarray(eval_loss, jnp.float32))[1]

    return jax.tree.map(observe, opt_state, is_leaf=_is_plateau)


def _clip(largest: float) -> optax.GradientTransformationExtraArgs:
    """Scales updates so that their norm is at most `largest`; the step computes `norm` once, for this and for the log."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, largest / extra["norm"])
        return jax.tree.map(lambda u: factor * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _scale_by_rate(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Multiplies by -lr(step); `step` is the run's own, so a skipped step does not shift the schedule."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        rate = schedule(extra["step"])
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def make_optimizer(
    config: OptimConfig, params: Mapping[str, Any], treatment: Treatment, schedule: Schedule,
    train: TrainConfig | None = None, width: float = 1.0,
) -> optax.GradientTransformationExtraArgs:  # fmt: skip
    """Builds the optimizer over all of `params` (arrays or shapes), of which only trained leaves take part.

    `update(grads, opt_state, params, step=..., norm=...)` takes `optax.MaskedNode()` in place of frozen gradients; `norm` is
    that of all others together. `width`: the model's `width_multiplier`, for muP (lm/mup.py).
    """
    trained = {p: all(on) for p, on in in_stacks(treatment.trained, list(params)).items()}
    decayed = {p: [float(on) for on in values] for p, values in in_stacks(treatment.decayed, list(params)).items()}
    multipliers = in_stacks(treatment.lr_multiplier, list(params))

    def per_layer_factor(path: str, leaf: jax.Array, values: list[float]) -> jax.Array | float:
        if len(set(values)) == 1:
            return values[0]
        return jnp.asarray(values, leaf.dtype).reshape(-1, *[1] * (leaf.ndim - 1))

    parts: list[optax.GradientTransformation] = [_clip(config.clip_norm)] if not is_off(config.clip_norm) else []
    parts.append(_core_by_phase(config, params, treatment, config.eps / width))
    if width != 1:
        parts.append(_per_leaf(lambda p, u: u * rate_factor(p, config.name, width)))
    if not is_off(config.weight_decay):
        parts.append(_decay(lambda p, leaf: config.weight_decay * per_layer_factor(p, leaf, decayed[p])))
    if not is_off(config.pull_to_start) or (train and train.remember):
        parts.append(pull_to_start(config.pull_to_start))
    if any(set(values) != {1.0} for values in multipliers.values()):
        parts.append(_per_leaf(lambda p, u: u * per_layer_factor(p, u, multipliers[p])))
    if config.schedule == "plateau":
        parts.append(_scale_by_plateau(config))
    parts.append(_scale_by_rate(schedule))
    if train and train.ema_decay:
        parts.append(average_weights(train.ema_decay))
    frozen = {p: not on for p, on in trained.items()}
    return optax.with_extra_args_support(optax.selective_transform(optax.chain(*parts), freeze_mask=frozen))


def count_slots(opt_state: Any, params: Mapping[str, Any]) -> dict[str, int]:
    """Returns the numbers that the optimizer holds for each per-layer path (moments; not step counters)."""
    slots = {single: 0 for path in params for single in layer_paths(path)}
    for path, leaf in leaf_paths(opt_state):
        owner = next((p for p in (*params, *slots) if path.endswith("/" + p)), None)
        if owner is not None:
            singles = layer_paths(owner)
            for single in singles:
                slots[single] += leaf.size // len(singles)
    return slots
