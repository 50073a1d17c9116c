"""How much of what was forgotten comes back on the straight line between a fine-tuned run and its start (WiSE-FT, arXiv:2109.01903)?

    python -m lm.interpolate runs/finetune --out=runs/mixed

Weights are (1 - share) x start + share x run, adapters melted in. Each share is evaluated on the run's validation split and on the
remembered text; the one that is taken is a run like any other.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lm.checkpoint import compare
from lm.config import Config, ConfigError, LoraConfig, TrainConfig, UserError
from lm.evaluate import EvalStep, evaluate, make_eval_step
from lm.forgetting import Meter, criterion, describe, make_meter, measure, open_remembered
from lm.hf.source import is_foreign
from lm.logger import plot_mixes, write_json
from lm.model.adapters import merge
from lm.params import Params, join_stacks, split_stacks
from lm.run_folder import claim_folder, write_run

Row = dict[str, float]


def mix(start: Params, tuned: Params, share: float) -> Params:
    """(1 - share) x start + share x tuned, in float32; the ends are those weights themselves."""
    if share in (0.0, 1.0):
        return tuned if share else start
    return {path: (1 - share) * leaf + share * tuned[path] for path, leaf in start.items()}


def read_shares(text: str) -> list[float]:
    """
    >>> read_shares("1,0,0.5")
    [0.0, 0.5, 1.0]
    """
    try:
        shares = sorted({float(word) for word in text.split(",")})
    except ValueError:
        shares = [math.nan]
    if not all(0 <= share <= 1 for share in shares):
        raise ConfigError(f"--shares must be numbers from 0 (the start) to 1 (the run), as 0,0.25,0.5, got {text!r}")
    return shares


def choose(rows: Sequence[Row], train: TrainConfig) -> Row:
    """Returns the row of the best loss + weight x change (or what else train.stop_on says); a tie goes to the start's side."""
    return min(rows, key=lambda row: criterion(train, row["eval/loss"], _forgotten(row)))


def _forgotten(row: Row) -> dict[str, float]:
    return {key.removeprefix("forget/"): value for key, value in row.items() if key.startswith("forget/")}


def make_table(rows: Sequence[Row], taken: float) -> str:
    lines = [f"{'share':>6} {'eval/loss':>10} {'forget/loss':>12} {'change':>9} {'kl':>8}"]
    for row in rows:
        mark = "  <- taken" if row["share"] == taken else ""
        numbers = f"{row['forget/loss']:>12.4f} {row['forget/change']:>+9.4f} {row['forget/kl']:>8.4f}"
        lines.append(f"{row['share']:>6.3g} {row['eval/loss']:>10.4f} {numbers}{mark}")
    return "\n".join(lines)


def plain_config(config: Config, mesh: Any) -> Config:
    """The same model without adapters, all of it in float32."""
    optim = replace(config.optim, train=((".*", True),), frozen_dtype="float32")
    return replace(config, lora=LoraConfig(), optim=optim, mesh=replace(config.mesh, **mesh.shape))


def check_same_model(start: Params, tuned: Params, names: tuple[str, str]) -> None:
    problems = [
        *compare(start, tuned, cast=True),
        *(f"{path}: not in {names[1]}" for path in start if path not in tuned),
    ]
    if problems:
        raise UserError(f"{names[0]} and {names[1]} are not the same model:\n  " + "\n  ".join(problems[:40]))


def measure_mixes(
    start: Params, tuned: Params, shares: Sequence[float], grouped: Mapping[str, Any], step: EvalStep, meter: Meter,
    data: Any, train: TrainConfig, say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Returns of each share of per-layer `tuned` what it comes to on both texts; `grouped` are the model's paths and shardings."""
    put = jax.jit(lambda leaves: join_stacks(leaves, list(grouped)), out_shardings=dict(grouped))
    mixing, first, rows = jax.jit(mix, static_argnums=2), put(start), []
    size = meter.batch_size
    for share in shares:
        weights = put(mixing(start, tuned, share))
        batches = data.eval_batches("validation", size, (0, size))
        result = evaluate(step, weights, batches, meter.mesh, size, meter.model, train.eval_rows)
        forgotten = measure(meter, weights, first)
        assert result is not None
        assert forgotten is not None
        parts = {"eval": result, "forget": forgotten}
        rows.append(
            {"share": share, **{f"{at}/{key}": value for at, part in parts.items() for key, value in part.items()}}
        )
        say(f"share {share:g}: eval loss {result['loss']:.4f}, {describe(forgotten)}")
    return rows


USAGE = """
usage: python -m lm.interpolate WORKDIR --out=DIR [--with=START] [--shares=0,0.25,0.5,0.75,1] [--take=SHARE]
         [--remember=pretraining|FILE|FOLDER] [--step=best|last|N] [--config.data.KEY=VALUE ...]

Mixes the weights of the run in WORKDIR with those of its start (init.source; START is another run, or hf:FOLDER), evaluates every
share on the run's validation split and on the remembered text, and writes one mix to DIR as a run, with interpolate.json and
interpolate.png: that of --take, else the one of the lowest eval/loss + train.forget_weight x forget/change.

example: python -m lm.interpolate runs/finetune --out=runs/mixed --remember=pretraining
"""


def main(argv: list[str]) -> None:
    from data_pipeline.batch import open_data
    from data_pipeline.schema import split_flags
    from lm import build
    from lm.checkpoint import read_meta
    from lm.parts import make_parts
    from lm.start import load_params

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    words = [word for word in argv if not word.startswith("-")]
    names = {"with": "", "shares": "0,0.25,0.5,0.75,1", "out": "", "take": "", "remember": "", "step": "best"}
    flags, extra = split_flags([word for word in argv if word.startswith("-")], names, USAGE)
    if len(words) != 1 or extra or not flags["out"]:
        raise ConfigError("name a run and where to write: python -m lm.interpolate WORKDIR --out=DIR; see --help")
    shares, taken = which_shares(flags)
    claim_folder(flags["out"])
    source = words[0]
    loaded = build.load_run(source, flags["step"], say)
    config = mixing_config(loaded.config, loaded.mesh, flags, source)
    place, data = config.init.source, open_data(config.data, log=say)
    if not data.has_split("validation"):
        raise UserError(f"the data of {source} have no validation split to evaluate on")
    text = open_remembered(config, loaded.tokenizer_sha256, open_data, say)
    assert text is not None
    parts = make_parts(config, loaded.model.config.vocab_size, 1.0)
    tuned = merge(split_stacks(loaded.params), loaded.model.config.adapters)[0]
    if is_foreign(place):
        start = split_stacks(load_params(parts, loaded.tokenizer_sha256, say))
    else:
        begun = build.load_run(place, config.init.step, say, config.data.seq_len)
        if begun.tokenizer_sha256 != loaded.tokenizer_sha256:
            raise UserError(f"{place} has another tokenizer than {source}")
        start = merge(split_stacks(begun.params), begun.model.config.adapters)[0]
    check_same_model(start, tuned, (place, source))

    meter = make_meter(text, parts.model, parts.mesh, config.train)
    step = make_eval_step(parts.model, data.tokenizer.token_bytes(), config.train.loss_chunk)
    grouped = {path: leaf.sharding for path, leaf in parts.state.params.items()}
    rows = measure_mixes(start, tuned, shares, grouped, step, meter, data, config.train, say)
    best = choose(rows, config.train)["share"] if taken is None else taken
    meta = {**read_meta(source, loaded.step), "start": f"{best:g} of {source} mixed with {1 - best:g} of {place}"}
    run = loaded.config
    plain = replace(config, mesh=run.mesh, init=run.init, train=run.train)
    write_run(flags["out"], source, plain, mix(start, tuned, best), meta, loaded.step)
    report(Path(flags["out"]), {"run": source, "start": place, "taken": best, "rows": rows})
    if taken is None and best == 0:
        say("by this criterion the start itself is best: lower train.forget_weight of the run, or --take a share")


def which_shares(flags: Mapping[str, str]) -> tuple[list[float], float | None]:
    """Returns the shares to evaluate, and the one to take where --take names it."""
    shares, taken = read_shares(flags["shares"]), read_shares(flags["take"])[0] if flags["take"] else None
    return sorted({*shares, *(() if taken is None else (taken,))}), taken


def mixing_config(config: Config, mesh: Any, flags: Mapping[str, str], run: str) -> Config:
    """The config of a run as a plain model that starts from what it is mixed with, and that remembers something."""
    place = flags["with"] or config.init.source
    if not place:
        raise UserError(f"{run} began from random weights: name what to mix it with, as --with=runs/pretrain")
    remember = flags["remember"] or config.train.remember or "pretraining"
    stop_on = config.train.stop_on if config.train.stop_on != "loss" else "loss+change"
    train = replace(config.train, remember=remember, stop_on=stop_on)
    init = replace(config.init, source=place)
    if place != config.init.source:
        init = replace(init, step="best", fresh=())
    return replace(plain_config(config, mesh), train=train, init=init)


def report(folder: Path, found: Mapping[str, Any]) -> None:
    """Leaves interpolate.json and interpolate.png beside the mix, and prints the table and the row that was taken."""
    rows, taken = found["rows"], found["taken"]
    write_json(folder / "interpolate.json", dict(found))
    plot_mixes(folder / "interpolate.png", rows, taken)
    print(make_table(rows, taken))
    print(json.dumps({"workdir": str(folder), **next(row for row in rows if row["share"] == taken)}))


if __name__ == "__main__":
    from data_pipeline.schema import run_main

    run_main(main)
