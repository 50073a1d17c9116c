"""Which values and combinations of a config are impossible? All of them are listed, before anything is loaded."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline import schema
from data_pipeline.check import check_data_config
from lm.check_adapting import check_forgetting, check_task
from lm.check_sizes import check_mesh, check_rope
from lm.config import Config, ConfigError, LoraConfig, OptimConfig, UserError
from lm.hf.source import follow_source, saved_config

CHOICES: dict[str, tuple[str, ...]] = {
    "model.activation": ("silu", "gelu", "gelu_tanh", "relu2"),
    "model.position": ("rope", "learned", "none"),
    "model.norm": ("rmsnorm", "layernorm"),
    "model.norm_order": ("pre", "post", "both"),
    "model.rope_scaling.kind": ("none", "linear", "dynamic", "yarn", "llama3", "longrope"),
    "model.init_out": ("scaled", "zero"),
    "model.dtype": ("float32", "bfloat16"),
    "model.attention": ("auto", "xla", "chunked", "cudnn", "splash"),
    "model.remat": ("none", "dots", "full"),
    "model.pooling": ("last", "mean"),
    "optim.name": ("adamw", "sgd", "lion", "adafactor", "muon"),
    "optim.frozen_dtype": ("float32", "bfloat16", "int8", "nf4"),
    "train.stop_on": ("loss", "loss+change", "loss+kl"),
    "optim.schedule": (
        "constant",
        "linear",
        "cosine",
        "cosine_restarts",
        "exponential",
        "wsd",
        "inverse_sqrt",
        "plateau",
    ),
}

AT_LEAST: dict[str, float] = {
    "model.layers": 1, "model.dim": 1, "model.heads": 1, "model.kv_heads": 0, "model.head_dim": 0, "model.mlp_dim": 0,
    "model.experts": 0, "model.experts_per_token": 1,
    "model.vocab_size": 0, "model.max_len": 0, "model.window": 0, "model.attn_softcap": 0, "model.logit_softcap": 0,
    "model.attn_scale": 0, "model.rope_local_theta": 0, "model.rope_scaling.original_len": 0,
    "model.base_dim": 0, "model.base_head_dim": 0, "model.init_std": 0, "lora.rank": 0, "optim.warmup_steps": 0, "optim.decay_steps": 0, "optim.restart_steps": 0, "optim.restart_length_factor": 1, "optim.end_lr_ratio": 0,
    "optim.plateau_patience": 1, "optim.weight_decay": 0, "optim.clip_norm": 0, "train.steps": 1, "train.epochs": 0, "train.seed": 0,
    "train.micro_batches": 1, "train.loss_chunk": 0, "train.z_loss": 0, "train.balance_loss": 0, "train.log_every": 1, "train.eval_every": 0,
    "train.eval_batch_size": 1, "train.eval_rows": 0, "train.save_every": 0, "train.keep_last": 1,
    "train.early_stop_patience": 0, "train.early_stop_min_delta": 0, "train.max_bad_steps": 1,
    "train.sample_tokens": 1, "train.peak_tflops": 0, "train.focal_gamma": 0, "train.logit_adjustment": 0, "model.classes": 0,
    "train.remember_rows": 0, "train.forget_weight": 0, "optim.pull_to_start": 0,
}  # fmt: skip

BELOW_ONE = (
    "model.dropout",
    "lora.dropout",
    "train.label_smoothing",
    "train.ema_decay",
    "optim.b1",
    "optim.b2",
    "optim.momentum",
    "optim.plateau_factor",
)
ABOVE_ZERO = (
    "lora.alpha", "optim.layer_decay", "model.rope_theta", "model.rope_fraction", "model.norm_eps", "model.rope_scaling.factor",
    "model.rope_scaling.attention_factor", "model.rope_scaling.beta_fast", "model.rope_scaling.beta_slow",
    "model.rope_scaling.low_freq_factor", "model.rope_scaling.high_freq_factor", "optim.eps", "optim.plateau_factor",
    "optim.restart_peak_factor",
)  # fmt: skip

RESTART_KEYS = ("restart_steps", "restart_length_factor", "restart_peak_factor")


def read_config(
    path: str, overrides: Mapping[str, str], devices: int | None = None, needs_data: bool = True,
    workdir: Path | None = None,
) -> Config:  # fmt: skip
    """Reads a config file with command-line overrides; raises ConfigError with all that is wrong, at once.

    What an open-weight `init.source` decides is filled in; from the run in `workdir` where it has begun.
    """

    def check(config: Config) -> list[str]:
        try:
            problems = find_problems(follow_source(config, workdir), devices)
        except ConfigError as error:
            problems = [*find_problems(config), *error.problems]
        except UserError as error:
            problems = [*find_problems(config), f"config.init.source: {error}"]
        return problems if needs_data else [p for p in problems if not p.startswith("config.data.path:")]

    config = follow_source(schema.read_config(path, overrides, Config, check), workdir)
    saved = saved_config(workdir)
    if saved:
        config = follow_classes(config, saved)
    if saved and config.train.epochs and saved.train.epochs == config.train.epochs:
        return replace(config, train=replace(config.train, steps=saved.train.steps))
    return config


def count_steps(config: Config, rows: int) -> Config:
    """Returns the config with the `train.steps` that `train.epochs` come to, where it says epochs; rows of the train split.

    Raises ConfigError for a schedule that does not fit into them.
    """
    if not config.train.epochs:
        return config
    steps = max(math.ceil(config.train.epochs * rows / config.data.batch_size), 1)
    config = replace(config, train=replace(config.train, steps=steps))
    problems = _check_schedule(config)
    if problems:
        raise ConfigError([f"{problem} (train.epochs={config.train.epochs:g})" for problem in problems])
    return config


def name_classes(config: Config, names: Sequence[str], counts: Sequence[int]) -> Config:
    """Returns the config of a classifier with what its data decide; raises ConfigError where it says something else."""
    if config.model.classes not in (0, len(names)):
        raise ConfigError(f"config.model.classes={config.model.classes}, but the data have {len(names)}; leave it out")
    if len(config.train.class_counts) not in (0, len(names)):
        raise ConfigError("config.train.class_counts: give one number a class, or leave it out")
    return replace(
        config,
        data=replace(config.data, labels=tuple(names)),
        model=replace(config.model, classes=len(names)),
        train=replace(config.train, class_counts=config.train.class_counts or tuple(counts)),
    )


def follow_classes(config: Config, saved: Config) -> Config:
    """Returns a classifier's config with the classes of a saved run, where it names none itself."""
    if config.data.task != "classify" or saved.data.task != "classify" or config.data.labels:
        return config
    return name_classes(config, saved.data.labels, saved.train.class_counts) if saved.data.labels else config


def follow_data(config: Config, data: Any) -> Config:
    """Returns the config with what opened data decide: the classes of a classifier; steps, where it says epochs."""
    if data.classes:
        config = name_classes(config, data.classes.names, data.classes.counts)
        if config.train.refusal:
            data.classes.check_refusal(data.prepared, config.train.refusal)
    return count_steps(config, data.summary()["rows"]["train"])


def check_config(config: Config, devices: int | None = None) -> None:
    """Raises ConfigError with every impossible value or combination; `devices` (count) also checks the mesh."""
    problems = find_problems(config, devices)
    if problems:
        raise ConfigError(problems)


def find_problems(config: Config, devices: int | None = None) -> list[str]:
    """Returns one line for each impossible value or combination."""
    model, optim, train, data = config.model, config.optim, config.train, config.data
    problems = check_data_config(data) + _check_ranges(config)

    def must(ok: bool, message: str) -> None:
        if not ok:
            problems.append(f"config.{message}")

    if model.heads > 0 and model.kv_heads >= 0:
        by_heads = model.head_dim > 0 or model.dim % model.heads == 0
        must(by_heads, f"model.dim={model.dim} is not divisible by model.heads={model.heads} (or set model.head_dim)")
        by_kv = model.heads % model.n_kv_heads == 0
        must(by_kv, f"model.heads={model.heads} is not divisible by model.kv_heads={model.kv_heads}")
        if by_heads and model.position == "rope":
            problems += check_rope(config)
    if model.experts > 0:
        few = f"model.experts_per_token={model.experts_per_token} is more than model.experts={model.experts}"
        must(model.experts_per_token <= model.experts, few)
        must(model.mlp_gated and not model.mlp_bias, "model.experts: experts need mlp_gated=True and mlp_bias=False")
    must(model.experts > 0 or not train.balance_loss, "train.balance_loss: only a model with model.experts reads it")
    odd = [layer for layer in model.global_layers if not 0 <= layer < model.layers]
    must(not odd, f"model.global_layers: {odd} are no layers of {model.layers}")
    must(model.window > 0 or not model.global_layers, "model.global_layers: only a model with model.window reads it")
    if model.position == "learned" and model.max_len:
        must(
            model.max_len >= data.seq_len, f"model.max_len={model.max_len} is shorter than data.seq_len={data.seq_len}"
        )
    must(
        model.base_dim > 0 or not model.base_head_dim, "model.base_head_dim: only a model with model.base_dim reads it"
    )
    if model.base_dim > 0 and model.base_dim != model.dim:
        must(optim.name != "adafactor", "optim.name='adafactor': muP (model.base_dim) has no rule for it; take adamw")
    problems += _check_rates(optim)
    if train.epochs:
        must(not data.streaming, "train.epochs: a stream has no known number of rows; set train.steps")
    else:
        problems += _check_schedule(config)
    for key in ("train", "decay", "lr_multipliers"):
        problems += _check_patterns(f"optim.{key}", [pattern for pattern, _ in getattr(optim, key)])
    begins = [value for _, value in optim.train if not isinstance(value, bool)]
    must(any(on for _, on in optim.train), "optim.train: no row says True, so nothing would be trained")
    must(min(begins, default=1) >= 1, f"optim.train: {begins} must be steps >= 1; True trains from the beginning")
    first = any(on is True for _, on in optim.train) or not begins
    must(first, f"optim.train: nothing trains before step {min(begins, default=0)}; say True in a row")
    must(optim.layer_decay <= 1, f"optim.layer_decay: must be in (0, 1], got {optim.layer_decay:g}")
    must(all(value >= 0 for _, value in optim.lr_multipliers), "optim.lr_multipliers: values must be >= 0")
    problems += _check_patterns("lora.targets", list(config.lora.targets))
    off = config.lora.rank > 0 or config.lora == LoraConfig(rank=config.lora.rank)
    must(off, "lora: lora.rank=0 means no adapters, so its other keys do nothing; set lora.rank, such as 8")
    problems += _check_patterns("init.fresh", list(config.init.fresh), empty_ok=True)
    must(not config.init.fresh or bool(config.init.source), "init.fresh: only a run with init.source reads it")
    is_step = re.fullmatch(r"(best|last|\d+)(:raw)?", config.init.step) is not None
    must(
        is_step, f"init.step: must be 'best', 'last' or a step number, got {config.init.step!r} (each may end in :raw)"
    )
    whole = train.micro_batches < 1 or data.batch_size % train.micro_batches == 0
    must(whole, f"data.batch_size={data.batch_size} is not divisible by train.micro_batches={train.micro_batches}")
    pinned = any(source.split == "validation" for source in data.named_sources().values())
    watches = [key for key, on in _validation_users(config) if on]
    if data.split.validation == 0 and not data.split.folds and not pinned and watches:
        must(
            False,
            f"{watches[0]} needs validation data: set data.split.validation=0.05 or a source's split='validation'",
        )
    problems += check_task(config)
    problems += _check_profile(config) + check_forgetting(config)
    return problems + check_mesh(config, devices)


def _check_rates(optim: OptimConfig) -> list[str]:
    problems, auto = [], optim.peak_lr == "auto"
    if isinstance(optim.peak_lr, str) and not auto:
        problems.append(f"config.optim.peak_lr: must be a number > 0 or 'auto', got {optim.peak_lr!r}")
    if not isinstance(optim.peak_lr, str) and not optim.peak_lr > 0:
        problems.append(f"config.optim.peak_lr: must be a finite number > 0, got {optim.peak_lr}")
    if optim.schedule == "exponential" and not optim.end_lr_ratio:
        problems.append(
            "config.optim.end_lr_ratio: must be > 0 for optim.schedule='exponential', which never reaches 0"
        )
    readers = {"decay_steps": "wsd"} | dict.fromkeys(RESTART_KEYS, "cosine_restarts")
    for key, schedule in readers.items():
        if optim.schedule != schedule and getattr(optim, key) != getattr(OptimConfig(), key):
            problems.append(f"config.optim.{key}: only optim.schedule={schedule!r} reads it")
    return problems


def _check_schedule(config: Config) -> list[str]:
    optim, steps = config.optim, config.train.steps
    problems = []
    if 1 <= steps <= optim.warmup_steps:
        problems.append(f"config.optim.warmup_steps={optim.warmup_steps} is not shorter than train.steps={steps}")
    if optim.schedule == "wsd" and optim.warmup_steps + optim.decay_steps > steps:
        problems.append(f"config.optim.warmup_steps + optim.decay_steps is longer than train.steps={steps}")
    late = [f"{pattern!r} from {value}" for pattern, value in optim.train if value is not True and value >= steps]
    if late and steps >= 1:
        problems.append(f"config.optim.train: {', '.join(late)} would never train: the run ends at train.steps={steps}")
    if optim.schedule == "cosine_restarts" and not 1 <= optim.restart_steps < steps - optim.warmup_steps:
        problems.append(
            f"config.optim.restart_steps={optim.restart_steps}: the first cycle of 'cosine_restarts' must be at least 1 and "
            f"shorter than the {steps - optim.warmup_steps} steps after the warm-up, or nothing restarts"
        )
    return problems


def _check_profile(config: Config) -> list[str]:
    steps, last = config.debug.profile_steps, math.inf if config.train.epochs else config.train.steps
    if not steps or (len(steps) == 2 and 1 <= steps[0] <= steps[1] <= last):
        return []
    shown = ",".join(map(str, steps))
    wanted = f"first,last with 1 <= first <= last <= train.steps={last}"
    return [f"config.debug.profile_steps: must be {wanted} (such as --config.debug.profile_steps=10,15), got {shown}"]


def _validation_users(config: Config) -> list[tuple[str, bool]]:
    return [
        ("train.early_stop_patience", config.train.early_stop_patience > 0),
        ("optim.schedule='plateau'", config.optim.schedule == "plateau"),
        ("train.eval_every", config.train.eval_every > 0),
        ("train.eval_at_start", config.train.eval_at_start),
        ("train.remember", bool(config.train.remember)),
    ]


def _check_ranges(config: Config) -> list[str]:
    def value(key: str) -> Any:
        return functools.reduce(getattr, key.split("."), config)

    problems = []
    for key, valid in CHOICES.items():
        if value(key) not in valid:
            problems.append(f"config.{key}: {value(key)!r} is not one of {', '.join(valid)}")
    for key, low in AT_LEAST.items():
        if value(key) < low:
            problems.append(f"config.{key}: must be >= {low:g}, got {value(key)}")
    problems += [f"config.{key}: must be in [0, 1), got {value(key)}" for key in BELOW_ONE if not 0 <= value(key) < 1]
    problems += [f"config.{key}: must be > 0, got {value(key)}" for key in ABOVE_ZERO if value(key) <= 0]
    return problems


def _check_patterns(key: str, patterns: list[str], empty_ok: bool = False) -> list[str]:
    problems = [] if patterns or empty_ok else [f"config.{key}: needs at least one row, such as ('.*', ...)"]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            problems.append(f"config.{key}: {pattern!r} is not a regular expression: {error}")
    return problems
