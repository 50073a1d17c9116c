"""What follows from a config and a vocabulary, before any weight exists: model, loss, sharded step, shapes.

Plans and tests use these as they are; `lm/build.py` adds data, weights and a workdir.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lm.batch import BATCH_KEYS
from lm.config import AdaptedModel, Config, ConfigError, ModelConfig, OptimConfig, UserError, is_off
from lm.losses import Sums, count_pieces, sum_in_pieces, sum_losses, token_losses
from lm.metrics import token_flops
from lm.model.adapters import MATRIX, base_of, make_adapters
from lm.model.codes import KINDS, encode
from lm.model.kernels import choose, make_kernels, refusal
from lm.model.transformer import Model
from lm.optim import Treatment, make_optimizer, make_schedule, read_tables
from lm.params import Params, Runs, layer_paths, make_runs
from lm.receipt import StepMaker
from lm.sharding import (
    batch_sharding,
    make_mesh,
    param_spec,
    replicated,
    row_shards,
    state_shardings,
)
from lm.step import Loss, TrainState, make_grad_fn, make_train_step


def model_config(config: Config, vocab_size: int) -> ModelConfig:
    """Fills in what the tokenizer, the row length and config.lora decide; ConfigError when the vocabulary is too small."""
    model = config.model
    if model.vocab_size and model.vocab_size < vocab_size:
        raise ConfigError(
            f"tokenizer has {vocab_size} pieces, config.model.vocab_size={model.vocab_size}; set it to 0 or at least {vocab_size}"
        )
    model = replace(model, vocab_size=model.vocab_size or vocab_size, max_len=model.max_len or config.data.seq_len)
    if not config.lora.rank:
        return model
    paths = list(param_shapes(Model(model)))
    return AdaptedModel(**vars(model), adapters=make_adapters(config.lora, paths, model.layers))


def make_loss(model: Model, config: Config, head_trained: bool = True, whole: bool = False) -> Loss:
    """Cross-entropy of a batch as (sum to minimise, sums); `whole`: all logits at once."""
    smoothing, z_loss, mesh = config.train.label_smoothing, config.train.z_loss, model.mesh
    balance_loss, gamma, prior_C = config.train.balance_loss, config.train.focal_gamma, log_prior(config)

    def loss_of(head: jax.Array, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
        logits_BTV = model.unembed(head, x_BTD)
        if prior_C is not None:
            logits_BTV += prior_C[None, None]
        return sum_losses(token_losses(logits_BTV, batch["targets"], smoothing, z_loss, gamma), batch["weights"])

    def shard_head(gradient: jax.Array) -> jax.Array:
        if mesh is None:
            return gradient
        spec = param_spec(model.head_path, gradient.shape, mesh)
        return jax.lax.with_sharding_constraint(gradient, NamedSharding(mesh, spec))

    def loss(params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, Sums]:
        inputs, uneven = (batch["tokens"], batch["positions"], batch["segments"]), None
        if not is_off(balance_loss):
            x_BTD, uneven = model.hidden_and_balance(params, *inputs, batch["weights"], key)
        else:
            x_BTD, _ = model.hidden(params, *inputs, key)
        head, (B, T, _) = params[model.head_path], x_BTD.shape
        targets = {name: batch[name] for name in ("targets", "weights")}
        shards = 1 if mesh is None else row_shards(mesh) * mesh.shape["context"]
        # A frozen head has no gradient to sum, and finer pieces cost nothing: those in which nobody learns are left out.
        skip = not head_trained and (mesh is None or mesh.shape["context"] == 1)
        pieces = count_pieces(B * T // shards, T, model.config.outputs, config.train.loss_chunk, skip)
        if whole or pieces == 1:
            sums = loss_of(head, x_BTD, targets)
        else:
            sums = sum_in_pieces(loss_of, head, x_BTD, targets, pieces, head_trained, shard_head, skip)
        sums["tokens"] = jnp.sum(batch["segments"] > 0).astype(jnp.float32)
        if uneven is not None:
            sums["balance"] = uneven
            sums["objective"] += balance_loss * uneven
        return sums["objective"], sums

    return loss


def log_prior(config: Config) -> jax.Array | None:
    """Returns what `train.logit_adjustment` adds to the logits of each class in training [C], float32 (arXiv:2007.07314)."""
    if not config.train.logit_adjustment:
        return None
    counts_C = jnp.asarray(config.train.class_counts, jnp.float32)
    return config.train.logit_adjustment * jnp.log(counts_C / counts_C.sum())


def param_shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(model.init_params, jax.random.key(0))


def trained_paths(params: Mapping[str, Any], treatment: Treatment) -> frozenset[str]:
    return frozenset(path for path in params if treatment.trained[layer_paths(path)[0]])


def cast_frozen(params: Mapping[str, Any], treatment: Treatment, dtype: str) -> Params:
    """Returns `params` (arrays or shapes) with those that never train held as `optim.frozen_dtype` says.

    int8 and nf4 hold a matrix in a block as codes at its path, and their scale at `PATH_absmax`; the rest is bfloat16.
    """
    kinds, held = treatment.kinds, {}

    def hold(path: str, leaf: jax.Array) -> Params:
        if dtype in KINDS and MATRIX.fullmatch(path):
            return dict(zip((path, f"{path}_absmax"), encode(leaf, dtype)))
        return {path: leaf.astype(jnp.bfloat16 if dtype in KINDS else dtype)}

    for path, leaf in params.items():
        if any(kinds[layer_paths(path)[0]]):
            held[path] = leaf
        else:
            abstract = isinstance(leaf, jax.ShapeDtypeStruct)
            held |= jax.eval_shape(partial(hold, path), leaf) if abstract else hold(path, leaf)
    return held


def treat(config: OptimConfig, shapes: Mapping[str, Any]) -> Treatment:
    """Matches the config's tables against the parameters of single layers, and says the same of what holds frozen ones.

    Raises UserError for adapters that would never move.
    """
    treatment = read_tables(config, list(shapes))
    idle = [path for path in shapes if path.endswith("_lora_b") and not treatment.trained[path]]
    if idle:
        raise UserError(
            f"optim.train freezes adapters, {idle[0]} among {len(idle)}, which then do nothing: begin it with "
            "('.*_(lora_[ab]|dora_scale)', True), as adapters_only() of lm.config does, or narrow lora.targets"
        )
    held = cast_frozen(shapes, treatment, config.frozen_dtype)
    scales = [path for path in held if path not in shapes]
    return Treatment(*({**values, **{path: values[base_of(path)] for path in scales}} for values in treatment))


def make_step_of(config: Config, peak_lr: float) -> StepMaker:
    """Returns a function (model, treatment, micro_batches, whole) -> (step function, state); the one way a step is made."""

    def make(
        model: Model, treatment: Treatment, micro_batches: int = config.train.micro_batches, whole: bool = False
    ) -> tuple[Callable[..., Any], Any]:
        shapes = cast_frozen(param_shapes(model), treatment, config.optim.frozen_dtype)
        schedule = make_schedule(config.optim, peak_lr, config.train.steps)
        optimizer = make_optimizer(
            config.optim, shapes, treatment, schedule, config.train, model.config.width_multiplier
        )
        state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), shapes)
        drop = config.model.dropout > 0 or config.lora.dropout > 0
        loss = make_loss(model, config, treatment.trained[model.head_path], whole)
        keyed: Loss = loss if drop else (lambda params, batch, key: loss(params, batch, None))
        grad_fn = make_grad_fn(keyed, micro_batches)
        return make_train_step(grad_fn, optimizer, schedule, trained_paths(shapes, treatment)), state

    return make


def abstract_batch(config: Config) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.data.batch_size, config.data.seq_len)
    return {key: jax.ShapeDtypeStruct(shape, jnp.float32 if key == "weights" else jnp.int32) for key in BATCH_KEYS}


def with_shardings(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), tree, shardings)


@dataclass(frozen=True)
class Parts:
    """What follows from a config and a vocabulary, before any weight exists."""

    config: Config
    mesh: Mesh
    model: Model
    treatment: Treatment
    peak_lr: float
    train_step: Callable[..., Any]  # jitted and sharded
    state: Any  # abstract TrainState with shardings
    make_step: StepMaker
    attention: str  # which kernel computes it


def make_model(resolved: ModelConfig, runs: Runs, mesh: Mesh, seq_len: int) -> tuple[Model, str]:
    """Returns the model with its attention kernel, and the kernel's name; raises ConfigError for one that cannot do it."""
    place = mesh if mesh.size > 1 or mesh.devices.flat[0] not in jax.devices() else None
    name = choose(resolved, mesh, seq_len)
    reason = refusal(name, resolved, mesh, seq_len)
    if reason:
        raise ConfigError(f"config.model.attention={resolved.attention!r}: {reason}. Set it to 'auto' or 'xla'")
    return Model(resolved, runs, place, make_kernels(name, resolved, place, seq_len)), name


def make_parts(
    config: Config, vocab_size: int, peak_lr: float, devices: list[Any] | None = None, after: int | None = None
) -> Parts:
    """The parts of a run on `devices` (default: all there are), which may be of a topology that is not here.

    Where the trained set grows: as it is after this many steps (default: at the end).
    """
    mesh = make_mesh(config.mesh, devices)
    resolved = model_config(config, vocab_size)
    treatment = treat(config.optim, param_shapes(Model(resolved)))
    treatment = treatment if after is None else treatment.at(after)
    runs = make_runs(treatment.kinds, resolved.layers) if resolved.scan else ()
    model, attention = make_model(resolved, runs, mesh, config.data.seq_len)
    make_step = make_step_of(config, peak_lr)
    step, state = make_step(model, treatment)
    shardings = state_shardings(state, state.params, mesh)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    train_step = jax.jit(
        step, in_shardings=(shardings, rows, whole), out_shardings=(shardings, whole), donate_argnums=0
    )
    state = with_shardings(state, shardings)
    return Parts(config, mesh, model, treatment, peak_lr, train_step, state, make_step, attention)


def needed_flops(parts: Parts) -> float:
    """What the model needs for one token, with what trains in these parts."""
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(parts.model.config)).items()}
    return sum(token_flops(parts.model.config, shapes, parts.treatment.trained, parts.config.data.seq_len).values())


def lower_step(parts: Parts) -> Any:
    """The run's step, lowered for its own shapes and shardings: `.compile()` it."""
    rows = batch_sharding(parts.mesh)
    batch = {
        key: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows)
        for key, leaf in abstract_batch(parts.config).items()
    }
    return parts.train_step.lower(parts.state, batch, jax.eval_shape(lambda: jax.random.key(0)))
