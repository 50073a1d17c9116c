"""How are the parts put together? The composition root: config -> model, loss, optimizer, start point, run."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import checkpoint
from lm.batch import BATCH_KEYS
from lm.checkpoint import Checkpoints, load, read_meta
from lm.config import Config, ConfigError, MeshConfig, ModelConfig, UserError, check_resume, from_mapping, to_json
from lm.evaluate import make_eval_step
from lm.generate import Sampling, generate
from lm.hosts import from_main, is_main
from lm.lease import Lease
from lm.logger import Logger
from lm.losses import Sums, sum_losses, token_losses
from lm.metrics import peak_flops, token_flops
from lm.model.transformer import Model
from lm.optim import Treatment, make_optimizer, make_schedule, observe_eval, read_tables
from lm.params import Params, count, join_stacks, layer_paths, make_runs, match_table, split_stacks
from lm.plan import Receipt, StepMaker, make_receipt
from lm.sharding import batch_sharding, make_mesh, param_shardings, replicated, state_shardings
from lm.step import Loss, TrainState, make_grad_fn, make_train_step
from lm.train import Progress, Run

Log = Callable[[str], None]


def model_config(config: Config, vocab_size: int) -> ModelConfig:
    """Fills in what the tokenizer and the row length decide; raises ConfigError when the vocabulary is too small."""
    model = config.model
    if model.vocab_size and model.vocab_size < vocab_size:
        raise ConfigError(
            f"tokenizer has {vocab_size} pieces, config.model.vocab_size={model.vocab_size}; set it to 0 or at least {vocab_size}"
        )
    return replace(model, vocab_size=model.vocab_size or vocab_size, max_len=model.max_len or config.data.seq_len)


def make_loss(model: Model, config: Config) -> Loss:
    """Cross-entropy of a batch as (sum to minimise, sums)."""

    def loss(params: Params, batch: Mapping[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, Sums]:
        logits_BTV = model.apply(params, batch["tokens"], batch["positions"], batch["segments"], key)
        losses = token_losses(logits_BTV, batch["targets"], config.train.label_smoothing, config.train.z_loss)
        sums = sum_losses(losses, batch["weights"])
        sums["tokens"] = jnp.sum(batch["segments"] > 0).astype(jnp.float32)
        return sums["objective"], sums

    return loss


def param_shapes(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    return jax.eval_shape(model.init_params, jax.random.key(0))


def trained_paths(params: Mapping[str, Any], treatment: Treatment) -> frozenset[str]:
    return frozenset(path for path in params if treatment.trained[layer_paths(path)[0]])


def make_step_of(config: Config, peak_lr: float) -> StepMaker:
    """Returns a function (model, treatment, micro_batches) -> (step function, abstract state); the one way a step is made."""

    def make(
        model: Model, treatment: Treatment, micro_batches: int = config.train.micro_batches
    ) -> tuple[Callable[..., Any], Any]:
        shapes = param_shapes(model)
        schedule = make_schedule(config.optim, peak_lr, config.train.steps)
        optimizer = make_optimizer(config.optim, shapes, treatment, schedule)
        state = jax.eval_shape(lambda p: TrainState(jnp.zeros((), jnp.int32), p, optimizer.init(p)), shapes)
        drop = config.model.dropout > 0
        loss = make_loss(model, config)
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


def make_parts(config: Config, vocab_size: int, peak_lr: float) -> Parts:
    mesh = make_mesh(config.mesh)
    resolved = model_config(config, vocab_size)
    flat = Model(resolved)
    treatment = read_tables(config.optim, list(param_shapes(flat)))
    runs = make_runs(treatment.trained, resolved.layers) if resolved.scan else ()
    model = Model(resolved, runs, mesh if mesh.size > 1 else None)
    make_step = make_step_of(config, peak_lr)
    step, state = make_step(model, treatment)
    shardings = state_shardings(state, state.params, mesh)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    train_step = jax.jit(
        step, in_shardings=(shardings, rows, whole), out_shardings=(shardings, whole), donate_argnums=0
    )
    return Parts(config, mesh, model, treatment, peak_lr, train_step, with_shardings(state, shardings), make_step)


def find_peak_lr(config: Config, log: Log) -> float:
    """Returns optim.peak_lr, or for "auto" a tenth of the peak that the checkpoint at init.source was trained with."""
    if isinstance(config.optim.peak_lr, float):
        return config.optim.peak_lr
    step = checkpoint.find_step(config.init.source, config.init.step, log)
    theirs = float(read_meta(config.init.source, step)["peak_lr"])
    log(f"optim.peak_lr='auto': {theirs / 10:g}, a tenth of the {theirs:g} that {config.init.source} was trained with")
    return theirs / 10


def init_state(parts: Parts) -> TrainState:
    """A new run's state on random weights, made on the devices that hold it."""
    optimizer = make_optimizer(
        parts.config.optim, parts.state.params, parts.treatment,
        make_schedule(parts.config.optim, parts.peak_lr, parts.config.train.steps),
    )  # fmt: skip

    def init(key: jax.Array) -> TrainState:
        params = parts.model.init_params(key)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.state)
    return jax.jit(init, out_shardings=shardings)(jax.random.key(parts.config.train.seed))


def init_from(parts: Parts, state: TrainState, tokenizer_sha256: str, log: Log) -> TrainState:
    """Replaces the random weights by those of the checkpoint at init.source; the optimizer stays fresh."""
    init = parts.config.init
    step = checkpoint.find_step(init.source, init.step, log)
    theirs = read_meta(init.source, step)["tokenizer_sha256"]
    if theirs != tokenizer_sha256:
        raise UserError(
            f"the tokenizer differs from the one that {init.source} was trained with (sha256 {tokenizer_sha256[:12]}, "
            f"theirs {theirs[:12]}). Set config.data.tokenizer.path={init.source}/tokenizer"
        )
    flat = Model(parts.model.config)
    shapes = param_shapes(flat)
    keep = match_table([*((p, True) for p in init.fresh), (".*", False)], list(shapes), "init.fresh")
    wanted = {path: leaf for path, leaf in shapes.items() if not keep[path]}
    stored = checkpoint.stored_shapes(init.source, step)
    extra = [p.removeprefix("params/") for p in stored if p.startswith("params/")]
    extra = [p for p in extra if p not in wanted and not any(re.fullmatch(f, p) for f in init.fresh)]
    if extra:
        lines = "\n  ".join(
            f"{p}: in the checkpoint ({checkpoint.describe(stored[f'params/{p}'])}), not in this model" for p in extra
        )
        raise UserError(f"checkpoint {init.source} step {step} does not fit the config:\n  {lines}")
    shardings = param_shardings(wanted, parts.mesh)
    loaded = load(init.source, step, with_shardings(wanted, shardings), "params/", init.cast)
    random = jax.jit(split_stacks)(state.params) if any(keep.values()) else {}
    fresh = {path: leaf for path, leaf in random.items() if keep[path]}
    shardings = {path: leaf.sharding for path, leaf in parts.state.params.items()}
    params = jax.jit(lambda leaves: join_stacks(leaves, list(shardings)), out_shardings=shardings)({**loaded, **fresh})
    fresh_names = f", random: {', '.join(fresh)}" if fresh else ""
    log(
        f"starting from {init.source} step {step}: {len(loaded)} tensors, {count(loaded):,} numbers loaded{fresh_names}"
    )
    return TrainState(state.step, params, state.opt_state)


def make_run(config: Config, data: Any, workdir: Path, lease: Lease | None, log: Log) -> tuple[Run, Receipt, Parts]:
    """Builds a run that `train` can run. Start rule: resume this run > init from a checkpoint > scratch."""
    tokenizer = data.tokenizer
    if config.train.eval_every and not data.has_split("validation"):
        raise UserError(
            "train.eval_every needs validation data, but no document fell into that split: raise "
            "data.split.validation, add text, or set train.eval_every=0"
        )
    resumed = checkpoint.list_steps(workdir / "checkpoints")
    meta: dict[str, Any] | None = None
    step = 0
    if resumed:
        step = from_main(checkpoint.find_step(workdir, "last", log) if is_main() else 0)
        meta = read_meta(workdir, step)
        for line in check_resume(meta["config"], config, str(workdir)):
            log(f"config differs from the checkpoint: {line}")
        if meta["data_sha256"] != data.fingerprint:
            raise UserError(
                f"the data differs from what the run in {workdir} was trained on (sha256 {data.fingerprint[:12]}, then "
                f"{meta['data_sha256'][:12]}). Bring the files back, or use another --workdir"
            )
    peak_lr = meta["peak_lr"] if meta and config.optim.peak_lr == "auto" else find_peak_lr(config, log)
    parts = make_parts(config, tokenizer.vocab_size, peak_lr)
    check_disk(workdir, checkpoint.state_bytes(parts.state), config.train.keep_last)
    progress, data_state = Progress(), None
    if meta is not None:
        state = load(workdir, step, parts.state)
        progress = Progress(**meta["progress"])
        states = meta["data_state"]
        if states is not None:
            if len(states) != jax.process_count():
                raise UserError(
                    f"streaming data resumes on as many processes as before: {len(states)}, now {jax.process_count()}"
                )
            data_state = base64.b64decode(states[jax.process_index()])
        start = f"resumed {workdir} at step {step}"
        log(start)
        start = meta["start"]
    else:
        state = init_state(parts)
        start = "started from random weights"
        if config.init.source:
            state = init_from(parts, state, tokenizer.sha256, log)
            start = f"started from {config.init.source}"
        else:
            log(f"starting from random weights (seed {config.train.seed})")
    receipt = make_receipt(
        config, parts.model, parts.treatment, state.params, state.opt_state, parts.make_step, abstract_batch(config)
    )
    log(describe_tokens(config, data))
    run_meta = {
        "config": to_json(config), "data_sha256": data.fingerprint, "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": parts.model.config.vocab_size, "peak_lr": peak_lr, "start": start, "saved_step": step or None,
    }  # fmt: skip
    shapes = {p: leaf.shape for p, leaf in param_shapes(Model(parts.model.config)).items()}
    per_token = token_flops(parts.model.config, shapes, parts.treatment.trained, config.data.seq_len)
    peak, peak_source = peak_flops(config.train.peak_tflops)
    run = Run(
        config=config, workdir=workdir, mesh=parts.mesh, state=state, key=jax.random.key(config.train.seed),
        train_step=parts.train_step, eval_step=make_eval_step(parts.model, tokenizer.token_bytes()),
        observe_eval=_observer(parts), sample=make_sampler(parts.model, tokenizer, config), data=data,
        data_state=data_state, vocab_size=parts.model.config.vocab_size, flops_per_token=sum(per_token.values()),
        peak_flops=peak * parts.mesh.size, peak_source=peak_source,
        checkpoints=Checkpoints(workdir, config.train.keep_last, log), meta=run_meta, progress=progress,
        logger=Logger(workdir, is_main(), progress.history, step), lease=lease,
    )  # fmt: skip
    return run, receipt, parts


def describe_tokens(config: Config, data: Any) -> str:
    """How many tokens the run will see, in how many epochs of the train split."""
    steps, rows = config.train.steps, data.summary()["rows"]["train"]
    places = config.data.batch_size * config.data.seq_len
    if not rows:  # streaming
        return f"tokens: at most {places:,} a step, {places * steps:,} in {steps:,} steps"
    epochs = config.data.batch_size * steps / rows
    return f"tokens: at most {places:,} a step, {places * steps:,} in {steps:,} steps: {epochs:.2f} epochs of {rows:,} rows"


def _observer(parts: Parts) -> Callable[[TrainState, float], TrainState] | None:
    if parts.config.optim.schedule != "plateau":
        return None
    shardings = jax.tree.map(lambda leaf: leaf.sharding, parts.state)

    def observe(state: TrainState, loss: float) -> TrainState:
        return replace(state, opt_state=observe_eval(parts.config.optim, state.opt_state, loss))

    return jax.jit(observe, out_shardings=shardings, donate_argnums=0)


def make_sampler(model: Model, tokenizer: Any, config: Config) -> Callable[[Params, str], str]:
    """Returns (params, prompt) -> greedy continuation, for the samples written at evaluations."""
    bos = [tokenizer.special.bos] if config.data.add_bos else []

    def sample(params: Params, prompt: str) -> str:
        ids = bos + tokenizer.encode(prompt)
        out = generate(
            model, params, [ids], max_new_tokens=config.train.sample_tokens, eos=tokenizer.special.eos,
            sampling=Sampling(temperature=0.0),
        )  # fmt: skip
        return tokenizer.decode(out[0])

    return sample


def check_disk(workdir: Path, size: int, keep_last: int) -> None:
    """Refuses a run whose checkpoints cannot fit, before step 1."""
    kept = keep_last + 2  # the best one, and the one being written
    free = shutil.disk_usage(workdir).free
    if free < size * kept:
        raise ConfigError(
            f"checkpoints need about {size / 1e6:,.1f} MB each and {kept} at once, {free / 1e6:,.1f} MB are free in "
            f"{workdir}. Free some, lower train.keep_last or choose another --workdir"
        )


@dataclass(frozen=True)
class Loaded:
    """A trained model, ready to evaluate or to generate."""

    config: Config
    model: Model
    params: Params
    mesh: Mesh
    step: int
    tokenizer_sha256: str


def load_run(workdir: str, step: str, log: Log) -> Loaded:
    """Loads a run's weights by its own config; `step` is best, last or a number. Raises UserError."""
    number = checkpoint.find_step(workdir, step, log)
    meta = read_meta(workdir, number)
    config = from_mapping(Config, meta["config"])
    try:
        mesh = make_mesh(config.mesh)
    except ConfigError:  # other devices than the run had
        mesh = make_mesh(MeshConfig())
    resolved = replace(model_config(config, meta["vocab_size"]), remat="none")
    runs = ((0, resolved.layers),) if resolved.scan else ()
    model = Model(resolved, runs, mesh if mesh.size > 1 else None)
    shapes = param_shapes(model)
    params = load(workdir, number, with_shardings(shapes, param_shardings(shapes, mesh)), "params/")
    log(f"{workdir} step {number}: {count(params):,} parameters")
    return Loaded(config, model, params, mesh, number, meta["tokenizer_sha256"])


def parse_number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--{name} must be a number, got {text!r}") from None
