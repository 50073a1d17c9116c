"""How are the parts put together? The composition root: config -> model, loss, optimizer, start point, run."""

from __future__ import annotations

import base64
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm import checkpoint
from lm.checkpoint import Checkpoints, load, read_meta
from lm.clock import Clock
from lm.config import Config, ConfigError, MeshConfig, UserError, from_mapping, to_json
from lm.evaluate import make_eval_step
from lm.forgetting import Remembered, make_meter
from lm.generate import generate
from lm.hosts import from_main, gather_bytes, is_main
from lm.lease import Lease
from lm.logger import Logger
from lm.metrics import peak_flops
from lm.model.kernels import compare, platform_of, windows
from lm.model.transformer import Model
from lm.optim import observe_eval
from lm.params import Params, count, make_runs
from lm.parts import (
    Parts,
    abstract_batch,
    cast_frozen,
    make_model,
    model_config,
    needed_flops,
    param_shapes,
    treat,
    with_shardings,
)
from lm.phases import add_phases, make_later, make_phases, phase_after
from lm.range_test import run_range_test
from lm.receipt import Receipt, hash_frozen, make_receipt
from lm.resume import check_resume
from lm.run import Progress, Run
from lm.run_folder import load_weights
from lm.sampling import Sampling
from lm.sharding import local_rows, make_mesh, param_shardings
from lm.start import find_peak_lr, find_twins, load_params, start_state
from lm.step import TrainState

Log = Callable[[str], None]
KERNEL_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # measured: 6e-7 and 7e-3 (tests/lm/test_kernels.py)


def check_kernel(parts: Parts, data: Any, log: Log) -> None:
    """Compares the attention kernel with the formula on the first batch; raises ConfigError when they disagree."""
    config = parts.config
    if parts.model.kernels is None:
        return
    batches = data.train_batches(0, local_rows(parts.mesh, config.data.batch_size), None)
    segments = np.frombuffer(gather_bytes(next(batches)["segments"].tobytes())[0], np.int32)
    batches.close()
    began = time.perf_counter()
    found: dict[str, float] = {}
    for window in sorted(windows(parts.model.config)):
        kind = replace(parts.model.config, window=window)
        differs = compare(parts.attention, kind, parts.model.mesh, segments.reshape(-1, config.data.seq_len))
        found |= {f"{part} (window {window})" if window else part: size for part, size in differs.items()}
    part, worst = max(found.items(), key=lambda item: item[1] if item[1] == item[1] else float("inf"))
    text = f"attention by {parts.attention}: {part} differs from the formula by {worst:.1e} of its largest number"
    if not worst <= KERNEL_TOLERANCE[parts.model.config.dtype]:
        raise ConfigError(f"{text}: this kernel is wrong here. Set config.model.attention='xla' or 'chunked'")
    log(f"{text} ({time.perf_counter() - began:.1f} s)")


def say_whether_bits_repeat(mesh: Mesh, log: Log) -> None:
    """Says on a GPU that a repeated or resumed run differs in its last bits, unless XLA was told to avoid what does that."""
    if platform_of(mesh) == "gpu" and not re.search(
        "deterministic_ops(=true|=1)?( |$)", os.environ.get("XLA_FLAGS", "")
    ):
        log(
            "on a GPU sums are added up in another order each time, so a repeated or resumed run differs in its last bits. For the "
            "same bits: XLA_FLAGS=--xla_gpu_exclude_nondeterministic_ops=true (docs/gpu.md)"
        )


def make_run(
    config: Config, data: Any, workdir: Path, lease: Lease | None, log: Log, clock: Clock,
    remembered: Remembered | None = None,
) -> tuple[Run, Receipt, Parts]:  # fmt: skip
    """Builds a run that `train` can run, its receipt, and the parts of its last phase.

    Start rule: resume this run > init from a checkpoint > scratch.

    `remembered` is what `open_remembered` opened.
    """
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
        known = meta.get("remembered_sha256")  # a checkpoint of an older version has none
        if known and remembered and known != remembered.data.fingerprint:
            raise UserError(
                f"config.train.remember={config.train.remember!r}: the text is not what it was when the run in {workdir} began "
                f"(sha256 {remembered.data.fingerprint[:12]}, then {known[:12]}). Bring it back, or use another --workdir"
            )
    peak_lr = meta["peak_lr"] if meta and config.optim.peak_lr == "auto" else find_peak_lr(config, log)
    if peak_lr is None:
        beat = lease.beat if lease else lambda: None
        peak_lr = run_range_test(config, data, tokenizer, workdir, log, beat=beat).suggestion
    phases = make_phases(config, tokenizer.vocab_size, peak_lr)
    parts, last = phases[phase_after(phases, step)], phases[max(phases)]
    check_kernel(parts, data, log)
    say_whether_bits_repeat(parts.mesh, log)
    check_disk(workdir, checkpoint.state_bytes(last.state), config.train.keep_last)
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
        start = f"started from {config.init.source or 'random weights'}"
        if config.init.source:
            params = load_params(parts, tokenizer.sha256, log)
            for end, twins in find_twins(
                last, params, sorted({tokenizer.special.eos, *tokenizer.stop_ids} - {-1})
            ).items():
                log(
                    f"warning: the end token {end} has a row of {parts.model.head_path} that {twins - 1} others have too, and it is "
                    f"frozen: the model cannot learn when to end. Train it: ('{parts.model.head_path}', True) in optim.train"
                )
            state = start_state(parts, params)
        else:
            state = start_state(parts)
            log(f"starting from random weights (seed {config.train.seed})")
    receipt = make_receipt(
        config, last.model, last.treatment, last.state.params, last.state.opt_state, last.make_step,
        abstract_batch(config), hashes=False,
    )  # fmt: skip
    receipt = add_phases(receipt, phases) | {"frozen_sha256_before": hash_frozen(state.params, parts.treatment)}
    log(describe_tokens(config, data))
    run_meta = {
        "config": to_json(config), "data_sha256": data.fingerprint, "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": parts.model.config.vocab_size, "peak_lr": peak_lr, "start": start, "saved_step": step or None,
        "remembered_sha256": remembered.data.fingerprint if remembered else None,
    }  # fmt: skip
    programs = partial(programs_of, tokenizer=tokenizer)
    peak, peak_source = peak_flops(config.train.peak_tflops, dtype=config.model.dtype)
    run = Run(
        config=config, workdir=workdir, mesh=parts.mesh, state=state, key=jax.random.key(config.train.seed),
        data=data, data_state=data_state, model=parts.model.config, **programs(parts),
        peak_flops=peak * parts.mesh.size, peak_source=peak_source,
        checkpoints=Checkpoints(workdir, config.train.keep_last, log), meta=run_meta, progress=progress,
        logger=Logger(workdir, is_main(), progress.history, step), lease=lease, clock=clock,
        later=make_later(phases, step, receipt, programs, log),
        meter=make_meter(remembered, parts.model, parts.mesh, config.train) if remembered else None,
    )  # fmt: skip
    return run, receipt, last


def programs_of(parts: Parts, tokenizer: Any) -> dict[str, Any]:
    """What of a `Run` follows from what trains now."""
    config = parts.config
    return {
        "train_step": parts.train_step,
        "eval_step": make_eval_step(parts.model, tokenizer.token_bytes(), config.train.loss_chunk),
        "observe_eval": _observer(parts),
        "sample": make_sampler(parts.model, tokenizer, config),
        "flops_per_token": needed_flops(parts),
    }


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
        (out,) = generate(
            model, params, [ids], max_new_tokens=config.train.sample_tokens, stop_ids=tokenizer.stop_ids,
            sampling=Sampling(temperature=0.0),
        )  # fmt: skip
        stream = tokenizer.stream()  # `decode` takes away the space that some tokenizers put before a text
        return "".join(map(stream.push, out)) + stream.close()

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


def load_run(workdir: str, step: str, log: Log, seq_len: int = 0, any_task: bool = False) -> Loaded:
    """Loads a run's weights by its own config, for rows of `seq_len` (0: its own); `step` is best, last or a number.

    Raises UserError for a classifier, which writes no text, unless `any_task`.
    """
    number = checkpoint.find_step(workdir, step, log)
    meta = read_meta(workdir, number)
    config = from_mapping(Config, meta["config"])
    if config.model.classes and not any_task:
        raise UserError(f"{workdir} is a classifier, which writes no text; python -m lm.classify reads texts with it")
    try:
        mesh = make_mesh(config.mesh)
    except ConfigError:  # other devices than the run had
        mesh = make_mesh(MeshConfig())
    resolved = replace(model_config(config, meta["vocab_size"]), remat="none", attention="auto")
    treatment = treat(config.optim, param_shapes(Model(resolved)))
    runs = make_runs(treatment.kinds, resolved.layers) if resolved.scan else ()
    model, _ = make_model(resolved, runs, mesh, seq_len or config.data.seq_len)
    shapes = cast_frozen(param_shapes(model), treatment, config.optim.frozen_dtype)
    params = load_weights(workdir, number, step, with_shardings(shapes, param_shardings(shapes, mesh)))
    log(f"{workdir} step {number}: {count(params):,} parameters")
    return Loaded(config, model, params, mesh, number, meta["tokenizer_sha256"])


def check_tokenizer(loaded: Loaded, tokenizer: Any, workdir: str) -> None:
    """Raises UserError where data were encoded by another tokenizer than that of the run in `workdir`."""
    if tokenizer.sha256 != loaded.tokenizer_sha256:
        raise UserError(
            f"the data's tokenizer is not the one that {workdir} was trained with; add "
            f"--config.data.tokenizer.path={workdir}/tokenizer"
        )


def parse_number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < 2**63:
        raise ConfigError(f"--{name} must be a number, got {text!r}")
    return value
