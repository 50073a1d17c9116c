"""What does a model forget while it is fine-tuned: how much worse is it on text that its start knew, how far from that start?

`change` is loss now - loss of the start, in nats a token of the remembered text; `kl` is KL(start || now), the mean over the same
targets' places of sum_v p_start(v) (log p_start(v) - log p_now(v)), over the whole vocabulary. Both forwards run on each batch, so
that nothing has to be stored; of the start only trained leaves are held a second time (lm/anchor.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.config import AugmentConfig, DataConfig, SplitConfig, TokenizerConfig
from lm.checkpoint import find_step, read_meta
from lm.config import Config, ModelConfig, TrainConfig, UserError, from_mapping
from lm.evaluate import mean_and_stderr, sum_rows
from lm.hf.source import is_foreign
from lm.losses import Sums, count_pieces, sum_in_pieces, sum_losses, token_losses
from lm.model.transformer import Model
from lm.params import Params
from lm.sharding import local_rows, row_shards, whole_rows

Log = Callable[[str], None]
OpenData = Callable[..., Any]  # data_pipeline.batch.open_data
CompareStep = Callable[[Params, Params, Mapping[str, jax.Array]], dict[str, jax.Array]]
PRETRAINING = "pretraining"
SUMS = ("nll", "start_nll", "kl", "weight")


@dataclass(frozen=True)
class Remembered:
    """Opened text that the start knew."""

    name: str
    data: Any  # as lm.batch.Data
    split: str


@dataclass(frozen=True)
class Meter:
    """What measures forgetting during a run; `measure` reads it."""

    text: Remembered
    step: CompareStep
    mesh: Mesh
    batch_size: int  # rows
    model: ModelConfig
    max_rows: int  # 0: all


def make_compare_step(model: Model, chunk: int = 0) -> CompareStep:
    """Returns a jitted (params, start, batch) -> per-row sums [B]: nll, start_nll, kl, weight.

    `start` holds the leaves that differ, the others are those of `params`; `chunk` as in train.loss_chunk.
    """

    @jax.jit
    def compare_step(params: Params, start: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        before = {**params, **start}
        inputs = (batch["tokens"], batch["positions"], batch["segments"])
        x_BTD, D = jnp.concatenate([model.hidden(p, *inputs)[0] for p in (params, before)], -1), model.config.dim
        start_head = before[model.head_path].astype(x_BTD.dtype)

        def sum_piece(head: jax.Array, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
            logits_BTV, start_BTV = model.unembed(head, x_BTD[..., :D]), model.unembed(start_head, x_BTD[..., D:])
            log_p_BTV, log_start_BTV = jax.nn.log_softmax(logits_BTV), jax.nn.log_softmax(start_BTV)
            losses = {
                "nll": token_losses(logits_BTV, batch["targets"])["nll"],
                "start_nll": token_losses(start_BTV, batch["targets"])["nll"],
                "kl": (jnp.exp(log_start_BTV) * (log_start_BTV - log_p_BTV)).sum(-1),
            }
            return sum_losses(losses, batch["weights"], axis=1)

        (B, T), mesh = batch["tokens"].shape, model.mesh
        skip = mesh is None or mesh.shape["context"] == 1
        tokens = B * T // (1 if mesh is None else row_shards(mesh))
        pieces = count_pieces(tokens, T, 2 * model.config.vocab_size, chunk, skip)
        targets = {name: batch[name] for name in ("targets", "weights")}
        return sum_in_pieces(sum_piece, params[model.head_path], x_BTD, targets, pieces, False, skip=skip)

    return compare_step


def make_meter(text: Remembered, model: Model, mesh: Mesh, train: TrainConfig) -> Meter:
    size = whole_rows(train.eval_batch_size, mesh)
    step = make_compare_step(model, train.loss_chunk)
    return Meter(text, step, mesh, size, model.config, train.remember_rows)


def measure(
    meter: Meter, params: Params, start: Params, stopped: Callable[[], bool] = lambda: False
) -> dict[str, float] | None:
    """Returns loss, start_loss, change, change_stderr and kl (nats a token) and tokens; None if `stopped()` said so."""
    batches = meter.text.data.eval_batches(meter.text.split, meter.batch_size, local_rows(meter.mesh, meter.batch_size))
    table = sum_rows(
        lambda batch: meter.step(params, start, batch), SUMS, batches, meter.mesh, meter.batch_size, meter.model,
        meter.max_rows, stopped,
    )  # fmt: skip
    if table is None:
        return None
    nll, start_nll, kl, weight = table.T
    change, stderr = mean_and_stderr(nll - start_nll, weight)
    return {
        "loss": float(nll.sum() / weight.sum()), "start_loss": float(start_nll.sum() / weight.sum()), "change": change,
        "change_stderr": stderr, "kl": float(kl.sum() / weight.sum()), "tokens": float(weight.sum()),
    }  # fmt: skip


def criterion(train: TrainConfig, loss: float, forgotten: Mapping[str, float]) -> float:
    """What decides which evaluation is best and when to stop (train.stop_on), in nats a token; lower is better."""
    part = {"loss": 0.0, "loss+change": forgotten.get("change", math.nan), "loss+kl": forgotten.get("kl", math.nan)}
    return loss + (train.forget_weight * part[train.stop_on] if train.stop_on != "loss" else 0.0)


def describe(forgotten: Mapping[str, float]) -> str:
    """
    >>> describe({"loss": 3.25, "change": 0.125, "change_stderr": 0.01, "kl": 0.0625})
    'remembered text 3.2500 (+0.1250 +- 0.0100), KL 0.0625'
    """
    change = f"{forgotten['change']:+.4f} +- {forgotten['change_stderr']:.4f}"
    return f"remembered text {forgotten['loss']:.4f} ({change}), KL {forgotten['kl']:.4f}"


def open_remembered(config: Config, tokenizer_sha256: str, open_data: OpenData, log: Log) -> Remembered | None:
    """Opens what train.remember names, in rows of this run's length; None where it names nothing.

    `open_data` is `data_pipeline.batch.open_data`. Raises UserError for text that is not there, has no rows or is of another tokenizer.
    """
    place = config.train.remember
    if not place:
        return None
    if place == PRETRAINING:
        data, splits = _open_pretraining(config, open_data, log), ("validation",)
    else:
        try:
            data, splits = open_data(_data_of(config, place), log=log), ("validation", "train")
        except UserError as error:
            raise UserError(f"config.train.remember={place!r}: {error}") from None
    split = next((split for split in splits if data.has_split(split)), None)
    if split is None:
        raise UserError(
            f"config.train.remember={place!r}: the data of {config.init.source} have no validation rows; name a file of such text"
        )
    if data.tokenizer.sha256 != tokenizer_sha256:
        raise UserError(
            f"config.train.remember={place!r}: its tokenizer (sha256 {data.tokenizer.sha256[:12]}) is not this run's "
            f"({tokenizer_sha256[:12]}): name a file of text, or a folder prepared with --config.data.tokenizer.path="
            f"{config.data.tokenizer.path or config.init.source + '/tokenizer'}"
        )
    rows = data.summary()["rows"][split]
    used = min(rows, config.train.remember_rows or rows)
    log(
        f"remembered text: {used:,} of {rows:,} {split} rows of {place if place != PRETRAINING else config.init.source}"
    )
    return Remembered(place, data, split)


def _at_this_length(data: DataConfig, config: Config) -> DataConfig:
    """The same text in rows as this run's model is built for, unchanged and none refused."""
    return replace(data, seq_len=config.data.seq_len, augment=AugmentConfig(), min_completion_kept=0.0)


def _data_of(config: Config, place: str) -> DataConfig:
    """The data section of a file, all of whose text is read, or of a prepared folder."""
    prepared, source = (Path(place).expanduser() / "manifest.json").is_file(), config.init.source
    tokenizer = config.data.tokenizer
    if not is_foreign(source):
        tokenizer = TokenizerConfig(kind="auto", path=f"{source}/tokenizer")
    clean = replace(config.data.clean, near_dedup=0.0, decontaminate="", repeated_lines=0)
    data = replace(
        config.data, path="" if prepared else place, train_path="", validation_path="", test_path="", sources={}, prepared=place if prepared else "", tokenizer=tokenizer,
        split=SplitConfig(validation=0.0, test=0.0), clean=clean, mixture=(), temperature=0.0, label_shares=(), replay=0.0,
        streaming=False,
    )  # fmt: skip
    return _at_this_length(data, config)


def _open_pretraining(config: Config, open_data: OpenData, log: Log) -> Any:
    source = config.init.source
    instead = "Name a file of such text instead: train.remember=FILE"
    if is_foreign(source):
        raise UserError(f"train.remember='pretraining': {source} does not bring the text it was trained on. {instead}")
    meta = read_meta(source, find_step(source, config.init.step, log))
    theirs = from_mapping(Config, meta["config"]).data
    try:
        data = open_data(theirs, log=log)
        if data.fingerprint != meta["data_sha256"]:
            log(
                f"warning: the data of {source} are not what it was trained on (sha256 {data.fingerprint[:12]}, then "
                f"{meta['data_sha256'][:12]}): what is remembered may hold text that it learned from. {instead}"
            )
        shorter = _at_this_length(theirs, config)
        return data if shorter == theirs else open_data(shorter, log=log)
    except UserError as error:
        raise UserError(
            f"config.train.remember='pretraining': the data of {source} cannot be opened: {error}. {instead}"
        ) from None
