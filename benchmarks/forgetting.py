"""What does each way of fine-tuning forget, and what does it learn? A tiny model pretrained on code, tuned to English prose.

    python -m benchmarks.forgetting --out=runs/forgetting

Pretrains once (2 layers x 64 on bytes of two packages of the standard library), then tunes all weights on the pages in docs/ plainly at
the pretraining's peak rate and at a tenth of it, with replay, with the pull to the start, with averaged weights, with adapters, and
mixes the first with its start. The runs in --out are not made again. Two CPU cores: about 3 minutes. docs/forgetting.md has the table.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from configs import base, smoke

ROOT = Path(__file__).resolve().parents[1]
PEAK = 3e-3
WAYS: dict[str, dict[str, Any]] = {
    "plain, peak": {},
    "plain, peak / 10": {"optim.peak_lr": PEAK / 10},
    "replay 30 %": {"data.replay": 0.3},
    "pull to start 30": {"optim.pull_to_start": 30.0},
    "average 0.95": {"train.ema_decay": 0.95},
    "LoRA, rank 8": {"optim.train": "(('.*_lora_[ab]',True),('.*',False))", "lora.rank": 8},
}


def get_config(name: str) -> ml_collections.ConfigDict:
    """`pretrain`, `tune` or `replay`."""
    c: Any = smoke.get_config()
    c.data.split.test = 0.0
    c.model.attention = "xla"
    c.optim.warmup_steps = 5
    c.optim.peak_lr = PEAK
    c.train.log_every = 20
    c.train.steps = 240
    c.train.eval_every = 120
    if name == "pretrain":
        return c
    for source in c.data.sources.values():
        source.replay = True
    if name == "tune":
        for source in list(c.data.sources):
            del c.data.sources[source]
    c.data.sources.prose = base.source(path=str(ROOT / "docs/*.md"), document="paragraph")
    c.init.source = "pretrain"
    c.train.steps = 100
    c.train.eval_every = 10
    c.train.eval_rows = 128
    c.train.eval_at_start = True
    c.train.remember = "pretraining"
    c.train.remember_rows = 128
    return c


def say_to(file: Path, command: Callable[[list[str]], None], words: list[str]) -> None:
    """Runs a command of ours here, what it prints in a file."""
    with open(file, "w") as log, contextlib.redirect_stdout(log), contextlib.suppress(SystemExit):
        command(words)


def train(config: str, name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the summary of a run, which is made where it is missing, with its evaluations as "evals"."""
    from launch import main as launch

    place = Path(name)
    if not (place / "summary.json").is_file():
        print(name, flush=True)
        words = [f"--config={__file__}:{config}", f"--workdir={name}"]
        say_to(Path(f"{name}.log"), launch, [*words, *(f"--config.{key}={value}" for key, value in keys.items())])
    history = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in history if "eval/loss" in record]
    return {**json.loads((place / "summary.json").read_text()), "evals": evals}


def change_at(evals: Sequence[dict[str, Any]], loss: float, key: str = "forget/change") -> float | None:
    """What was forgotten when the task's loss first came down to `loss`, on the line between two evaluations."""
    for before, after in itertools.pairwise(evals):
        if after["eval/loss"] <= loss:
            share = (before["eval/loss"] - loss) / max(before["eval/loss"] - after["eval/loss"], 1e-9)
            return before[key] + max(share, 0.0) * (after[key] - before[key])
    return None


def main(argv: Sequence[str]) -> None:
    out = Path(
        next((word.partition("=")[2] for word in argv if word.startswith("--out=")), "runs/forgetting")
    ).resolve()
    seed = next((word.partition("=")[2] for word in argv if word.startswith("--seed=")), "0")
    out.mkdir(parents=True, exist_ok=True)
    os.chdir(out)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "compiled")
    train("pretrain", "pretrain", {})
    found = {}
    for way, keys in WAYS.items():
        name = f"{way.translate(str.maketrans({' ': '_', ',': None, '%': None, '/': None}))}_{seed}"
        seeds = {"data.seed": seed, "train.seed": seed}
        found[way] = train("replay" if "data.replay" in keys else "tune", name, {**seeds, **keys})
    level = found["plain, peak / 10"]["best/eval/loss"]
    print(
        f"before: task {found['plain, peak']['start/eval/loss']:.3f}, remembered {found['plain, peak']['start/forget/loss']:.3f}"
    )
    print(
        f"| way | task loss | forgotten | KL | forgotten when the task's loss was {level:.3f} |\n|---|---|---|---|---|"
    )
    for way, run in found.items():
        then = change_at(run["evals"], level)
        print(
            f"| {way} | {run['best/eval/loss']:.3f} | {run['best/forget/change']:+.3f} +- {run['best/forget/change_stderr']:.3f} | "
            f"{run['best/forget/kl']:.3f} | {'-' if then is None else f'{then:+.3f}'} |"
        )
    mixed = Path(f"mixed_{seed}")
    if not (mixed / "interpolate.json").is_file():
        from lm.interpolate import main as interpolate

        words = [f"plain_peak_{seed}", f"--out={mixed}", "--shares=0.25,0.5,0.75", "--take=0.5"]
        say_to(Path(f"{mixed}.log"), interpolate, words)
    for row in json.loads((mixed / "interpolate.json").read_text())["rows"]:
        name, change = (
            f"{row['share']:g} of plain, peak",
            f"{row['forget/change']:+.3f} +- {row['forget/change_stderr']:.3f}",
        )
        print(f"| {name}, the rest its start | {row['eval/loss']:.3f} | {change} | {row['forget/kl']:.3f} | |")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
