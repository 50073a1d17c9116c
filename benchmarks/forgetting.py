"""What does each way of fine-tuning forget, and what does it learn? A tiny model pretrained on code, tuned to English prose.

Pretrains once (2 layers x 64 on bytes of two packages of the standard library), then tunes all weights on the pages in docs/ plainly at
the pretraining's peak rate and at a tenth of it, with replay, with the pull to the start, with averaged weights, with adapters, and
mixes the first with its start. Runs that lie in --runs already are not made again. Two CPU cores: about 3 minutes. --quick: two ways,
a smaller model, few steps. docs/forgetting.md has the table.

    python benchmarks/forgetting.py [--out=FILE.jsonl] [--quick] [--runs=runs/forgetting] [--seed=0]

example: python benchmarks/forgetting.py --runs=runs/forgetting-1 --seed=1
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ml_collections

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.turns import Table
from configs import base, smoke
from data_pipeline.schema import ConfigError, run_main, split_flags

ROOT = Path(__file__).resolve().parent.parent
PEAK = 3e-3
WAYS: dict[str, dict[str, Any]] = {
    "plain, peak": {},
    "plain, peak / 10": {"optim.peak_lr": PEAK / 10},
    "replay 30 %": {"data.replay": 0.3},
    "pull to start 30": {"optim.pull_to_start": 30.0},
    "average 0.95": {"train.ema_decay": 0.95},
    "LoRA, rank 8": {"optim.train": "(('.*_lora_[ab]',True),('.*',False))", "lora.rank": 8},
}
QUICK = {
    "model.layers": 1,
    "model.dim": 16,
    "model.heads": 2,
    "model.mlp_dim": 16,
    "train.steps": 6,
    "train.eval_every": 2,
}
NUMBERS = ("eval/loss", "forget/change", "forget/change_stderr", "forget/kl")


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


def main(argv: list[str]) -> None:
    names = {"out": "", "quick": "false", "runs": "", "seed": "0"}
    flags, extra = split_flags(argv, names, __doc__ or "")
    if extra or not flags["seed"].isdigit():
        raise ConfigError("--seed is a whole number, and there are no --config keys; see --help")
    quick, seed = flags["quick"] == "true", flags["seed"]
    ways = dict(itertools.islice(WAYS.items(), 2 if quick else None))
    runs = Path(flags["runs"] or f"runs/forgetting{'-quick' * quick}").resolve()
    out = str(Path(flags["out"]).resolve()) if flags["out"] else ""
    runs.mkdir(parents=True, exist_ok=True)
    os.chdir(runs)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "compiled")
    fixed = QUICK if quick else {}
    train("pretrain", "pretrain", fixed)
    found = {}
    for way, keys in ways.items():
        name = f"{way.translate(str.maketrans({' ': '_', ',': None, '%': None, '/': None}))}_{seed}"
        seeds = {"data.seed": seed, "train.seed": seed}
        found[way] = train("replay" if "data.replay" in keys else "tune", name, {**fixed, **seeds, **keys})
    report(found, interpolate(f"plain_peak_{seed}", Path(f"mixed_{seed}")), int(seed), out)


def report(found: dict[str, dict[str, Any]], mixes: list[dict[str, float]], seed: int, out: str) -> None:
    """Prints the table of the ways and of the mixes, and adds its rows to `out`."""
    level = found["plain, peak / 10"]["best/eval/loss"]
    plain = found["plain, peak"]
    print(f"before: task {plain['start/eval/loss']:.3f}, remembered {plain['start/forget/loss']:.3f}\n")
    last = f"forgotten when the task's loss was {level:.3f}"
    table = Table("forgetting", ["way", "task loss", "forgotten", "KL", last], out)

    def add(way: str, numbers: dict[str, float], then: float | None, shown: str) -> None:
        loss, change, stderr, kl = (numbers[key] for key in NUMBERS)
        row = {"way": way, "seed": seed, "level": level, "change_at_level": then, **{k: numbers[k] for k in NUMBERS}}
        table.add(row, [way, f"{loss:.3f}", f"{change:+.3f} +- {stderr:.3f}", f"{kl:.3f}", shown])

    for way, run in found.items():
        then = change_at(run["evals"], level)
        add(way, {key: run[f"best/{key}"] for key in NUMBERS}, then, "-" if then is None else f"{then:+.3f}")
    for mix in mixes:
        add(f"{mix['share']:g} of plain, peak, the rest its start", mix, None, "")


def interpolate(run: str, mixed: Path) -> list[dict[str, float]]:
    """Returns what lm.interpolate says of mixes of a run with its start, which are made where they are missing."""
    from lm.interpolate import main as command

    if not (mixed / "interpolate.json").is_file():
        words = [run, f"--out={mixed}", "--shares=0.25,0.5,0.75", "--take=0.5"]
        say_to(Path(f"{mixed}.log"), command, words)
    return json.loads((mixed / "interpolate.json").read_text())["rows"]


if __name__ == "__main__":
    run_main(main)
