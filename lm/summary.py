"""What is left when a run ends: summary.json, receipt.json, loss.png and a run card."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import jax

from lm.checkpoint import find_step, list_steps
from lm.clock import account
from lm.config import Config, ConfigError, changed_keys, to_json
from lm.hf.source import keep_origin
from lm.hosts import from_main, is_main
from lm.logger import run_card, write_json
from lm.metrics import finite_or_none
from lm.optim import Treatment
from lm.params import params_sha256
from lm.receipt import Receipt, check_frozen
from lm.resume import check_resume
from lm.run import Outcome, Run

EVENTS = "events.jsonl"  # in a workdir: when it started, saved, ended
# What the summary of a classifier always has; null where it was not measured.
CLASSIFIED = (
    "eval/accuracy", "eval/macro_f1", "baseline/majority/accuracy", "baseline/tfidf/accuracy", "baseline/tfidf/macro_f1",
)  # fmt: skip


def finished(workdir: Path, config: Config, log: Callable[[str], None]) -> str | None:
    """Returns what to tell someone who starts a finished run again with the same config, else None.

    One whose last checkpoint is damaged goes on from an older one; raises UserError when all are damaged.
    """
    try:
        summary = json.loads((workdir / "summary.json").read_text())
        saved = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if summary["status"] not in ("finished", "stopped early") or check_resume(saved, config, str(workdir)):
        return None
    if list_steps(workdir / "checkpoints"):  # there may be none: a finished run's may have been moved away
        usable = from_main(find_step(workdir, "last", log) if is_main() else 0)
        if usable != summary["steps"]:
            return None
    loss = summary.get("eval/loss")
    last = (
        ""
        if loss is None
        else f", eval/loss {loss:.4f}, best {summary['best/eval/loss']:.4f} at step {summary['best_step']}"
    )
    return f"the run in {workdir} is {summary['status']} at step {summary['steps']}{last}; nothing to do. Raise train.steps to go on"


def versions() -> dict[str, str]:
    names = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": python_version(), **{name: version(name) for name in names}}


def next_commands(run: Run) -> dict[str, str]:
    """The commands a person would run next, and what each does."""
    workdir = shlex.quote(str(run.workdir))
    if run.config.model.classes:
        commands = {f'python -m lm.classify --workdir={workdir} --text="..."': "tell the class of a text"}
        if run.data.has_split("test"):
            commands[f"python -m lm.classify --workdir={workdir} --split=test"] = "open the test split"
        return commands | {f"tensorboard --logdir={workdir}": "look at its curves"}
    commands = {f'python -m lm.generate --workdir={workdir} --prompt="..."': "write text with it"}
    if run.data.has_split("test"):
        commands[f"python -m lm.evaluate --workdir={workdir} --split=test"] = "measure it on unseen text"
    if not run.config.init.source:
        commands[f"python launch.py --config=configs/finetune.py --config.init.source={workdir}"] = (
            "fine-tune its top layers"
        )
    commands[f"tensorboard --logdir={workdir}"] = "look at its curves"
    return commands


def begin(run: Run, receipt: Receipt) -> None:
    """Writes what a workdir has from the beginning of a run on: tokenizer, config, where its weights go back to, receipt."""
    data: Any = run.data
    data.tokenizer.save(run.workdir / "tokenizer")
    write_json(run.workdir / "config.json", to_json(run.config))
    keep_origin(run.config.init.source, run.workdir)
    write_json(run.workdir / "receipt.json", receipt)


def finish(
    run: Run,
    outcome: Outcome,
    receipt: Receipt,
    treatment: Treatment,
    numbers: Mapping[str, Any] | None = None,
    page: str = "",
) -> dict[str, Any]:
    """Checks that nothing frozen moved, writes all that a run leaves, and returns the summary.

    `numbers` come into the summary and `page` into the run card, as they are.
    """
    receipt = check_frozen(receipt, outcome.state.params, treatment.at(max(run.progress.step - 1, 0)))
    digest = params_sha256(outcome.state.params)
    progress, config = run.progress, run.config
    evals = [record for record in progress.history if "eval/loss" in record and record["step"]]
    start = next((record for record in progress.history if "eval/loss" in record and not record["step"]), {})
    best = next((record for record in evals if record["step"] == progress.best_step), {})
    trains = [record for record in progress.history if "train/loss" in record]
    rate = outcome.train_tokens / outcome.train_seconds if outcome.train_seconds else 0.0
    run.clock.note("exit", step=progress.step, status=outcome.status)
    summary = {
        "workdir": str(run.workdir),
        "status": outcome.status,
        "start": run.meta["start"],
        "steps": progress.step,
        "steps_planned": config.train.steps,
        "best_step": progress.best_step,
        "train/loss": trains[-1]["train/loss"] if trains else None,
        **(dict.fromkeys(CLASSIFIED) if config.model.classes else {}),
        **{key: value for key, value in (evals[-1] if evals else {}).items() if key != "step"},
        **{f"best/{key}": value for key, value in best.items() if key != "step"},
        **{f"start/{key}": value for key, value in start.items() if key != "step"},
        **(numbers or {}),
        "params_sha256": digest,
        "tokens_per_sec": rate,
        "mfu": outcome.train_flops / outcome.train_seconds / run.peak_flops if outcome.train_seconds else 0.0,
        "peak": run.peak_source,
        "tokens_seen": int(progress.targets),
        "tokens_processed": progress.tokens,
        "wall_seconds": progress.wall_seconds,
        **(account(run.workdir / EVENTS) if is_main() else {}),  # process 0 keeps it
        "peak_lr": run.meta["peak_lr"],
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "versions": versions(),
        "data_sha256": run.meta["data_sha256"],
        "tokenizer_sha256": run.meta["tokenizer_sha256"],
        "data": run.data.summary(config.train.steps),
        "config_changes": {key: new for key, _, new in changed_keys(config)},
    }
    summary = {key: finite_or_none(value) for key, value in summary.items()}
    if is_main():
        write_json(run.workdir / "receipt.json", receipt)
        run.logger.plot(progress.history)
        card = run_card(summary, receipt, next_commands(run), page)
        (run.workdir / "README.md").write_text(card)
        write_json(run.workdir / "summary.json", summary)  # last: it says that the run has ended
    return summary


def check_workdir_config(workdir: Path, config: Config) -> None:
    """Raises ConfigError when `workdir` holds a run of another config that cannot be resumed with this one."""
    try:
        saved = json.loads((workdir / "config.json").read_text())
    except OSError:
        return
    except ValueError as error:
        raise ConfigError(
            f"{workdir / 'config.json'} is damaged: {error}. Delete it to go on with this config"
        ) from None
    if (workdir / "checkpoints").is_dir():
        check_resume(saved, config, str(workdir))
