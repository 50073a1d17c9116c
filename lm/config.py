"""Which keys does a run have, and what do they mean?

`Config` is the whole configuration; its `data` section is `data_pipeline.config.DataConfig`. Every default stands here
or there, once. `lm/check.py` lists all that is wrong with one before anything is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from data_pipeline.config import DataConfig, SourceConfig
from data_pipeline.schema import ConfigError as ConfigError
from data_pipeline.schema import UserError as UserError
from data_pipeline.schema import diff as diff
from data_pipeline.schema import from_mapping as from_mapping
from data_pipeline.schema import to_json as to_json


@dataclass(frozen=True)
class RopeScaling:
    """How positions beyond those of the pretraining are rotated (lm/model/rope.py has the formulas)."""

    kind: str = "none"  # none | linear | dynamic | yarn | llama3 | longrope
    factor: float = 1.0  # how many times longer
    original_len: int = 0  # positions of the pretraining: dynamic, yarn, llama3, longrope
    attention_factor: float = 1.0  # yarn, longrope: multiplies cos and sin
    beta_fast: float = 32.0  # yarn: dimensions with more turns than this in original_len stay as they are ...
    beta_slow: float = 1.0  # ... those with fewer are slowed by factor
    truncate: bool = True  # yarn: the edges between are whole dimensions
    low_freq_factor: float = 1.0  # llama3: as beta_slow ...
    high_freq_factor: float = 4.0  # ... and beta_fast
    short_factor: tuple[float, ...] = ()  # longrope: of each pair of dimensions, in documents up to original_len
    long_factor: tuple[float, ...] = ()  # longrope: in longer ones


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters beside the matrices in blocks (lm/model/adapters.py). `adapters_only` freezes all else."""

    rank: int = 0  # 0: no adapters
    alpha: float = 16.0  # their scale is alpha / rank ...
    rslora: bool = False  # ... or alpha / sqrt(rank)
    dropout: float = 0.0  # on what goes into an adapter
    targets: tuple[str, ...] = (".*",)  # which matrices get one: regexes on whole paths, such as block_.*/attn/[qv]
    dora: bool = False  # the length of each column is learned apart from its direction


@dataclass(frozen=True)
class Adapters:
    """What `config.lora` comes to in one model."""

    rank: int = 0
    scale: float = 1.0
    dropout: float = 0.0
    dora: bool = False
    layers: tuple[tuple[str, ...], ...] = ()  # of each layer, the matrices with an adapter: attn/q, ...


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
    experts: int = 0  # MLPs of width mlp_dim, of which each token goes to a few (mixture of experts); 0: one, for all
    experts_per_token: int = 2
    expert_norm: bool = True  # the shares of a token's experts are scaled to sum 1
    activation: str = "silu"  # silu | gelu | gelu_tanh | relu2 (squared ReLU)
    vocab_size: int = 0  # 0: what the tokenizer has
    max_len: int = 0  # learned positions: rows of the table; 0: data.seq_len
    position: str = "rope"  # rope | learned | none
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0  # of layers with a window, which then know no scaling; 0: as the others
    rope_fraction: float = 1.0  # share of a head's dimensions that is rotated
    rope_scaling: RopeScaling = RopeScaling()
    norm: str = "rmsnorm"  # rmsnorm | layernorm (with bias)
    norm_eps: float = 1e-6
    norm_order: str = "pre"  # norms stand before attention and MLP, or after them (post), or both
    norm_offset: bool = False  # scales are held less 1 (Gemma)
    parallel: bool = False  # attention and MLP of a block read the same x (GPT-NeoX)
    qk_norm: bool = False  # normalise each query and key head
    qk_norm_joint: bool = False  # all heads as one vector (OLMo 2)
    attn_bias: bool = False  # biases on q, k, v
    attn_out_bias: bool = False
    attn_scale: float = 0.0  # scores are divided by the square root of this; 0: of the head size
    window: int = 0  # each token sees this many positions back, itself included; 0: all
    global_layers: tuple[int, ...] = ()  # layers without the window
    attn_softcap: float = 0.0  # c * tanh(scores / c); 0: off
    logit_softcap: float = 0.0  # the same on the output logits
    tie_embeddings: bool = True  # the head is the embedding, transposed
    embed_scale: bool = False  # multiply embeddings by sqrt(dim)
    init_std: float = 0.02
    init_out: str = "scaled"  # attn/out and mlp/down start at: scaled (init_std / sqrt(2 layers)) | zero
    dropout: float = 0.0  # on embeddings, attention weights and both branch outputs
    attention: str = "auto"  # auto | xla | chunked | cudnn | splash: which program computes it, lm/model/kernels.py
    dtype: str = "float32"  # of the computation: float32 | bfloat16; master weights are always float32
    scan: bool = False  # loop over runs of layers instead of unrolling: compile time stays flat in depth
    remat: str = "none"  # recompute in the backward: none | dots (keep matmul results) | full
    classes: int = 0  # what a classifier tells apart, by a head of its own; 0: a language model (or what the data have)
    pooling: str = "last"  # classifier: it reads the last place of each text, or the mean of all its places
    base_dim: int = 0  # muP (lm/mup.py): the width that rates were tuned at, from which this one's follow; 0: standard
    base_head_dim: int = 0  # muP: its head size; 0: as here, so that heads grow in number

    adapters = Adapters()  # no key, so no field: `AdaptedModel` has those of config.lora

    def is_local(self, layer: int) -> bool:
        """Says whether a layer has the window."""
        return self.window > 0 and layer not in self.global_layers

    @property
    def head_path(self) -> str:
        """The parameter that turns hidden states into logits."""
        if self.classes:
            return "classifier"
        return "embed" if self.tie_embeddings else "head"

    @property
    def outputs(self) -> int:
        """How many logits there are at a place."""
        return self.classes or self.vocab_size

    @property
    def q_head_dim(self) -> int:
        return self.head_dim or self.dim // self.heads

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads or self.heads

    @property
    def width_multiplier(self) -> float:
        """How many times wider this is than base_dim; 1 without."""
        return self.dim / self.base_dim if self.base_dim else 1.0

    @property
    def score_scale(self) -> float:
        """Scores are divided by the square root of this: attn_scale, which grows as the square of the head size in muP."""
        base = self.base_head_dim or self.q_head_dim
        return (self.attn_scale or base) * (self.q_head_dim / base) ** 2

    @property
    def mlp_width(self) -> int:
        return self.mlp_dim or (-(-8 * self.dim // 3 // 64) * 64 if self.mlp_gated else 4 * self.dim)


@dataclass(frozen=True)
class AdaptedModel(ModelConfig):
    """What `lm.parts.model_config` makes of config.model and config.lora together."""

    adapters: Adapters = Adapters()


def with_layers(model: ModelConfig, layers: Sequence[int]) -> ModelConfig:
    """The model with only these of its layers, in order."""
    whole = tuple(i for i, layer in enumerate(layers) if layer in model.global_layers)
    few = replace(model, layers=len(layers), global_layers=whole)
    kept = [model.adapters.layers[i] for i in layers if model.adapters.layers]
    return replace(few, adapters=replace(few.adapters, layers=tuple(kept))) if kept else few


Table = tuple[tuple[str, bool | int], ...]


@dataclass(frozen=True)
class OptimConfig:
    """Which parameters train, and how. Tables are ordered (regex on the whole parameter path, value): first match wins."""

    train: tuple[tuple[str, bool | int], ...] = (
        (".*", True),
    )  # trained (True), frozen (False), or trained after N steps
    name: str = "adamw"  # adamw | sgd | lion | adafactor | muon (matrices in blocks; adamw for the rest)
    peak_lr: float | str = (
        1e-3  # "auto": a tenth of the peak of the checkpoint at init.source, else by lm/range_test.py
    )
    schedule: str = (
        "cosine"  # constant | linear | cosine | cosine_restarts | exponential | wsd | inverse_sqrt | plateau
    )
    warmup_steps: int = 0
    decay_steps: int = 0  # wsd: length of the final decay; 0: a fifth of the run
    end_lr_ratio: float = 0.1  # linear, cosine, exponential, wsd: last rate / peak; cosine_restarts: of each cycle
    plateau_factor: float = 0.5  # plateau: multiply the rate by this ...
    plateau_patience: int = 2  # ... after this many evaluations without a new best
    lr_multipliers: tuple[tuple[str, float], ...] = ((".*", 1.0),)
    weight_decay: float = 0.1  # decoupled; times the rate
    decay: tuple[tuple[str, bool], ...] = ((r".*(scale|bias)", False), (".*", True))  # what weight_decay applies to
    frozen_dtype: str = "float32"  # of weights that do not train: float32 | bfloat16 | int8 | nf4 (matrices in blocks, the rest bfloat16)
    clip_norm: float = 1.0  # largest norm of the gradient over the trained parameters; 0: off
    b1: float = 0.9  # adamw, lion; momentum of sgd and muon is `momentum`
    b2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    layer_decay: float = (
        1.0  # rate of each block / rate of the block above it (1 for norm_out and head; embeddings lowest)
    )
    pull_to_start: float = 0.0  # times (weight - its start), as weight_decay is times the weight; times the rate: L2-SP
    restart_steps: int = 0  # cosine_restarts: length of the first cycle, which begins after the warm-up
    restart_length_factor: float = 1.0  # each next cycle is this many times as long ...
    restart_peak_factor: float = 1.0  # ... and begins at this many times the peak of the one before


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 1000
    epochs: float = 0.0  # passes over the rows of the train split instead of steps; 0: as `steps` says
    seed: int = 0  # initial weights, dropout, samples
    micro_batches: int = 1  # cut the batch in this many parts, one after the other; same result, less memory
    loss_chunk: int = 0  # tokens whose logits exist at a time; 0: as many as 256 MiB hold, of a large vocabulary
    z_loss: float = 0.0  # weight of log(Z)^2
    label_smoothing: float = 0.0
    balance_loss: float = 0.0  # weight of how unevenly each document uses the experts (lm/model/experts.py: balance)
    log_every: int = 10  # steps
    eval_every: int = 100  # steps; 0: only at the end (when there is validation data)
    eval_at_start: bool = False  # evaluate before step 1 too: what fine-tuning has to beat
    eval_batch_size: int = 32  # rows; changes speed, not results
    eval_rows: int = 0  # at most this many rows of the validation split; 0: all of it
    save_every: int = 0  # steps; 0: at each evaluation
    keep_last: int = 2  # checkpoints kept besides the best one
    early_stop_patience: int = 0  # evaluations without a new best before stopping; 0: never
    early_stop_min_delta: float = 0.0  # a new best is better by more than this (nats a token)
    max_bad_steps: int = 8  # steps with a non-finite loss are skipped; this many in a row end the run
    sample_prompts: tuple[str, ...] = ()  # a sample is written for each at every evaluation
    sample_tokens: int = 64
    focal_gamma: float = 0.0  # losses times (1 - p) ** gamma, p the probability of the target
    logit_adjustment: float = 0.0  # classifier: add so much of log(share of the class) to the logits in training
    class_counts: tuple[int, ...] = ()  # training documents of each class, for logit_adjustment; (): what the data have
    refusal: str = ""  # classifier: the class that stands for no answer, for what it is not sure of; "": none
    peak_tflops: float = 0.0  # of one device, for `mfu`; 0: the chip's known figure, or a measured matmul
    ema_decay: float = 0.0  # average the weights, such as 0.999; evaluation and all who load the run take that; 0: off
    remember: str = ""  # what the start knew, to watch it being forgotten: "pretraining" | a file | a prepared folder
    remember_rows: int = 256  # at most so many rows of it at an evaluation; 0: all
    stop_on: str = "loss"  # what is best and ends a run: loss | loss+change | loss+kl of the remembered text, times ...
    forget_weight: float = 1.0  # ... this


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 (one axis at most): all that are left."""

    data: int = -1  # rows of the batch
    fsdp: int = 1  # rows of the batch, and weights sharded
    context: int = 1  # places of each row, for rows too long for one device
    tensor: int = 1  # heads, mlp width and vocabulary


@dataclass(frozen=True)
class InitConfig:
    """Where a new run's weights come from. A run that has a checkpoint of its own resumes that instead."""

    source: str = ""  # workdir of an earlier run; "": random weights
    step: str = "best"  # which of its checkpoints: best | last | a step number; with :raw not their average
    fresh: tuple[str, ...] = ()  # parameter patterns that keep their random start
    cast: bool = False  # accept parameters stored in another dtype


@dataclass(frozen=True)
class DebugConfig:
    """Looks into a run without changing what it computes; a resumed run may set it anew."""

    profile_steps: tuple[int, ...] = ()  # (first, last) step to trace into WORKDIR/profile, as the log counts; (): none


@dataclass(frozen=True)
class Config:
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    init: InitConfig = InitConfig()
    debug: DebugConfig = DebugConfig()


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
    return diff(defaults(config.data.sources), to_json(config))


def defaults(sources: Iterable[str]) -> dict[str, Any]:
    """Every key with its default, as JSON values, those of these sources among them."""
    default = to_json(Config())
    default["data"]["sources"] = {name: to_json(SourceConfig()) for name in sources}
    return default


def last_layers(count: int, layers: int, also: str = "norm_out/.*") -> Table:
    """The `optim.train` table that trains the last `count` of `layers` blocks and what matches `also`.

    >>> last_layers(2, 12)
    (('block_10/.*', True), ('block_11/.*', True), ('norm_out/.*', True), ('.*', False))
    """
    blocks = tuple((f"block_{i:02d}/.*", True) for i in range(layers - count, layers))
    return (*blocks, (also, True), (".*", False))


def unfreeze_gradually(layers: int, every: int, also: str = "norm_out/.*|head", blocks: int = 0) -> Table:
    """The `optim.train` table that begins with the last of `layers` blocks and `also`, and adds one block below after `every` steps.

    `blocks`: how many in all; 0: every block, and after the first one what is left (embeddings), as ULMFiT does (arXiv:1801.06146).

    >>> unfreeze_gradually(layers=8, every=100, blocks=3)
    (('norm_out/.*|head', True), ('block_07/.*', True), ('block_06/.*', 100), ('block_05/.*', 200), ('.*', False))
    """
    steps = [i * every or True for i in range(blocks or layers)]
    rows = tuple((f"block_{layers - 1 - i:02d}/.*", step) for i, step in enumerate(steps))
    return ((also, True), *rows, (".*", False if blocks else layers * every))


def adapters_only(also: str = "") -> Table:
    """The `optim.train` table that trains the adapters of `config.lora`, what matches `also`, and nothing else.

    >>> adapters_only("embed|head")
    (('.*_(lora_[ab]|dora_scale)', True), ('embed|head', True), ('.*', False))
    """
    return ((".*_(lora_[ab]|dora_scale)", True), *([(also, True)] if also else []), (".*", False))


def is_off(value: Any) -> bool:
    """Says whether a number switches its part off by being 0; a traced one, whose value lm/sweep gives later, never does."""
    return isinstance(value, int | float) and not value
