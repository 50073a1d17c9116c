"""Which keys does a run have, what do they mean, and which combinations are impossible?

`Config` is the whole configuration; its `data` section is `data_pipeline.config.DataConfig`. Every default stands here
or there, once. `check_config` lists all that is wrong before anything is loaded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from data_pipeline import schema
from data_pipeline.config import DataConfig, SourceConfig, check_data_config
from data_pipeline.schema import ConfigError as ConfigError
from data_pipeline.schema import UserError as UserError
from data_pipeline.schema import diff as diff
from data_pipeline.schema import from_mapping as from_mapping
from data_pipeline.schema import to_json as to_json


@dataclass(frozen=True)
class ModelConfig:
    """One decoder. The defaults are Llama style; `configs/models.py` has GPT-2 and others."""

    layers: int = 8
    dim: int = 256  # width of the residual stream
    heads: int = 4  # query heads
    kv_heads: int = 0  # key and value heads; 0: as many as heads
    head_dim: int = 0  # 0: dim / heads
    mlp_dim: int = 0  # 0: 4 * dim, or 8/3 * dim rounded up to 64 when mlp_gated
    mlp_gated: bool = True  # down(act(gate(x)) * up(x)) instead of down(act(up(x)))
    mlp_bias: bool = False
    activation: str = "silu"  # silu | gelu | gelu_tanh | relu2 (squared ReLU)
    vocab_size: int = 0  # 0: what the tokenizer has
    max_len: int = 0  # learned positions: rows of the table; 0: data.seq_len
    position: str = "rope"  # rope | learned | none
    rope_theta: float = 10_000.0
    norm: str = "rmsnorm"  # rmsnorm | layernorm (with bias)
    norm_eps: float = 1e-6
    qk_norm: bool = False  # normalise each query and key head
    attn_bias: bool = False  # biases on q, k, v
    attn_out_bias: bool = False
    window: int = 0  # each token sees this many positions back, itself included; 0: all
    attn_softcap: float = 0.0  # c * tanh(scores / c); 0: off
    logit_softcap: float = 0.0  # the same on the output logits
    tie_embeddings: bool = True  # the head is the embedding, transposed
    embed_scale: bool = False  # multiply embeddings by sqrt(dim)
    init_std: float = 0.02
    init_out: str = "scaled"  # attn/out and mlp/down start at: scaled (init_std / sqrt(2 layers)) | zero
    dropout: float = 0.0  # on embeddings, attention weights and both branch outputs
    dtype: str = "float32"  # of the computation: float32 | bfloat16; master weights are always float32
    scan: bool = False  # loop over runs of layers instead of unrolling: compile time stays flat in depth
    remat: str = "none"  # recompute in the backward: none | dots (keep matmul results) | full

    @property
    def q_head_dim(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or (-(-8 * self.dim // 3 // 64) * 64 if self.mlp_gated else 4 * self.dim)


Table = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class OptimConfig:
    """Which parameters train, and how. Tables are ordered (regex on the whole parameter path, value): first match wins."""

    train: tuple[tuple[str, bool], ...] = ((".*", True),)  # what is trained (True) and frozen (False)
    name: str = "adamw"  # adamw | sgd | lion | adafactor | muon (matrices in blocks; adamw for the rest)
    peak_lr: float | str = 1e-3  # "auto": a tenth of the peak that the checkpoint at init.source was trained with
    schedule: str = "cosine"  # constant | linear | cosine | wsd | inverse_sqrt | plateau
    warmup_steps: int = 0
    decay_steps: int = 0  # wsd: length of the final decay; 0: a fifth of the run
    end_lr_ratio: float = 0.1  # linear, cosine, wsd: last rate / peak
    plateau_factor: float = 0.5  # plateau: multiply the rate by this ...
    plateau_patience: int = 2  # ... after this many evaluations without a new best
    lr_multipliers: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    weight_decay: float = 0.1  # decoupled; times the rate
    decay: tuple[tuple[str, bool], ...] = ((r".*(scale|bias)", False), (".*", True))  # what weight_decay applies to
    clip_norm: float = 1.0  # largest norm of the gradient over the trained parameters; 0: off
    b1: float = 0.9  # adamw, lion; momentum of sgd and muon is `momentum`
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    seed: int = 0  # initial weights, dropout, samples
    micro_batches: int = 1  # cut the batch in this many parts, one after the other; same result, less memory
    z_loss: float = 0.0  # weight of log(Z)^2
    label_smoothing: float = 0.0
    log_every: int = 10  # steps
    eval_every: int = 100  # steps; 0: only at the end (when there is validation data)
    eval_batch_size: int = 32  # rows; changes speed, not results
    eval_rows: int = 0  # at most this many rows of the validation split; 0: all of it
    save_every: int = 0  # steps; 0: at each evaluation
    keep_last: int = 2  # checkpoints kept besides the best one
    early_stop_patience: int = 0  # evaluations without a new best before stopping; 0: never
    early_stop_min_delta: float = 0.0  # a new best is better by more than this (nats a token)
    max_bad_steps: int = 8  # steps with a non-finite loss are skipped; this many in a row end the run
    sample_prompts: tuple[str, ...] = ()  # a sample is written for each at every evaluation
    sample_tokens: int = 64
    peak_tflops: float = 0.0  # of one device, for `mfu`; 0: the chip's known figure, or a measured matmul


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 (one axis at most): all that are left."""

    data: int = -1  # rows of the batch
    fsdp: int = 1  # rows of the batch, and weights sharded
    tensor: int = 1  # heads, mlp width and vocabulary


@dataclass(frozen=True)
class InitConfig:
    """Where a new run's weights come from. A run that has a checkpoint of its own resumes that instead."""

    source: str = ""  # workdir of an earlier run; "": random weights
    step: str = "best"  # which of its checkpoints: best | last | a step number
    fresh: tuple[str, ...] = ()  # parameter patterns that keep their random start
    cast: bool = False  # accept parameters stored in another dtype


@dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    init: InitConfig = InitConfig()


CHOICES: dict[str, tuple[str, ...]] = {
    "model.activation": ("silu", "gelu", "gelu_tanh", "relu2"),
    "model.position": ("rope", "learned", "none"),
    "model.norm": ("rmsnorm", "layernorm"),
    "model.init_out": ("scaled", "zero"),
    "model.dtype": ("float32", "bfloat16"),
    "model.remat": ("none", "dots", "full"),
    "optim.name": ("adamw", "sgd", "lion", "adafactor", "muon"),
    "optim.schedule": ("constant", "linear", "cosine", "wsd", "inverse_sqrt", "plateau"),
}

AT_LEAST: dict[str, float] = {
    "model.layers": 1, "model.dim": 1, "model.heads": 1, "model.kv_heads": 0, "model.head_dim": 0, "model.mlp_dim": 0,
    "model.vocab_size": 0, "model.max_len": 0, "model.window": 0, "model.attn_softcap": 0, "model.logit_softcap": 0,
    "model.init_std": 0, "optim.warmup_steps": 0, "optim.decay_steps": 0, "optim.end_lr_ratio": 0,
    "optim.plateau_patience": 1, "optim.weight_decay": 0, "optim.clip_norm": 0, "train.steps": 1, "train.seed": 0,
    "train.micro_batches": 1, "train.z_loss": 0, "train.log_every": 1, "train.eval_every": 0,
    "train.eval_batch_size": 1, "train.eval_rows": 0, "train.save_every": 0, "train.keep_last": 1,
    "train.early_stop_patience": 0, "train.early_stop_min_delta": 0, "train.max_bad_steps": 1,
    "train.sample_tokens": 1, "train.peak_tflops": 0,
}  # fmt: skip

BELOW_ONE = ("model.dropout", "train.label_smoothing", "optim.b1", "optim.b2", "optim.momentum", "optim.plateau_factor")
ABOVE_ZERO = ("model.rope_theta", "model.norm_eps", "optim.eps", "optim.plateau_factor")


def read_config(path: str, overrides: Mapping[str, str], devices: int | None = None) -> Config:
    """Reads a config file with command-line overrides; raises ConfigError with all that is wrong, at once."""
    return schema.read_config(path, overrides, Config, lambda config: find_problems(config, devices))


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
        even = not by_heads or model.position != "rope" or model.q_head_dim % 2 == 0
        must(even, f"model.head_dim: rope needs an even head size, got {model.q_head_dim}")
    if model.position == "learned" and model.max_len:
        must(
            model.max_len >= data.seq_len, f"model.max_len={model.max_len} is shorter than data.seq_len={data.seq_len}"
        )
    if isinstance(optim.peak_lr, str):
        must(optim.peak_lr == "auto", f"optim.peak_lr: must be a number > 0 or 'auto', got {optim.peak_lr!r}")
        if optim.peak_lr == "auto":
            must(
                bool(config.init.source), "optim.peak_lr='auto' needs init.source, the checkpoint whose peak it divides"
            )
    else:
        must(optim.peak_lr > 0, f"optim.peak_lr: must be a finite number > 0, got {optim.peak_lr}")
    shorter = train.steps < 1 or optim.warmup_steps < train.steps
    must(shorter, f"optim.warmup_steps={optim.warmup_steps} is not shorter than train.steps={train.steps}")
    if optim.schedule == "wsd":
        fits = optim.warmup_steps + optim.decay_steps <= train.steps
        must(fits, f"optim.warmup_steps + optim.decay_steps is longer than train.steps={train.steps}")
    must(optim.schedule == "wsd" or not optim.decay_steps, "optim.decay_steps: only optim.schedule='wsd' reads it")
    for key in ("train", "decay", "lr_multipliers"):
        problems += _check_patterns(f"optim.{key}", [pattern for pattern, _ in getattr(optim, key)])
    must(any(on for _, on in optim.train), "optim.train: no row says True, so nothing would be trained")
    must(all(value >= 0 for _, value in optim.lr_multipliers), "optim.lr_multipliers: values must be >= 0")
    problems += _check_patterns("init.fresh", list(config.init.fresh), empty_ok=True)
    must(not config.init.fresh or bool(config.init.source), "init.fresh: only a run with init.source reads it")
    is_step = config.init.step in ("best", "last") or config.init.step.isdigit()
    must(is_step, f"init.step: must be 'best', 'last' or a step number, got {config.init.step!r}")
    whole = train.micro_batches < 1 or data.batch_size % train.micro_batches == 0
    must(whole, f"data.batch_size={data.batch_size} is not divisible by train.micro_batches={train.micro_batches}")
    pinned = any(source.split == "validation" for source in data.sources.values())
    watches = [key for key, on in _validation_users(config) if on]
    if data.split.validation == 0 and not pinned and watches:
        must(
            False,
            f"{watches[0]} needs validation data: set data.split.validation=0.05 or a source's split='validation'",
        )
    return problems + _check_mesh(config, devices)


def _validation_users(config: Config) -> list[tuple[str, bool]]:
    return [
        ("train.early_stop_patience", config.train.early_stop_patience > 0),
        ("optim.schedule='plateau'", config.optim.schedule == "plateau"),
        ("train.eval_every", config.train.eval_every > 0),
    ]


def _check_ranges(config: Config) -> list[str]:
    def value(key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(config, section), name)

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


def _check_mesh(config: Config, devices: int | None) -> list[str]:
    sizes = {field.name: getattr(config.mesh, field.name) for field in fields(MeshConfig)}
    problems = [f"config.mesh.{k}: must be -1 or >= 1, got {n}" for k, n in sizes.items() if n == 0 or n < -1]
    if list(sizes.values()).count(-1) > 1:
        problems.append("config.mesh: only one axis may be -1 (all devices that are left)")
    if problems or devices is None:
        return problems
    text = " x ".join(f"{k}={n}" for k, n in sizes.items())
    try:
        shape = mesh_shape(config.mesh, devices)
    except ConfigError:
        needed = math.prod(max(n, 1) for n in sizes.values())
        several = "a multiple of " if -1 in sizes.values() else ""
        return [f"config.mesh {text} needs {several}{needed} devices, found {devices}"]
    model, rows = config.model, shape["data"] * shape["fsdp"]
    micro_rows = config.data.batch_size // max(config.train.micro_batches, 1)
    if micro_rows % rows:
        text = f"{micro_rows} rows (data.batch_size={config.data.batch_size} / train.micro_batches={config.train.micro_batches})"
        problems.append(f"config.data.batch_size: {text} do not divide over mesh data x fsdp = {rows} devices")
    for key, size, axis in [
        ("model.dim", model.dim, "fsdp"),
        ("model.heads", model.heads, "tensor"),
        ("model.kv_heads", model.n_kv_heads, "tensor"),
        ("model.mlp_dim", model.mlp_width, "tensor"),
    ]:
        if size % shape[axis]:
            problems.append(f"config.{key}={size} is not divisible by mesh.{axis}={shape[axis]}")
    return problems


def mesh_shape(mesh: MeshConfig, devices: int) -> dict[str, int]:
    """Returns the size of each axis with -1 filled in; raises ConfigError when the product is not `devices`."""
    shape = {field.name: getattr(mesh, field.name) for field in fields(MeshConfig)}
    known = math.prod(size for size in shape.values() if size > 0)
    shape = {name: size if size > 0 else devices // known for name, size in shape.items()}
    if math.prod(shape.values()) != devices:
        raise ConfigError(f"config.mesh: {shape} does not fit {devices} devices")
    return shape


def changed_keys(config: Config) -> list[tuple[str, Any, Any]]:
    """Returns (key, default, value) for every key that differs from its default."""
    default = to_json(Config())
    default["data"]["sources"] = {name: to_json(SourceConfig()) for name in config.data.sources}
    return diff(default, to_json(config))


def last_layers(count: int, layers: int, also: str = "norm_out/.*") -> Table:
    """The `optim.train` table that trains the last `count` of `layers` blocks and what matches `also`.

    >>> last_layers(2, 12)
    (('block_10/.*', True), ('block_11/.*', True), ('norm_out/.*', True), ('.*', False))
    """
    blocks = tuple((f"block_{i:02d}/.*", True) for i in range(layers - count, layers))
    return (*blocks, (also, True), (".*", False))


# These decide what a run's numbers mean, so a resumed run may not change them. Where the data lies is no part of that:
# the fingerprint of what was read is compared.
RESUME_REFUSED = re.compile(
    r"model\.(?!scan|remat).*|optim\.(name|train)|train\.seed|init\..*|data\.(?!path$|sources\..*\.(path|tfds_dir)$).*"
)
RESUME_IGNORED = re.compile(r"data\.(cache_dir|on_bad|max_bad_fraction)")


def check_resume(saved: Mapping[str, Any], config: Config, where: str) -> list[str]:
    """Returns one line per key that differs from the run in `where`; raises ConfigError if one of them may not."""
    changes = [c for c in diff(saved, to_json(config)) if not RESUME_IGNORED.fullmatch(c[0])]
    lines = [
        f"{key} {old!r} -> {new!r} ({'refused' if RESUME_REFUSED.fullmatch(key) else 'allowed'})"
        for key, old, new in changes
    ]
    if any(RESUME_REFUSED.fullmatch(key) for key, _, _ in changes):
        raise ConfigError(f"config differs from the run in {where}: {'; '.join(lines)}. Use another --workdir for it")
    return lines
