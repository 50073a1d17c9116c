"""What does each way of fine-tuning forget, and what does it learn? A small model pretrained on code, tuned to write docstrings.

    python -m benchmarks.forgetting --out=runs/forgetting

Pretrains once (4 layers x 64, tokens of 512 pieces, the standard library's code), then tunes all weights plainly at the pretraining's
peak rate and at a tenth of it, with replay, with the pull to the start, with averaged weights, with adapters, and mixes the first
with its start. The runs in --out are not made again. Two CPU cores: about 5 minutes. docs/forgetting.md has the table.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections

from configs import base

ROOT = Path(__file__).resolve().parents[1]
PEAK = 5e-3
WAYS: dict[str, dict[str, Any]] = {
    "plain, peak": {},
    "plain, peak / 10": {"optim.peak_lr": PEAK / 10},
    "replay 30 %": {"data.replay": 0.3},
    "pull to start 20": {"optim.pull_to_start": 20.0},
    "average 0.99": {"train.ema_decay": 0.99},
    "LoRA, rank 8": {
        "optim.train": "(('.*_lora_[ab]',True),('.*',False))", "lora.rank": 8,
    },
}  # fmt: skip


def get_config(name: str) -> ml_collections.ConfigDict:
    """`pretrain`, `tune` or `replay`."""
    c: Any = base.get_config()
    code = {"kind": "package", "path": "stdlib", "max_documents": 200}
    c.data.split.validation = 0.1
    c.data.split.test = 0.0
    c.data.tokenizer.vocab_size = 512
    c.data.tokenizer.train_chars = 300_000
    c.data.seq_len = 128
    c.data.batch_size = 16
    c.model.layers = 4
    c.model.dim = 64
    c.model.heads = 4
    c.model.attention = "xla"
    c.model.tie_embeddings = False
    c.model.scan = True
    c.optim.peak_lr = PEAK
    c.optim.warmup_steps = 10
    c.optim.end_lr_ratio = 0.05
    c.train.log_every = 20
    c.train.eval_rows = 96
    if name == "pretrain":
        c.data.sources.code = base.source(**code)
        c.train.steps = 300
        c.train.eval_every = 150
        return c
    c.data.sources.docstrings = base.source(**{**code, "max_documents": 3000}, records="docstrings")
    if name == "replay":
        c.data.sources.code = base.source(**code, replay=True)
    c.data.min_completion_kept = 0.0
    c.init.source = "pretrain"
    c.data.tokenizer.kind = "auto"
    c.data.tokenizer.path = "pretrain/tokenizer"
    c.train.steps = 60
    c.train.eval_every = 10
    c.train.eval_at_start = True
    c.train.remember = "pretraining"
    c.train.remember_rows = 96
    return c


def launch(folder: Path, module: Sequence[str], keys: dict[str, Any]) -> None:
    """Runs a command of ours in `folder`, its output in a file beside the run."""
    words = [sys.executable, *module, *(f"--config.{key}={value}" for key, value in keys.items())]
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / "last.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def train(folder: Path, config: str, name: str, keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the summary of a run, which is made where it is missing, with its evaluations as "evals"."""
    if not (folder / name / "summary.json").is_file():
        print(name, flush=True)
        launch(folder, [str(ROOT / "launch.py"), f"--config={__file__}:{config}", f"--workdir={name}"], keys)
    history = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in history if "eval/loss" in record]
    return {**json.loads((folder / name / "summary.json").read_text()), "evals": evals}


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
    train(out, "pretrain", "pretrain", {})
    found = {}
    for way, keys in WAYS.items():
        name = f"{way.translate(str.maketrans({' ': '_', ',': None, '%': None, '/': None}))}_{seed}"
        seeds = {"data.seed": seed, "train.seed": seed}
        found[way] = train(out, "replay" if "data.replay" in keys else "tune", name, {**seeds, **keys})
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
    mixed = out / f"mixed_{seed}"
    if not (mixed / "interpolate.json").is_file():
        shares = "--shares=0.25,0.5,0.75"
        launch(out, ["-m", "lm.interpolate", f"plain_peak_{seed}", f"--out={mixed.name}", shares, "--take=0.5"], {})
    for row in json.loads((mixed / "interpolate.json").read_text())["rows"]:
        name, change = (
            f"{row['share']:g} of plain, peak",
            f"{row['forget/change']:+.3f} +- {row['forget/change_stderr']:.3f}",
        )
        print(f"| {name}, the rest its start | {row['eval/loss']:.3f} | {change} | {row['forget/kl']:.3f} | |")


if __name__ == "__main__":
    main(sys.argv[1:])
