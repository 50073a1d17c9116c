"""How good is a model on a whole split, exactly?

Every target counts once, whatever the batch size, packing or device count; sums are carried in float64.

    python -m lm.evaluate --workdir=runs/finetune --split=test
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lm.batch import check_batch
from lm.config import ModelConfig
from lm.decisions import macro_f1
from lm.losses import Sums, count_pieces, sum_in_pieces, sum_losses, token_losses
from lm.metrics import bits, perplexity
from lm.model.transformer import Model
from lm.params import Params, to_host
from lm.sharding import put_batch, row_shards, whole_rows

EvalStep = Callable[[Params, Mapping[str, jax.Array]], dict[str, jax.Array]]


def read_classes(model: Model, params: Params, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns a classifier's logits [B, T, C], and the labels [B, T], -1 where no text ends."""
    x_BTD, _ = model.hidden(params, batch["tokens"], batch["positions"], batch["segments"])
    labels_BT = jnp.where(batch["weights"] > 0, batch["targets"], -1)
    return model.unembed(params[model.head_path], x_BTD), labels_BT


def make_eval_step(model: Model, token_bytes: np.ndarray, chunk: int = 0) -> EvalStep:
    """Returns a jitted (params, batch) -> per-row sums [B]: nll, objective, correct, bytes, weight.

    `token_bytes` [V] says how many bytes of text each id stands for; `chunk` as in train.loss_chunk. Of a classifier also
    `labels` and `predicted` [B, T]: numbers of classes, -1 in `labels` where there is no target.
    """
    padded = np.zeros(model.config.vocab_size, np.float32)
    padded[: len(token_bytes)] = token_bytes

    @jax.jit
    def eval_step(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        if model.config.classes:
            logits_BTC, labels_BT = read_classes(model, params, batch)
            losses, predicted_BT = token_losses(logits_BTC, batch["targets"]), logits_BTC.argmax(-1)
            losses |= {"correct": predicted_BT == labels_BT, "bytes": jnp.zeros_like(losses["nll"])}
            ends_BT = (labels_BT >= 0).astype(jnp.float32)  # each text counts once, whatever its class weighs
            return sum_losses(losses, ends_BT, axis=1) | {"labels": labels_BT, "predicted": predicted_BT}
        x_BTD, _ = model.hidden(params, batch["tokens"], batch["positions"], batch["segments"])

        def sum_piece(head: jax.Array, x_BTD: jax.Array, batch: Mapping[str, jax.Array]) -> Sums:
            logits_BTV, targets_BT = model.unembed(head, x_BTD), batch["targets"]
            losses = token_losses(logits_BTV, targets_BT)
            losses["correct"] = (logits_BTV.argmax(-1) == targets_BT).astype(jnp.float32)
            losses["bytes"] = jnp.asarray(padded)[targets_BT]
            return sum_losses(losses, batch["weights"], axis=1)

        (B, T), mesh = batch["tokens"].shape, model.mesh
        skip = mesh is None or mesh.shape["context"] == 1
        tokens = B * T // (1 if mesh is None else row_shards(mesh))
        pieces = count_pieces(tokens, T, model.config.vocab_size, chunk, skip)
        targets = {name: batch[name] for name in ("targets", "weights")}
        return sum_in_pieces(sum_piece, params[model.head_path], x_BTD, targets, pieces, False, skip=skip)

    return eval_step


def sum_rows(
    sums_of: Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]], keys: Sequence[str],
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, batch_size: int, model: ModelConfig, max_rows: int = 0,
    stopped: Callable[[], bool] = lambda: False, progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray | None:  # fmt: skip
    """Returns the sums `keys` of all rows (or the first `max_rows`) that have a target, [rows, keys] in float64.

    `keys` ends with "weight". None if `stopped()` said so.
    """
    rows: list[np.ndarray] = []
    for number, batch in enumerate(batches):
        if max_rows and number * batch_size >= max_rows:
            break
        if stopped():
            return None
        check_batch(batch, model, f"evaluation batch {number}")
        sums = sums_of(put_batch(batch, mesh, batch_size))
        part = np.stack([to_host(sums[key]) for key in keys], axis=1)
        rows.append(part.astype(np.float64))
        progress((number + 1) * batch_size)
    table = np.concatenate(rows) if rows else np.zeros((0, len(keys)))
    if max_rows:
        table = table[:max_rows]
    return table[table[:, -1] > 0]


def evaluate(
    eval_step: EvalStep, params: Params, batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, batch_size: int,
    model: ModelConfig, max_rows: int = 0, stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, float] | None:  # fmt: skip
    """Evaluates all batches (or the first `max_rows` rows); returns metrics, or None if `stopped()` said so.

    loss is in nats a token; loss_stderr its standard error, taking rows as independent (ratio estimator). Of a classifier
    loss is in nats a text, and macro_f1 and the number of texts stand beside it.
    """
    told: list[tuple[np.ndarray, np.ndarray]] = []

    def sums_of(batch: Mapping[str, jax.Array]) -> Mapping[str, jax.Array]:
        sums = eval_step(params, batch)
        if model.classes:
            told.append((to_host(sums["labels"]), to_host(sums["predicted"])))
        return sums

    keys = ("nll", "correct", "bytes", "weight")
    table = sum_rows(sums_of, keys, batches, mesh, batch_size, model, max_rows, stopped, progress)
    if table is None:
        return None
    result = summarise(table)
    if told:
        labels, predicted = (np.concatenate(arrays)[: max_rows or None] for arrays in zip(*told))
        result["macro_f1"] = macro_f1(labels[labels >= 0], predicted[labels >= 0], model.classes)
        result["texts"] = result.pop("tokens")
        for key in ("bits_per_byte", "perplexity"):
            result.pop(key, None)
    return result


def mean_and_stderr(sums: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """The mean a target of per-row sums, and its standard error, taking rows as independent (ratio estimator)."""
    mean, n = sums.sum() / weight.sum(), len(sums)
    residual = sums - mean * weight
    stderr = math.sqrt(float(np.square(residual).sum()) * n / (n - 1)) / weight.sum() if n > 1 else math.nan
    return float(mean), float(stderr)


def summarise(table: np.ndarray) -> dict[str, float]:
    """Turns per-row sums [rows, (nll, correct, bytes, weight)] into metrics."""
    nll, correct, n_bytes, weight = table.sum(0)
    if weight == 0:
        return {"loss": math.nan, "tokens": 0.0}
    loss, stderr = mean_and_stderr(table[:, 0], table[:, 3])
    return {
        "loss": loss,
        "loss_stderr": stderr,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits(float(nll)) / float(n_bytes) if n_bytes else math.nan,
        "accuracy": float(correct / weight),
        "tokens": float(weight),
    }


USAGE = """
usage: python -m lm.evaluate --workdir=DIR [--split=test] [--step=best|last|N] [--batch_size=32] [--config=FILE]

Evaluates a run's checkpoint on one whole split of its data and prints one JSON line. With --config, on that config's
data instead, which must use the run's tokenizer: how good is a pretrained model on the fine-tuning data?

example: python -m lm.evaluate --workdir=runs/finetune --split=test
"""


def main(argv: list[str]) -> None:
    import json

    from data_pipeline.batch import open_data
    from data_pipeline.schema import split_flags
    from lm import build
    from lm.check import follow_classes, read_config
    from lm.config import ConfigError, UserError
    from lm.logger import Ticker

    names = {"workdir": "", "split": "test", "step": "best", "batch_size": "32", "config": ""}
    flags, overrides = split_flags(argv, names, USAGE)
    if (
        not flags["workdir"]
        or (overrides and not flags["config"])
        or not flags["batch_size"].isdigit()
        or int(flags["batch_size"]) < 1
    ):
        raise ConfigError(
            "name a run: python -m lm.evaluate --workdir=DIR [--split=test] [--batch_size=32]; see --help"
        )
    theirs = read_config(flags["config"], overrides) if flags["config"] else None
    loaded = build.load_run(
        flags["workdir"], flags["step"], lambda text: print(text, file=sys.stderr), theirs.data.seq_len if theirs else 0,
        any_task=True,
    )  # fmt: skip
    config = follow_classes(theirs, loaded.config) if theirs else loaded.config
    if config.data.task != loaded.config.data.task:
        raise ConfigError(
            f"{flags['config']} has data.task={config.data.task!r}, the run in {flags['workdir']} {loaded.config.data.task!r}"
        )
    data = open_data(config.data, log=lambda text: print(text, file=sys.stderr))
    build.check_tokenizer(loaded, data.tokenizer, flags["workdir"])
    if data.classes and data.classes.names != loaded.config.data.labels:
        raise ConfigError(
            f"config.data.labels: {data.classes.names}, but the classifier in {flags['workdir']} tells apart "
            f"{loaded.config.data.labels}; leave it out"
        )
    split, size = flags["split"], int(flags["batch_size"])
    if not data.has_split(split):
        raise UserError(f"this run's data has no {split!r} split; see config.data.split")
    size = whole_rows(size, loaded.mesh)  # results do not depend on it
    ticker = Ticker(f"evaluating {split}", data.summary()["rows"][split])
    step = make_eval_step(loaded.model, data.tokenizer.token_bytes(), config.train.loss_chunk)
    batches: Any = data.eval_batches(split, size, (0, size))
    model = loaded.model.config
    result = evaluate(step, loaded.params, batches, loaded.mesh, size, model, progress=ticker.update)
    ticker.close()
    print(json.dumps({"workdir": flags["workdir"], "step": loaded.step, "split": split, **(result or {})}))


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
